//! `[LOCAL:]PORT:HOST:PORT`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// One forwarded port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardSpec {
    /// On this machine; port 0 takes a free one.
    pub(crate) local: SocketAddr,
    /// In the private network.
    pub(crate) to: SocketAddr,
}

/// The text is no forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSpec {
    #[error("write [LOCAL:]PORT:HOST:PORT, as in 8080:10.0.0.5:80 or [::1]:8080:[fd00::5]:80")]
    Shape,
    #[error("'{0}' is no IP address; names are not known here, and an IPv6 address stands in brackets")]
    Address(String),
    #[error("'{0}' is no port number (0 to 65535; 0 on this machine only)")]
    Number(String),
}

impl FromStr for ForwardSpec {
    type Err = BadSpec;
    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let fields = fields(text)?;
        let (local, number, host, port) = match fields.as_slice() {
            [number, host, port] => (IpAddr::V4(Ipv4Addr::LOCALHOST), number, host, port),
            [local, number, host, port] => (address(local)?, number, host, port),
            _ => return Err(BadSpec::Shape),
        };
        let local = SocketAddr::new(local, self::number(number)?);
        let to = SocketAddr::new(address(host)?, self::number(port)?);
        if to.port() == 0 {
            return Err(BadSpec::Number((*port).to_owned()));
        }
        Ok(Self { local, to })
    }
}

/// Parted at colons that stand outside of brackets; brackets go.
fn fields(text: &str) -> Result<Vec<&str>, BadSpec> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let field = if let Some(inner) = rest.strip_prefix('[') {
            let (field, behind) = inner.split_once(']').ok_or(BadSpec::Shape)?;
            rest = behind;
            field
        } else {
            let end = rest.find(':').unwrap_or(rest.len());
            let (field, behind) = rest.split_at(end);
            rest = behind;
            field
        };
        fields.push(field);
        if rest.is_empty() {
            return Ok(fields);
        }
        rest = rest.strip_prefix(':').ok_or(BadSpec::Shape)?;
    }
}

fn address(text: &str) -> Result<IpAddr, BadSpec> {
    text.parse().map_err(|_| BadSpec::Address(text.to_owned()))
}

fn number(text: &str) -> Result<u16, BadSpec> {
    text.parse().map_err(|_| BadSpec::Number(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_are_read() {
        for (text, local, to) in [
            ("8080:10.0.0.5:80", "127.0.0.1:8080", "10.0.0.5:80"),
            ("0:10.0.0.5:65535", "127.0.0.1:0", "10.0.0.5:65535"),
            ("0.0.0.0:8080:10.0.0.5:80", "0.0.0.0:8080", "10.0.0.5:80"),
            ("[::1]:8080:[fd00::5]:80", "[::1]:8080", "[fd00::5]:80"),
            ("8080:[fd00::5]:80", "127.0.0.1:8080", "[fd00::5]:80"),
        ] {
            let spec = ForwardSpec { local: local.parse().unwrap(), to: to.parse().unwrap() };
            assert_eq!(text.parse(), Ok(spec), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, error) in [
            ("", BadSpec::Shape),
            ("80", BadSpec::Shape),
            ("10.0.0.5:80", BadSpec::Shape),
            ("1:2:3:4:5", BadSpec::Shape),
            ("80:[fd00::5:80", BadSpec::Shape),
            ("80:[fd00::5]x:80", BadSpec::Shape),
            ("8080:fd00::5:80", BadSpec::Shape),
            ("80:host:80", BadSpec::Address("host".into())),
            ("host:80:10.0.0.5:80", BadSpec::Address("host".into())),
            ("x:10.0.0.5:80", BadSpec::Number("x".into())),
            ("65536:10.0.0.5:80", BadSpec::Number("65536".into())),
            ("80:10.0.0.5:0", BadSpec::Number("0".into())),
            ("80:10.0.0.5:", BadSpec::Number("".into())),
        ] {
            assert_eq!(text.parse::<ForwardSpec>(), Err(error), "{text}");
        }
    }
}

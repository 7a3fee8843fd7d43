//! `--offer`: hosts that the relay's named routes may lead to, by name.

use std::net::SocketAddr;

use isthmus_proto::door::name::HostName;
use isthmus_proto::hello::Offer;

/// Most offers: with all else that a mediator reports they have to fit one frame.
pub(crate) const OFFERS_MAX: usize = 8;

/// Reads `NAME=HOST:PORT`, or `HOST:PORT` for every name that the relay leads to this mediator.
///
/// # Errors
/// Says what to write.
pub(crate) fn parse(text: &str) -> Result<Offer, String> {
    let (name, target) = text.split_once('=').unwrap_or(("*", text));
    let name = match name {
        "*" => name.to_owned(),
        name => name.parse::<HostName>().map_err(|error| format!("'{name}': {error}"))?.as_str().to_owned(),
    };
    match target.parse::<SocketAddr>() {
        Ok(target) if target.port() != 0 => Ok(Offer { name, target }),
        _ => Err(format!("'{target}' is not an IP address with a port number, as in www.example.net=10.0.0.5:443")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_for_one_name_or_for_all() {
        let read = |text| parse(text).map(|offer| (offer.name, offer.target.to_string()));
        assert_eq!(read("10.0.0.5:443"), Ok(("*".into(), "10.0.0.5:443".into())));
        assert_eq!(read("WWW.Example.net=[fd00::5]:443"), Ok(("www.example.net".into(), "[fd00::5]:443".into())));
        for (bad, part) in [("a b=10.0.0.5:1", "'a b'"), ("a=10.0.0.5", "'10.0.0.5'"), ("a=10.0.0.5:0", "'10.0.0.5:0'")]
        {
            assert!(read(bad).unwrap_err().contains(part), "{bad}");
        }
    }
}

//! The Host of an HTTP/1 request (RFC 9112 section 3.2).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::name::{BadStart, HostName, REQUEST_HEAD_MAX};

/// Most header fields of a request.
const FIELDS_MAX: usize = 100;

/// Whom the request that `bytes` begin with is for: `None` when its head is not whole yet.
///
/// A target in absolute form wins over Host, as it has to at any server (RFC 9112 section 3.2.2). One Host has to be
/// there in either case; HTTP/1.0 is no exception, since there is nothing else to go by.
pub(super) fn host(bytes: &[u8]) -> Result<Option<HostName>, BadStart> {
    let head = &bytes[..bytes.len().min(REQUEST_HEAD_MAX)];
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < REQUEST_HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(BadStart::HttpTooLong),
        Err(_) => return Err(BadStart::Http),
    }
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(BadStart::Http) };
    let host = std::str::from_utf8(host.value).map_err(|_| BadStart::Http)?;
    let host = without_port(host).ok_or(BadStart::Http)?;
    let target = request.path.unwrap_or_default();
    match absolute(target) {
        Some(authority) => without_port(authority).ok_or(BadStart::Http).map(Some),
        None if target.starts_with('/') || target == "*" => Ok(Some(host)),
        // The form of CONNECT asks for a proxy, which this is not.
        None => Err(BadStart::Http),
    }
}

/// The authority of a target in absolute form, without user information.
fn absolute(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
}

/// Of `host [":" port]`, the host.
fn without_port(text: &str) -> Option<HostName> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        return (rest.is_empty() || is_port(rest.strip_prefix(':')?)).then(|| HostName::from_address(address.into()));
    }
    let host = match text.split_once(':') {
        Some((host, port)) if is_port(port) => host,
        Some(_) => return None,
        None => text,
    };
    match host.parse::<Ipv4Addr>() {
        Ok(address) => Some(HostName::from_address(address.into())),
        Err(_) => host.parse().ok(),
    }
}

/// RFC 3986 lets the number be left out.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Result<Option<String>, BadStart> {
        host(text.as_bytes()).map(|host| host.map(|host| host.as_str().to_owned()))
    }

    #[test]
    fn the_host_is_read_at_the_heads_last_byte_and_not_before() {
        let text =
            "POST /x HTTP/1.1\r\nUser-Agent: x\r\nhOsT:  Device-7.Example.NET:8080 \r\nContent-Length: 9\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(name(&text[..end]), Ok(None), "{end}");
        }
        assert_eq!(name(text), Ok(Some("device-7.example.net".into())));
        assert_eq!(name(&format!("{text}body\0\r\n\r\n")), Ok(Some("device-7.example.net".into())));
    }

    #[test]
    fn absolute_form_wins_over_host() {
        for (target, host) in [
            ("http://a.example/x", "a.example"),
            ("HTTP://A.example:80", "a.example"),
            ("https://u:p@a.example?q=http://b", "a.example"),
            ("http://[::1]:80/", "::1"),
            ("/x?u=http://b.example/", "c.example"),
            ("*", "c.example"),
        ] {
            let text = format!("GET {target} HTTP/1.0\r\nHost: c.example\r\n\r\n");
            assert_eq!(name(&text), Ok(Some(host.into())), "{target}");
        }
    }

    #[test]
    fn what_names_no_single_host_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:+80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: [::1]80\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET /\r\n\r\n",
            "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(name(head), Err(BadStart::Http), "{head:?}");
        }
    }

    #[test]
    fn a_head_is_bounded_on_both_sides_of_the_edge() {
        let head = |length: usize| {
            let front = "GET / HTTP/1.1\r\nHost: a.example\r\nX: ";
            format!("{front}{}\r\n\r\n", "x".repeat(length - front.len() - 4))
        };
        assert_eq!(name(&head(REQUEST_HEAD_MAX)), Ok(Some("a.example".into())));
        assert_eq!(name(&head(REQUEST_HEAD_MAX)[..REQUEST_HEAD_MAX - 1]), Ok(None));
        assert_eq!(name(&head(REQUEST_HEAD_MAX + 1)), Err(BadStart::HttpTooLong));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(FIELDS_MAX));
        assert_eq!(name(&many), Err(BadStart::HttpTooLong));
    }

    proptest! {
        #[test]
        fn random_and_damaged_bytes_never_panic(
            bytes in vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
        ) {
            let _ = host(&bytes);
            let _ = host(&[b"GET / HTTP/1.1\r\nHost: ", bytes.as_slice(), b"\r\n\r\n"].concat());
            let _ = host(&[b"GET ", bytes.as_slice(), b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
            let mut damaged = b"GET http://u@a.example:80/x HTTP/1.1\r\nHost: [::1]:80\r\nX: y\r\n\r\n".to_vec();
            let at = at.index(damaged.len());
            damaged[at] = value;
            let _ = host(&damaged);
        }
    }
}

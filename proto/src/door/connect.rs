//! HTTP CONNECT (RFC 9110 section 9.3.6) with Basic credentials (RFC 7617).

use super::proxy::{Bad, Command, Request, Step};
use super::target::{Host, Target};
use crate::Code;

/// Longest head of a request.
const HEAD_MAX: usize = 8 * 1024;

#[derive(Clone, Debug, Default)]
pub(super) enum State {
    #[default]
    Head,
    /// The driver checks the credentials.
    Checking(Target),
    Checked(Target),
    Done,
}

/// See [`super::socks5::feed`].
pub(super) fn feed(state: &mut State, open: bool, bytes: &[u8], out: &mut Vec<u8>) -> Option<(usize, Step)> {
    match std::mem::replace(state, State::Done) {
        State::Head => {
            let fed = head(state, open, bytes);
            match &fed {
                None => *state = State::Head,
                Some((_, Step::Refused(bad))) => out.extend_from_slice(&refusal(*bad)),
                Some(_) => {}
            }
            fed
        }
        State::Checked(target) => Some((0, Step::Request(Request { command: Command::Connect, target }))),
        checking => {
            *state = checking;
            None
        }
    }
}

fn head(state: &mut State, open: bool, bytes: &[u8]) -> Option<(usize, Step)> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return (bytes.len() > HEAD_MAX).then_some((0, Step::Refused(Bad::Malformed)));
    };
    let refused = |bad| Some((0, Step::Refused(bad)));
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else { return refused(Bad::Malformed) };
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return refused(Bad::Malformed);
    };
    if !version.starts_with("HTTP/1.") {
        return refused(Bad::Malformed);
    }
    if method != "CONNECT" {
        return refused(Bad::Command);
    }
    let Some(target) = authority(target) else { return refused(Bad::Malformed) };
    let header = |line: &'_ str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("proxy-authorization").then(|| value.trim().to_owned())
    };
    let step = match lines.find_map(header) {
        Some(value) => match credentials(&value) {
            Some((user, password)) => {
                *state = State::Checking(target);
                Step::Login { user, password }
            }
            None => return refused(Bad::Login),
        },
        None if open => Step::Request(Request { command: Command::Connect, target }),
        None => return refused(Bad::Login),
    };
    Some((end + 4, step))
}

/// What the driver found of the credentials.
pub(super) fn logged_in(state: &mut State, good: bool, out: &mut Vec<u8>) {
    if let State::Checking(target) = std::mem::replace(state, State::Done) {
        if good {
            *state = State::Checked(target);
        } else {
            out.extend_from_slice(&refusal(Bad::Login));
        }
    }
}

fn authority(text: &str) -> Option<Target> {
    let (host, port) = text.rsplit_once(':')?;
    // An IPv6 address stands in brackets; without them its last group would be the port.
    let host = Host::parse(host).filter(|_| !host.contains(':') || host.starts_with('['))?;
    Some(Target { host, port: port.parse().ok().filter(|&port| port != 0)? })
}

fn credentials(value: &str) -> Option<(String, String)> {
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(base64(rest.trim())?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// RFC 4648 section 4, with or without padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::with_capacity(text.len() / 4 * 3));
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

/// The answer to a request that was carried out.
pub(super) const GRANTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// The answer to a request that was not.
pub(super) fn refused(code: Code) -> Vec<u8> {
    let status = match code {
        Code::Denied | Code::NotPermitted | Code::TokenMismatch | Code::TokenExpired | Code::Revoked => "403 Forbidden",
        Code::TimedOut | Code::NameFailed => "504 Gateway Timeout",
        Code::NoResources | Code::TooManyPorts | Code::Overloaded | Code::MediatorAway => "503 Service Unavailable",
        _ => "502 Bad Gateway",
    };
    answer(status, "", code.text())
}

fn refusal(bad: Bad) -> Vec<u8> {
    match bad {
        Bad::Login => answer(
            "407 Proxy Authentication Required",
            "Proxy-Authenticate: Basic realm=\"isthmus\"\r\n",
            "the user name is the mediator's, the password a terminal's token",
        ),
        Bad::Command => answer(
            "405 Method Not Allowed",
            "Allow: CONNECT\r\n",
            "this proxy knows CONNECT only, which clients use for https",
        ),
        Bad::Malformed | Bad::AddressType => answer("400 Bad Request", "", "the request could not be understood"),
    }
}

fn answer(status: &str, headers: &str, text: &str) -> Vec<u8> {
    let length = text.len() + 1;
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{text}\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_length_that_their_heads_tell() {
        let answers = [Bad::Login, Bad::Command, Bad::Malformed].map(refusal);
        for answer in answers.into_iter().chain([Code::Refused, Code::Denied].map(refused)) {
            let text = String::from_utf8(answer).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            let told = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            assert_eq!(told.parse(), Ok(body.len()), "{text}");
        }
    }

    #[test]
    fn base64_is_read_with_and_without_padding() {
        for (text, bytes) in [("", &b""[..]), ("Zg==", b"f"), ("Zm8", b"fo"), ("Zm9vOmJhcg==", b"foo:bar")] {
            assert_eq!(base64(text).as_deref(), Some(bytes), "{text}");
        }
        assert_eq!(base64("Zm 8"), None);
    }

    #[test]
    fn authorities_have_a_port() {
        for (text, good) in [
            ("10.0.0.5:22", true),
            ("[fd00::5]:22", true),
            ("printer.lan:80", true),
            ("fd00::5:22", false),
            ("printer", false),
            ("printer:0", false),
            ("printer:x", false),
            (":80", false),
        ] {
            assert_eq!(authority(text).is_some(), good, "{text}");
        }
    }
}

//! A proxy's port: SOCKS5 and HTTP CONNECT, told apart by the first byte, as one machine.
//!
//! The driver feeds what came ([`Proxy::feed`]), drops what is consumed, sends what was added to `out`, and acts on the
//! step. A client may send everything at once; nothing behind its request is consumed.

use std::net::SocketAddr;

use super::target::Target;
use super::{connect, socks5};
use crate::Code;

/// Most bytes that a client needs for anything that it may say before its request is understood.
pub const FIRST_BYTES_MAX: usize = 8 * 1024;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A connection to the target.
    Connect,
    /// A server for one connection from the target.
    Bind,
    /// Datagrams, for as long as the connection stands; the target is where the client will send from.
    Associate,
}

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub command: Command,
    /// With whom.
    pub target: Target,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More has to come.
    More,
    /// Who the client says that it is; [`Proxy::logged_in`] has to follow.
    Login {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// The client's request; [`Proxy::granted`] or [`Proxy::refused`] answer it.
    Request(Request),
    /// It cannot go on; the reply is in `out`.
    Refused(Bad),
}

/// What is wrong with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Not the protocol.
    Malformed,
    /// It does not say who it is, or not in a way that is known here.
    Login,
    /// A command or method that is not known.
    Command,
    /// A type of address that is not known.
    AddressType,
}

/// What a client speaks.
#[derive(Clone, Debug)]
enum Speaks {
    /// It has not said a byte yet.
    Unknown,
    Socks(socks5::State),
    Http(connect::State),
}

/// One client's greeting and request.
#[derive(Clone, Debug)]
pub struct Proxy {
    open: bool,
    speaks: Speaks,
}

impl Proxy {
    /// A new client. `open`: it need not say who it is.
    pub fn new(open: bool) -> Self {
        Self { open, speaks: Speaks::Unknown }
    }

    /// Takes what came and was not consumed before; gives how much of it is consumed now. To be called again, with the
    /// rest, after [`Step::More`] that consumed something, and after [`Proxy::logged_in`].
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> (usize, Step) {
        if let (Speaks::Unknown, Some(&first)) = (&self.speaks, bytes.first()) {
            self.speaks = match first {
                socks5::VERSION => Speaks::Socks(socks5::State::default()),
                b'A'..=b'Z' => Speaks::Http(connect::State::default()),
                _ => return (0, Step::Refused(Bad::Malformed)),
            };
        }
        let fed = match &mut self.speaks {
            Speaks::Unknown => None,
            Speaks::Socks(state) => socks5::feed(state, self.open, bytes, out),
            Speaks::Http(state) => connect::feed(state, self.open, bytes, out),
        };
        match fed {
            Some(fed) => fed,
            None if bytes.len() > FIRST_BYTES_MAX => (0, Step::Refused(Bad::Malformed)),
            None => (0, Step::More),
        }
    }

    /// Tells whether the client is who it says. `false`: it is told so, and cannot go on.
    pub fn logged_in(&mut self, good: bool, out: &mut Vec<u8>) {
        match &mut self.speaks {
            Speaks::Unknown => {}
            Speaks::Socks(state) => socks5::logged_in(state, good, out),
            Speaks::Http(state) => connect::logged_in(state, good, out),
        }
    }

    /// The reply to a request that was carried out at the address `bound`.
    pub fn granted(&self, bound: SocketAddr) -> Vec<u8> {
        match &self.speaks {
            Speaks::Http(_) => connect::GRANTED.to_vec(),
            Speaks::Unknown | Speaks::Socks(_) => socks5::granted(bound),
        }
    }

    /// The reply to a request that was not.
    pub fn refused(&self, code: Code) -> Vec<u8> {
        match &self.speaks {
            Speaks::Http(_) => connect::refused(code),
            Speaks::Unknown | Speaks::Socks(_) => socks5::refused(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds bytes until something else than [`Step::More`] comes, every login being `good`: what came, what was
    /// replied, what was left.
    #[allow(clippy::type_complexity)]
    fn run(open: bool, good: bool, bytes: &[u8]) -> (Step, Vec<u8>, Vec<u8>, Option<(String, String)>) {
        let (mut proxy, mut out, mut rest, mut who) = (Proxy::new(open), Vec::new(), bytes, None);
        loop {
            let (consumed, step) = proxy.feed(rest, &mut out);
            rest = &rest[consumed..];
            match step {
                Step::More if consumed > 0 => {}
                Step::Login { user, password } => {
                    who = Some((user, password));
                    proxy.logged_in(good, &mut out);
                    if !good {
                        return (Step::Refused(Bad::Login), out, rest.to_vec(), who);
                    }
                }
                step => return (step, out, rest.to_vec(), who),
            }
        }
    }

    const LOGIN: &[u8] = b"\x05\x01\x02\x01\x05cpe-1\x06secret";
    const CONNECT: &[u8] = b"\x05\x01\x00\x01\x0a\x00\x00\x05\x00\x50";
    const HTTP: &[u8] =
        b"CONNECT 10.0.0.5:80 HTTP/1.1\r\nHost: x\r\nproxy-authorization: Basic Y3BlLTE6c2VjcmV0\r\n\r\n";

    fn request(command: Command, target: &str) -> Step {
        let (host, port) = target.rsplit_once(':').unwrap();
        let host = super::super::target::Host::parse(host).unwrap();
        Step::Request(Request { command, target: Target { host, port: port.parse().unwrap() } })
    }

    #[test]
    fn a_whole_conversation_at_once_leaves_the_payload() {
        let (step, out, rest, who) = run(false, true, &[LOGIN, CONNECT, b"payload"].concat());
        assert_eq!(step, request(Command::Connect, "10.0.0.5:80"));
        assert_eq!((out, rest), (vec![5, 2, 1, 0], b"payload".to_vec()));
        assert_eq!(who, Some(("cpe-1".into(), "secret".into())));
        let (step, out, rest, who) = run(false, true, &[HTTP, b"payload"].concat());
        assert_eq!(step, request(Command::Connect, "10.0.0.5:80"));
        assert_eq!((out, rest), (vec![], b"payload".to_vec()));
        assert_eq!(who, Some(("cpe-1".into(), "secret".into())));
    }

    #[test]
    fn every_cut_of_a_conversation_asks_for_more() {
        for whole in [[LOGIN, CONNECT].concat(), HTTP.to_vec()] {
            for cut in 0..whole.len() {
                assert_eq!(run(false, true, &whole[..cut]).0, Step::More, "{cut}");
            }
        }
    }

    #[test]
    fn every_address_and_command_is_read() {
        let hello = b"\x05\x01\x00";
        for (bytes, want) in [
            (&b"\x05\x01\x00\x03\x07printer\x00\x50"[..], request(Command::Connect, "printer:80")),
            (b"\x05\x01\x00\x03\x0810.0.0.5\x00\x50", request(Command::Connect, "10.0.0.5:80")),
            (b"\x05\x02\x00\x01\x0a\x00\x00\x05\x00\x00", request(Command::Bind, "10.0.0.5:0")),
            (b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", request(Command::Associate, "0.0.0.0:0")),
            (
                b"\x05\x01\x00\x04\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\x00\x50",
                request(Command::Connect, "[fd00::5]:80"),
            ),
        ] {
            let (step, out, ..) = run(true, true, &[&hello[..], bytes].concat());
            assert_eq!((step, out), (want, vec![5, 0]));
        }
    }

    #[test]
    fn what_is_not_known_is_told_in_the_clients_own_words() {
        let hello = b"\x05\x01\x00".to_vec();
        let with = |bytes: &[u8]| [&hello[..], bytes].concat();
        for (bytes, bad, reply) in [
            (with(b"\x05\x04\x00\x01\x0a\x00\x00\x05\x00\x50"), Bad::Command, &[7][..]),
            (with(b"\x05\x01\x00\x02\x0a\x00\x00\x05\x00\x50"), Bad::AddressType, &[8]),
            (with(b"\x04\x01\x00\x01\x0a\x00\x00\x05\x00\x50"), Bad::Malformed, &[1]),
            (with(b"\x05\x01\x00\x03\x02\xff\xff\x00\x50"), Bad::Malformed, &[1]),
            (with(b"\x05\x01\x00\x03\x00\x00\x50"), Bad::Malformed, &[1]),
        ] {
            let (step, out, ..) = run(true, true, &bytes);
            assert_eq!((step, &out[3..4]), (Step::Refused(bad), reply), "{bytes:?}");
        }
        for (bytes, bad, reply) in [
            (&b"GET http://x/ HTTP/1.1\r\n\r\n"[..], Bad::Command, "405"),
            (b"CONNECT x HTTP/1.1\r\n\r\n", Bad::Malformed, "400"),
            (b"CONNECT x:1\r\n\r\n", Bad::Malformed, "400"),
            (b"CONNECT x:1 HTTP/1.1\r\nProxy-Authorization: Bearer x\r\n\r\n", Bad::Login, "407"),
        ] {
            let (step, out, ..) = run(true, true, bytes);
            assert_eq!(step, Step::Refused(bad));
            assert!(String::from_utf8(out).unwrap().starts_with(&format!("HTTP/1.1 {reply} ")));
        }
        assert_eq!(run(true, true, b"\x04\x01\x00\x50").0, Step::Refused(Bad::Malformed));
        assert_eq!(run(true, true, &[b'C'; FIRST_BYTES_MAX + 2]).0, Step::Refused(Bad::Malformed));
    }

    #[test]
    fn a_client_says_who_it_is_unless_the_port_is_open() {
        let (step, out, ..) = run(false, true, b"\x05\x01\x00");
        assert_eq!((step, out), (Step::Refused(Bad::Login), vec![5, 0xff]));
        let (step, out, ..) = run(false, true, b"CONNECT 10.0.0.5:80 HTTP/1.1\r\n\r\n");
        assert_eq!(step, Step::Refused(Bad::Login));
        assert!(out.starts_with(b"HTTP/1.1 407 "));
        assert_eq!(
            run(true, true, b"CONNECT 10.0.0.5:80 HTTP/1.1\r\n\r\n").0,
            request(Command::Connect, "10.0.0.5:80")
        );
        // One that only knows passwords may log in where nobody needs to.
        let (step, out, ..) = run(true, true, &[LOGIN, CONNECT].concat());
        assert_eq!((step, out), (request(Command::Connect, "10.0.0.5:80"), vec![5, 2, 1, 0]));
    }

    #[test]
    fn a_wrong_login_is_told() {
        let (step, out, ..) = run(false, false, &[LOGIN, CONNECT].concat());
        assert_eq!((step, out), (Step::Refused(Bad::Login), vec![5, 2, 1, 1]));
        let (step, out, ..) = run(false, false, HTTP);
        assert_eq!(step, Step::Refused(Bad::Login));
        assert!(out.starts_with(b"HTTP/1.1 407 "));
    }
}

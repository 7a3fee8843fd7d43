//! What a stream says before its own bytes, so that a door of the relay lets it through: to a SOCKS5 port a request that is
//! answered, to a port of names a ClientHello that the far end passes over ([`crate::peer::opening`]).
//!
//! A preface belongs to a target, `HOST:PORT[,socks5=IP:PORT|,tls=NAME]`, and is data: bytes to send and the replies to
//! expect. The loads differ in how they wait, not in what they say: [`Dialogue`] is for those with completions,
//! [`Preface::speak`] for those with blocking calls.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use isthmus_proto::door::name::HostName;

use super::client_hello::client_hello;

/// What is said before a stream's own bytes; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preface {
    exchanges: Vec<Exchange>,
    /// Goes out with the stream's own first bytes.
    ahead: Vec<u8>,
}

/// Bytes, and their reply.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Exchange {
    send: Vec<u8>,
    /// Each of its bytes; `None` where any is good.
    reply: Vec<Option<u8>>,
}

/// A reply that is not the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadReply {
    /// Of the preface's replies, from 1.
    number: usize,
    /// Of this reply's bytes, from 1.
    byte: usize,
    /// What it is; beyond the reply's end there should be none.
    got: u8,
}

impl fmt::Display for BadReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, byte, got } = self;
        write!(f, "the door did not let it through: byte {byte} of its reply number {number} is {got}")
    }
}

impl std::error::Error for BadReply {}

const SOCKS_VERSION: u8 = 5;
const NO_LOGIN: u8 = 0;
const CONNECT: u8 = 1;
const SUCCEEDED: u8 = 0;

impl Preface {
    /// A CONNECT at a SOCKS5 port that asks for no login. The reply's address is taken to be of the target's family.
    pub fn socks5(target: SocketAddr) -> Self {
        let (family, address): (u8, &[u8]) = match &target {
            SocketAddr::V4(target) => (1, &target.ip().octets()),
            SocketAddr::V6(target) => (4, &target.ip().octets()),
        };
        let greeting =
            Exchange { send: vec![SOCKS_VERSION, 1, NO_LOGIN], reply: vec![Some(SOCKS_VERSION), Some(NO_LOGIN)] };
        let head = [SOCKS_VERSION, CONNECT, 0, family];
        let send = [head.as_slice(), address, &target.port().to_be_bytes()].concat();
        let granted = [SOCKS_VERSION, SUCCEEDED, 0, family].map(Some).into_iter();
        let reply = granted.chain(std::iter::repeat_n(None, address.len() + 2)).collect();
        Self { exchanges: vec![greeting, Exchange { send, reply }], ahead: Vec::new() }
    }

    /// A ClientHello, which is the stream's own first message for all but the far end.
    pub fn tls(name: &HostName) -> Self {
        Self { exchanges: Vec::new(), ahead: client_hello(name) }
    }

    /// Says all of it, and then the stream's own first bytes.
    ///
    /// # Errors
    /// The socket's, or a reply is another one.
    pub fn speak(&self, mut socket: impl Read + Write, own: &[u8]) -> io::Result<()> {
        let mut dialogue = Dialogue::default();
        loop {
            let said = dialogue.say(self, own);
            socket.write_all(&said.bytes)?;
            if said.last {
                return Ok(());
            }
            let mut reply = vec![0; dialogue.missing(self)];
            socket.read_exact(&mut reply)?;
            dialogue.hear(self, &reply).map_err(|bad| io::Error::new(ErrorKind::InvalidData, bad))?;
        }
    }
}

/// How far a stream is in its preface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialogue {
    exchange: usize,
    /// Bytes of its reply that are there.
    heard: usize,
}

/// What is to be sent at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Say {
    /// All of it.
    pub bytes: Vec<u8>,
    /// It ends with the stream's own bytes, and no reply of a door is expected any more.
    pub last: bool,
}

/// What a reply's bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// More is to come.
    Part,
    /// The reply is whole: it is the stream's turn to [`Dialogue::say`].
    Whole,
}

impl Dialogue {
    /// What is to be sent now; `own` are the stream's first own bytes.
    pub fn say(&self, preface: &Preface, own: &[u8]) -> Say {
        match preface.exchanges.get(self.exchange) {
            Some(exchange) => Say { bytes: exchange.send.clone(), last: false },
            None => Say { bytes: [&preface.ahead, own].concat(), last: true },
        }
    }

    /// Bytes that the reply lacks; 0 when none is expected any more.
    pub fn missing(&self, preface: &Preface) -> usize {
        preface.exchanges.get(self.exchange).map_or(0, |exchange| exchange.reply.len().saturating_sub(self.heard))
    }

    /// Takes bytes of the reply.
    ///
    /// # Errors
    /// They are others, or more than the reply has.
    pub fn hear(&mut self, preface: &Preface, bytes: &[u8]) -> Result<Heard, BadReply> {
        let reply = preface.exchanges.get(self.exchange).map(|exchange| exchange.reply.as_slice()).unwrap_or_default();
        for &got in bytes {
            let good = reply.get(self.heard).is_some_and(|wanted| wanted.is_none_or(|wanted| wanted == got));
            self.heard += 1;
            if !good {
                return Err(BadReply { number: self.exchange + 1, byte: self.heard, got });
            }
        }
        if self.heard < reply.len() {
            return Ok(Heard::Part);
        }
        *self = Self { exchange: self.exchange + 1, heard: 0 };
        Ok(Heard::Whole)
    }
}

/// Where a stream goes, and what it says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The sink, or what leads to it.
    pub address: SocketAddr,
    /// What has to be said there.
    pub preface: Preface,
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, preface: Preface::default() }
    }
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, door) = text.split_once(',').map_or((text, None), |(address, door)| (address, Some(door)));
        let address = address
            .to_socket_addrs()
            .map_err(|error| format!("'{address}' is no HOST:PORT that is known: {error}"))?
            .next()
            .ok_or_else(|| format!("'{address}' has no address"))?;
        let preface = match door.map(|door| door.split_once('=').unwrap_or((door, ""))) {
            None => Preface::default(),
            Some(("socks5", target)) => Preface::socks5(
                target.parse().map_err(|_| format!("'{target}' is no IP:PORT, as in socks5=10.0.0.5:80"))?,
            ),
            Some(("tls", name)) => {
                Preface::tls(&name.parse().map_err(|bad| format!("'{name}' is no server name: {bad}"))?)
            }
            Some((other, _)) => return Err(format!("'{other}' is no door: write ,socks5=IP:PORT or ,tls=NAME")),
        };
        Ok(Self { address, preface })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket whose peer has said all of its replies beforehand.
    struct Scripted {
        replies: io::Cursor<Vec<u8>>,
        sent: Vec<Vec<u8>>,
    }

    impl Read for Scripted {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.replies.read(into)
        }
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.sent.push(bytes.to_vec());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn speak(preface: &Preface, replies: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut socket = Scripted { replies: io::Cursor::new(replies.to_vec()), sent: Vec::new() };
        preface.speak(&mut socket, b"own").map(|()| socket.sent)
    }

    const GRANTED: [u8; 12] = [5, 0, 5, 0, 0, 1, 10, 77, 0, 2, 0x12, 0x34];

    #[test]
    fn socks5_asks_in_two_turns_and_own_bytes_come_after_the_last_reply() {
        let preface = Preface::socks5("10.77.0.3:7000".parse().unwrap());
        let sent = speak(&preface, &GRANTED).unwrap();
        assert_eq!(sent, [vec![5, 1, 0], vec![5, 1, 0, 1, 10, 77, 0, 3, 0x1b, 0x58], b"own".to_vec()]);
        let sixth = Preface::socks5("[fd00::5]:80".parse().unwrap());
        assert_eq!(speak(&sixth, &[&[5, 0, 5, 0, 0, 4], [9; 18].as_slice()].concat()).unwrap()[1].len(), 22);
    }

    #[test]
    fn client_hello_and_own_bytes_are_one_write_and_no_reply_is_awaited() {
        let name = "www.example.net".parse().unwrap();
        let sent = speak(&Preface::tls(&name), &[]).unwrap();
        assert_eq!(sent, [[client_hello(&name).as_slice(), b"own"].concat()]);
        assert_eq!(speak(&Preface::default(), &[]).unwrap(), [b"own"]);
    }

    #[test]
    fn other_reply_and_early_end_are_errors_that_say_where() {
        let preface = Preface::socks5("10.77.0.3:7000".parse().unwrap());
        let refused = [5, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0];
        let error = speak(&preface, &refused).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains("byte 2 of its reply number 2 is 2"), "{error}");
        assert_eq!(speak(&preface, &GRANTED[..11]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn reply_may_come_in_any_parts_and_more_than_it_is_an_error() {
        let preface = Preface::socks5("10.77.0.3:7000".parse().unwrap());
        let mut dialogue = Dialogue::default();
        let heard: Vec<Heard> = GRANTED.iter().map(|&byte| dialogue.hear(&preface, &[byte]).unwrap()).collect();
        let whole = heard.iter().enumerate().filter(|&(_, &heard)| heard == Heard::Whole).map(|(at, _)| at);
        assert_eq!(whole.collect::<Vec<_>>(), [1, 11]);
        assert!(dialogue.say(&preface, b"own").last && dialogue.missing(&preface) == 0);
        assert_eq!(dialogue.hear(&preface, &[7]), Err(BadReply { number: 3, byte: 1, got: 7 }));
        assert!(Dialogue::default().hear(&preface, &[5, 0, 5]).is_err());
    }

    #[test]
    fn target_is_an_address_and_a_door() {
        let target = |text: &str| text.parse::<Target>();
        let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
        assert_eq!(target("127.0.0.1:80"), Ok(address.into()));
        let preface = Preface::socks5("10.0.0.5:81".parse().unwrap());
        assert_eq!(target("127.0.0.1:80,socks5=10.0.0.5:81"), Ok(Target { address, preface }));
        let preface = Preface::tls(&"a.b".parse().unwrap());
        assert_eq!(target("127.0.0.1:80,tls=A.b"), Ok(Target { address, preface }));
        for (bad, part) in [
            ("127.0.0.1", "'127.0.0.1'"),
            ("127.0.0.1:80,socks5=host:80", "'host:80'"),
            ("127.0.0.1:80,tls=*.b", "'*.b'"),
            ("127.0.0.1:80,http=a", "'http'"),
        ] {
            assert!(target(bad).unwrap_err().contains(part), "{bad}");
        }
    }
}

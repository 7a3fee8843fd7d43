//! Holding a relayed address, without I/O: what to send when, and what an answer means.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::bail;

use super::message::{
    ALLOCATE, BINDING, CHANNEL_BIND, CHANNEL_NUMBER, CHANNELS, CREATE_PERMISSION, DATA, ERROR, INDICATION, LIFETIME,
    PAYLOAD, PEER_ADDRESS, REFRESH, RELAYED_ADDRESS, REQUEST, REQUESTED_TRANSPORT, Reader, SEND, SUCCESS, Writer,
};

/// Time until an unanswered request is repeated.
const RETRY: Duration = Duration::from_millis(500);

/// A permission lasts five minutes, the rest longer (RFC 8656, section 9).
const REFRESH_EVERY: Duration = Duration::from_secs(240);

/// Time between sends that keep the NAT's binding, whose shortest common life is 30 seconds.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Seconds that are asked for; a server gives what it likes, and ten minutes at least.
const LIFETIME_S: u32 = 3600;

/// UDP's number, in the first byte.
const UDP: [u8; 4] = [17, 0, 0, 0];

/// One allocation, and a channel for each address that the visitor's machine sends from.
pub(super) struct Session {
    visitor: IpAddr,
    relayed: Option<SocketAddr>,
    permitted: bool,
    channels: HashMap<SocketAddr, Channel>,
    transactions: u64,
    next: Instant,
    refresh: Instant,
}

struct Channel {
    number: u16,
    asked: Instant,
}

impl Session {
    pub(super) fn new(visitor: IpAddr, now: Instant) -> Self {
        Self {
            visitor,
            relayed: None,
            permitted: false,
            channels: HashMap::new(),
            transactions: 0,
            next: now,
            refresh: now,
        }
    }

    /// The relayed address, once visitors may use it.
    pub(super) fn ready(&self) -> Option<SocketAddr> {
        self.relayed.filter(|_| self.permitted)
    }

    /// When [`Session::due`] is due.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Adds requests whose time has come.
    pub(super) fn due(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        if now < self.next {
            return;
        }
        self.next = now + RETRY;
        match (self.relayed, self.permitted) {
            (None, _) => {
                let message = Writer::new(ALLOCATE, REQUEST, self.transaction());
                let message = message.attribute(REQUESTED_TRANSPORT, &UDP);
                out.push(message.attribute(LIFETIME, &LIFETIME_S.to_be_bytes()).finish());
            }
            (Some(_), false) => out.push(self.permission()),
            (Some(_), true) if now < self.refresh => {
                self.next = now + KEEPALIVE;
                out.push(Writer::new(BINDING, INDICATION, self.transaction()).finish());
            }
            (Some(_), true) => {
                self.next = now + KEEPALIVE;
                self.refresh = now + REFRESH_EVERY;
                out.push(self.permission());
                let message = Writer::new(REFRESH, REQUEST, self.transaction());
                out.push(message.attribute(LIFETIME, &LIFETIME_S.to_be_bytes()).finish());
                let bound: Vec<(SocketAddr, u16)> = self.channels.iter().map(|(peer, c)| (*peer, c.number)).collect();
                out.extend(bound.into_iter().map(|(peer, number)| self.bind(peer, number)));
            }
        }
    }

    /// Takes a message of the server; answers are added to `out`.
    ///
    /// # Errors
    /// The server refuses the allocation or the permission, or ends it.
    pub(super) fn receive(&mut self, datagram: &[u8], now: Instant, out: &mut Vec<Vec<u8>>) -> anyhow::Result<()> {
        let Some(message) = Reader::new(datagram) else { return Ok(()) };
        match (message.method, message.class) {
            (ALLOCATE, SUCCESS) if self.relayed.is_none() => {
                self.relayed = message.address(RELAYED_ADDRESS);
                self.next = now;
            }
            (CREATE_PERMISSION, SUCCESS) if !self.permitted => {
                self.permitted = true;
                self.next = now + KEEPALIVE;
                self.refresh = now + REFRESH_EVERY;
            }
            (ALLOCATE | CREATE_PERMISSION | REFRESH, ERROR) => bail!("the TURN server refuses: {}", message.error()),
            (DATA, INDICATION) => {
                if let (Some(peer), Some(payload)) = (message.address(PEER_ADDRESS), message.attribute(PAYLOAD)) {
                    let echo = Writer::new(SEND, INDICATION, self.transaction());
                    out.push(echo.address(PEER_ADDRESS, peer).attribute(PAYLOAD, payload).finish());
                    self.want_channel(peer, now, out);
                }
            }
            // A channel that is refused leaves its visitor to indications, as one that is not asked for yet.
            _ => {}
        }
        Ok(())
    }

    /// Asks for a channel for a visitor that still comes by indications, as long as there are numbers.
    fn want_channel(&mut self, peer: SocketAddr, now: Instant, out: &mut Vec<Vec<u8>>) {
        let free = CHANNELS.start + self.channels.len() as u16;
        let number = match self.channels.get_mut(&peer) {
            Some(channel) if now < channel.asked + RETRY => return,
            Some(channel) => {
                channel.asked = now;
                channel.number
            }
            None if CHANNELS.contains(&free) => {
                self.channels.insert(peer, Channel { number: free, asked: now });
                free
            }
            None => return,
        };
        out.push(self.bind(peer, number));
    }

    fn bind(&mut self, peer: SocketAddr, number: u16) -> Vec<u8> {
        let [high, low] = number.to_be_bytes();
        let message = Writer::new(CHANNEL_BIND, REQUEST, self.transaction());
        message.attribute(CHANNEL_NUMBER, &[high, low, 0, 0]).address(PEER_ADDRESS, peer).finish()
    }

    fn permission(&mut self) -> Vec<u8> {
        let message = Writer::new(CREATE_PERMISSION, REQUEST, self.transaction());
        message.address(PEER_ADDRESS, (self.visitor, 0).into()).finish()
    }

    /// Counted, not random: nobody else is on this path, and answers are told apart by their method.
    fn transaction(&mut self) -> [u8; 12] {
        self.transactions += 1;
        let mut transaction = [0; 12];
        transaction[4..].copy_from_slice(&self.transactions.to_be_bytes());
        transaction
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::ERROR_CODE;
    use super::*;

    fn visitor(port: u16) -> SocketAddr {
        (IpAddr::from([198, 51, 100, 2]), port).into()
    }

    fn answer(request: &[u8], class: u16, relayed: Option<SocketAddr>) -> Vec<u8> {
        let request = Reader::new(request).unwrap();
        let answer = Writer::new(request.method, class, request.transaction);
        match relayed {
            Some(address) => answer.address(RELAYED_ADDRESS, address).finish(),
            None => answer.finish(),
        }
    }

    fn due(session: &mut Session, now: Instant) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        session.due(now, &mut out);
        out
    }

    fn receive(session: &mut Session, datagram: &[u8], now: Instant) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        session.receive(datagram, now, &mut out).unwrap();
        out
    }

    fn kinds(messages: &[Vec<u8>]) -> Vec<u16> {
        messages.iter().map(|message| Reader::new(message).unwrap().method).collect()
    }

    fn ready() -> (Session, Instant) {
        let now = Instant::now();
        let mut session = Session::new(visitor(0).ip(), now);
        let request = due(&mut session, now);
        assert_eq!(kinds(&request), [ALLOCATE]);
        assert!(due(&mut session, now).is_empty());
        assert_eq!(kinds(&due(&mut session, now + RETRY)), [ALLOCATE]);
        let relayed = "198.51.100.1:50000".parse().ok();
        receive(&mut session, &answer(&request[0], SUCCESS, relayed), now);
        assert_eq!(session.ready(), None);
        let request = due(&mut session, now);
        assert_eq!(kinds(&request), [CREATE_PERMISSION]);
        receive(&mut session, &answer(&request[0], SUCCESS, None), now);
        assert_eq!(session.ready(), relayed);
        (session, now)
    }

    #[test]
    fn address_is_ready_when_allocated_and_permitted_and_is_kept() {
        let (mut session, now) = ready();
        assert!(due(&mut session, now + RETRY).is_empty());
        assert_eq!(kinds(&due(&mut session, now + KEEPALIVE)), [BINDING]);
        assert!(due(&mut session, now + KEEPALIVE).is_empty());
        assert_eq!(kinds(&due(&mut session, now + REFRESH_EVERY)), [CREATE_PERMISSION, REFRESH]);
    }

    #[test]
    fn visitor_is_answered_at_once_and_gets_a_channel_as_long_as_there_are_numbers() {
        let (mut session, now) = ready();
        let data = |port| {
            let data = Writer::new(DATA, INDICATION, [7; 12]).address(PEER_ADDRESS, visitor(port));
            data.attribute(PAYLOAD, b"hello").finish()
        };
        let out = receive(&mut session, &data(1), now);
        assert_eq!(kinds(&out), [SEND, CHANNEL_BIND]);
        let echo = Reader::new(&out[0]).unwrap();
        assert_eq!((echo.address(PEER_ADDRESS), echo.attribute(PAYLOAD)), (Some(visitor(1)), Some(&b"hello"[..])));
        assert_eq!(Reader::new(&out[1]).unwrap().attribute(CHANNEL_NUMBER), Some(&[0x40, 0, 0, 0][..]));
        assert_eq!(kinds(&receive(&mut session, &data(1), now)), [SEND]);
        assert_eq!(kinds(&receive(&mut session, &data(1), now + RETRY)), [SEND, CHANNEL_BIND]);
        for port in 2..=CHANNELS.len() as u16 {
            assert_eq!(kinds(&receive(&mut session, &data(port), now)), [SEND, CHANNEL_BIND]);
        }
        assert_eq!(kinds(&receive(&mut session, &data(CHANNELS.len() as u16 + 1), now)), [SEND]);
    }

    #[test]
    fn refusal_ends_it_with_the_servers_reason() {
        let now = Instant::now();
        let mut session = Session::new(visitor(0).ip(), now);
        let refusal = Writer::new(ALLOCATE, ERROR, [0; 12]).attribute(ERROR_CODE, b"\0\0\x04\x01Unauthorized").finish();
        let error = session.receive(&refusal, now, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().ends_with("401 Unauthorized"), "{error}");
    }
}

//! Guests: one engine with both ends of a link, a guest at its one end and a host behind the other.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use isthmus_engine::{
    Ask, Caller, Control, Engine, EngineConfig, Event, GUEST_BYTES_MAX, GUEST_REPLIES_MAX, Key, What,
};
use isthmus_proto::Code;
use isthmus_proto::link::{LinkConfig, Maintain, Side, Slot, UNSPECIFIED};
use isthmus_proto::wire::{Frame, OpenFlags, RequestKind};
use isthmus_ring::{Family, Ring, RingConfig, Socket};

/// A hang is a failure; nothing here takes nearly as long.
const HANG: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(600);
const TAG: u32 = 7;

#[derive(Default)]
struct Party {
    /// The relay's end and the mediator's.
    relay: Option<Key>,
    mediator: Option<Key>,
    accepted: Option<(Socket, SocketAddr)>,
    bytes: Vec<u8>,
    ended: bool,
    gone: Option<Code>,
    answered: Option<(Slot, Code)>,
    connecting: Option<u16>,
    /// Consume whatever comes at once.
    consume: bool,
    stream_ended: Option<(u32, Code)>,
    /// Something happened, here or in another thread: the test looks before the loop sleeps.
    news: Arc<AtomicBool>,
}

impl Control for Party {
    fn on_event(&mut self, engine: &mut Engine, event: Event<'_>) {
        self.news.store(true, Ordering::SeqCst);
        let config = |side| LinkConfig { side, ports_max: 16, maintain: Maintain::Relay { silence: LONG } };
        match event {
            Event::Accepted { socket, peer, .. } => self.accepted = Some((socket, peer)),
            Event::LinkReady { link } => engine.greet(link, &Frame::Hello { version: 1, json: b"{}" }),
            Event::Greeting { link, frame: Frame::Hello { .. } } => {
                engine.greet(link, &Frame::Welcome { version: 1, json: b"{}" });
                engine.establish(link, config(Side::Requester));
                self.relay = Some(link);
            }
            Event::Greeting { link, .. } => {
                engine.establish(link, config(Side::Responder));
                self.mediator = Some(link);
            }
            Event::Request { link, slot, ask: Ask::Connect { to, .. }, request, .. } => {
                self.connecting = Some(request);
                engine.connect_stream(Socket::tcp(Family::from(to)).unwrap(), to, link, slot, 0);
            }
            Event::Request { link, slot, ask, request, .. } => {
                if let Some(machine) = engine.link(link) {
                    machine.answer(slot, ask.kind(), request, Code::Ok, None);
                }
            }
            Event::Connected { link, slot, result, .. } => {
                let code = if result.is_ok() { Code::Ok } else { Code::Refused };
                if let Some(machine) = engine.link(link) {
                    machine.answer(slot, RequestKind::Connect, self.connecting.take().unwrap(), code, None);
                }
                engine.touch(link);
            }
            Event::Answered { slot, owner, code, .. } => {
                assert_eq!(owner.what(), What::Guest);
                self.answered = Some((slot, code));
            }
            Event::GuestBytes { guest, tag, ended } => {
                assert_eq!(tag, TAG);
                self.bytes = engine.guest_bytes(guest).to_vec();
                self.ended = ended;
                if self.consume {
                    engine.consume_guest(guest, self.bytes.len());
                }
            }
            Event::GuestEnded { tag, code, .. } => {
                assert_eq!(tag, TAG);
                self.gone = Some(code);
            }
            Event::StreamEnded { tag, code, .. } if tag == TAG => self.stream_ended = Some((tag, code)),
            _ => {}
        }
    }

    fn on_turn(&mut self, _: &mut Engine) {}

    fn has_work(&self) -> bool {
        self.news.load(Ordering::SeqCst)
    }
}

struct World {
    engine: Engine,
    party: Party,
    /// The guest's other end, and its key.
    client: TcpStream,
    guest: Key,
}

fn world(timeout: Duration) -> World {
    let ring = Ring::new(RingConfig::small()).unwrap();
    let mut engine = Engine::new(ring, EngineConfig::default());
    let (client, socket) = pair();
    let guest = engine.add_guest(socket, TAG, timeout);
    World { engine, party: Party::default(), client, guest }
}

fn pair() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(HANG)).unwrap();
    let (socket, _) = listener.accept().unwrap();
    (client, Socket::from(OwnedFd::from(socket)))
}

impl World {
    fn until(&mut self, mut done: impl FnMut(&Party, &Engine) -> bool) {
        let deadline = Instant::now() + HANG;
        loop {
            // What comes after this look is news again.
            self.party.news.store(false, Ordering::SeqCst);
            if done(&self.party, &self.engine) {
                return;
            }
            assert!(Instant::now() < deadline, "nothing happened for {HANG:?}");
            self.engine.turn(&mut self.party).unwrap();
        }
    }

    /// Makes the link, and a port on it that the guest owns and that connects to a new host.
    fn port(&mut self) -> (Key, Slot, TcpStream) {
        let listener = Socket::tcp_listener("127.0.0.1:0".parse().unwrap(), false, 16).unwrap();
        let to = listener.local_addr().unwrap();
        self.engine.add_listener(listener, 0);
        self.engine.dial_link(Socket::tcp(Family::from(to)).unwrap(), to, Caller::Plaintext);
        self.until(|party, _| party.accepted.is_some());
        let (socket, peer) = self.party.accepted.take().unwrap();
        let key = self.engine.accept_link(socket, peer, None);
        self.until(|party, _| party.relay.is_some() && party.mediator.is_some());
        assert_eq!(key.what(), What::Link);
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let now = self.engine.now();
        let machine = self.engine.link(key).unwrap();
        let flags = OpenFlags(OpenFlags::QUIET);
        let slot = machine.open(self.guest.to_bits(), 0, flags, UNSPECIFIED, None, now).unwrap();
        machine.connect(slot, 0, host.local_addr().unwrap(), 0);
        self.engine.touch(key);
        self.until(|party, _| party.answered.is_some());
        assert_eq!(self.party.answered, Some((slot, Code::Ok)));
        let (host, _) = host.accept().unwrap();
        host.set_read_timeout(Some(HANG)).unwrap();
        (key, slot, host)
    }

    /// Turns the loop until another thread has done its work.
    fn while_working<T: Send + 'static>(&mut self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (waker, news) = (self.engine.ring().waker(), self.party.news.clone());
        let (sender, result) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // A test that failed meanwhile has nobody left to listen.
            let _ = sender.send(work());
            news.store(true, Ordering::SeqCst);
            waker.wake();
        });
        let mut taken = None;
        self.until(|_, _| {
            taken = result.try_recv().ok();
            taken.is_some()
        });
        taken.unwrap()
    }

    fn read_exactly(&mut self, mut from: TcpStream, count: usize) -> (TcpStream, Vec<u8>) {
        self.while_working(move || {
            let mut bytes = vec![0; count];
            from.read_exact(&mut bytes).unwrap();
            (from, bytes)
        })
    }

    fn read_to_end(&mut self, mut from: TcpStream) -> std::io::Result<Vec<u8>> {
        self.while_working(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).map(|_| bytes)
        })
    }

    fn client(&self) -> TcpStream {
        self.client.try_clone().unwrap()
    }
}

#[test]
fn an_admitted_guest_is_its_ports_stream_both_ways() {
    let mut w = world(LONG);
    w.client.write_all(b"greeting|first").unwrap();
    w.until(|party, _| party.bytes.len() == 14);
    assert!(w.engine.reply_guest(w.guest, b"reply|"));
    let (link, slot, mut host) = w.port();
    assert!(w.engine.admit(w.guest, link, slot, TAG, 9, b"ahead|").is_some());
    assert!(w.engine.admit(w.guest, link, slot, TAG, 9, b"ahead|").is_none());
    let (mut host_again, bytes) = {
        host.write_all(b"banner").unwrap();
        w.read_exactly(host, 11)
    };
    assert_eq!(bytes, b"ahead|first");
    let (_, bytes) = w.read_exactly(w.client(), 12);
    assert_eq!(bytes, b"reply|banner");

    // Far beyond any window: credit is right from the start.
    let big: Vec<u8> = (0..9_000_000u32).map(|n| n as u8).collect();
    let (mut client, expected) = (w.client(), big.clone());
    let sender = std::thread::spawn(move || client.write_all(&big).unwrap());
    let (host_back, bytes) = w.read_exactly(host_again, expected.len());
    assert!(bytes == expected);
    sender.join().unwrap();
    host_again = host_back;
    let again = expected.clone();
    let sender = std::thread::spawn(move || {
        host_again.write_all(&again).unwrap();
        host_again
    });
    let (_, bytes) = w.read_exactly(w.client(), expected.len());
    assert!(bytes == expected);
    let host = sender.join().unwrap();

    w.client.shutdown(std::net::Shutdown::Write).unwrap();
    let waited = host.try_clone().unwrap();
    assert_eq!(w.read_to_end(waited).unwrap(), b"");
    drop(host);
    assert_eq!(w.read_to_end(w.client()).unwrap(), b"");
    w.until(|party, _| party.stream_ended.is_some());
    assert_eq!(w.party.stream_ended, Some((TAG, Code::Closed)));
    assert_eq!((w.engine.guests(), w.engine.sizes().1), (0, 0));
}

#[test]
fn a_guest_that_has_ended_its_side_is_half_closed_as_a_stream() {
    let mut w = world(LONG);
    w.client.write_all(b"all").unwrap();
    w.client.shutdown(std::net::Shutdown::Write).unwrap();
    w.until(|party, _| party.ended);
    assert_eq!(w.party.bytes, b"all");
    let (link, slot, mut host) = w.port();
    w.engine.admit(w.guest, link, slot, TAG, 0, b"").unwrap();
    let waited = host.try_clone().unwrap();
    assert_eq!(w.read_to_end(waited).unwrap(), b"all");
    host.write_all(b"late answer").unwrap();
    drop(host);
    assert_eq!(w.read_to_end(w.client()).unwrap(), b"late answer");
}

#[test]
fn receiving_pauses_at_the_bound_and_goes_on_after_consuming() {
    let mut w = world(LONG);
    let sent: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let (mut client, copy) = (w.client(), sent.clone());
    let sender = std::thread::spawn(move || client.write_all(&copy).unwrap());
    w.until(|party, _| party.bytes.len() >= GUEST_BYTES_MAX);
    assert!(w.party.bytes.len() < GUEST_BYTES_MAX + 4096);
    assert_eq!(w.party.bytes, sent[..w.party.bytes.len()]);
    let mut seen = w.party.bytes.len();
    w.party.consume = true;
    w.engine.consume_guest(w.guest, seen);
    while seen < sent.len() {
        w.party.bytes.clear();
        w.until(|party, _| !party.bytes.is_empty());
        assert_eq!(w.party.bytes, sent[seen..seen + w.party.bytes.len()]);
        seen += w.party.bytes.len();
    }
    sender.join().unwrap();
}

#[test]
fn a_dismissed_guest_reads_the_last_reply_whatever_it_has_sent() {
    let mut w = world(LONG);
    w.client.write_all(&[1; 3000]).unwrap();
    w.until(|party, _| !party.bytes.is_empty());
    w.client.write_all(&[2; 100_000]).unwrap();
    w.engine.dismiss(w.guest, b"not today", false);
    w.client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(w.read_to_end(w.client()).unwrap(), b"not today");
    w.until(|_, engine| engine.guests() == 0);
    assert_eq!(w.party.gone, None);
}

#[test]
fn a_guest_may_be_reset() {
    let mut w = world(LONG);
    w.engine.dismiss(w.guest, b"unsent", true);
    assert_eq!(w.read_to_end(w.client()).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(w.engine.guests(), 0);
}

#[test]
fn a_silent_guest_is_closed_in_time() {
    let mut w = world(Duration::from_millis(20));
    w.until(|party, _| party.gone.is_some());
    assert_eq!((w.party.gone, w.engine.guests()), (Some(Code::TimedOut), 0));
    assert_eq!(w.read_to_end(w.client()).unwrap(), b"");
}

#[test]
fn a_guest_that_does_not_read_makes_no_more_than_the_bound_wait() {
    let mut w = world(LONG);
    // The first is in flight at once.
    assert!(w.engine.reply_guest(w.guest, &[1; GUEST_REPLIES_MAX]));
    assert!(w.engine.reply_guest(w.guest, &[2; GUEST_REPLIES_MAX]));
    assert!(!w.engine.reply_guest(w.guest, &[3]));
    let (_, bytes) = w.read_exactly(w.client(), 2 * GUEST_REPLIES_MAX);
    assert!(bytes.chunks(GUEST_REPLIES_MAX).map(|half| half[0]).eq([1, 2]));
    assert!(w.engine.reply_guest(w.guest, &[3]));
}

#[test]
fn a_reset_guest_is_told() {
    let mut w = world(LONG);
    w.client.write_all(b"x").unwrap();
    w.until(|party, _| !party.bytes.is_empty());
    // The unread reply makes the close a reset.
    assert!(w.engine.reply_guest(w.guest, b"unread"));
    let mut first = w.client();
    w.while_working(move || first.peek(&mut [0; 1]).and_then(|_| first.flush()).unwrap());
    drop(std::mem::replace(&mut w.client, pair().0));
    w.until(|party, _| party.gone.is_some());
    assert_eq!((w.party.gone, w.engine.guests()), (Some(Code::Reset), 0));
}

#[test]
fn guests_that_leave_are_bounded_and_one_more_is_reset() {
    let ring = Ring::new(RingConfig::small()).unwrap();
    let mut engine = Engine::new(ring, EngineConfig { leaving_max: 1, ..EngineConfig::default() });
    let (client, socket) = pair();
    let guest = engine.add_guest(socket, TAG, LONG);
    let mut w = World { engine, party: Party::default(), client, guest };
    let (second, socket) = pair();
    let one_more = w.engine.add_guest(socket, TAG, LONG);
    w.engine.dismiss(w.guest, b"no", false);
    w.engine.dismiss(one_more, b"no", false);
    assert_eq!(w.engine.counts.guests_cut, 1);
    assert_eq!(w.read_to_end(second).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let first = w.client();
    assert_eq!(w.read_to_end(first).unwrap(), b"no");
    // Once the first is gone there is room again.
    w.client.shutdown(std::net::Shutdown::Write).unwrap();
    w.until(|_, engine| engine.guests() == 0);
    let (third, socket) = pair();
    let guest = w.engine.add_guest(socket, TAG, LONG);
    w.engine.dismiss(guest, b"no", false);
    assert_eq!(w.read_to_end(third).unwrap(), b"no");
    assert_eq!(w.engine.counts.guests_cut, 1);
}

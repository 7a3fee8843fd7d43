//! A link's last word: it goes out behind a send in flight, in a bounded time. The other end is a plain socket that speaks
//! plaintext records.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use isthmus_engine::{Control, Engine, EngineConfig, Event, Key};
use isthmus_proto::Code;
use isthmus_proto::link::{LinkConfig, Maintain, Side};
use isthmus_proto::wire::{ControlBuf, Frame, HEADER_LEN, read_header};
use isthmus_ring::{Ring, RingConfig, Socket};

/// A hang is a failure; nothing here takes nearly as long.
const HANG: Duration = Duration::from_secs(20);
/// A record's header in plaintext mode.
const RECORD: usize = 5;

#[derive(Default)]
struct Party {
    link: Option<Key>,
    ended: Vec<Code>,
    /// Turns to be made before the loop may sleep.
    hurry: bool,
}

impl Control for Party {
    fn on_event(&mut self, engine: &mut Engine, event: Event<'_>) {
        match event {
            Event::Greeting { link, .. } => {
                let maintain = Maintain::Relay { silence: Duration::from_secs(600) };
                engine.establish(link, LinkConfig { side: Side::Requester, ports_max: 16, maintain });
                self.link = Some(link);
            }
            Event::LinkEnded { code, .. } => self.ended.push(code),
            _ => {}
        }
    }

    fn on_turn(&mut self, _: &mut Engine) {}

    fn has_work(&self) -> bool {
        self.hurry
    }
}

/// A link whose other end does not read, with a send in flight.
fn stalled() -> (Engine, Party, Key, TcpStream) {
    let mut engine = Engine::new(Ring::new(RingConfig::small()).unwrap(), EngineConfig::default());
    let mut party = Party { hurry: true, ..Party::default() };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(HANG)).unwrap();
    let (socket, peer) = listener.accept().unwrap();
    engine.accept_link(Socket::from(OwnedFd::from(socket)), peer, None);
    client.write_all(&record(&Frame::Hello { version: 1, json: b"{}" })).unwrap();
    let start = Instant::now();
    while party.link.is_none() {
        assert!(start.elapsed() < HANG, "no greeting");
        engine.turn(&mut party).unwrap();
    }
    let link = party.link.unwrap();
    // More than the sockets' buffers take: what the link queues then stays queued.
    let text = "x".repeat(16_000);
    loop {
        for _ in 0..16 {
            engine.link(link).unwrap().control().push(&Frame::Report { json: text.as_bytes() });
        }
        engine.touch(link);
        let before = Instant::now();
        while before.elapsed() < Duration::from_millis(50) {
            engine.turn(&mut party).unwrap();
        }
        if !engine.link(link).unwrap().control().is_empty() {
            return (engine, party, link, client);
        }
        assert!(start.elapsed() < HANG, "the sockets take everything");
    }
}

fn record(frame: &Frame<'_>) -> Vec<u8> {
    let mut frames = ControlBuf::new();
    frames.push(frame);
    let frames = frames.take(usize::MAX);
    let [high, low] = (frames.len() as u16).to_be_bytes();
    [&[0x50, 3, 3, high, low], frames].concat()
}

/// The code of the last frame, if that is a farewell.
fn last_word(bytes: &[u8]) -> Option<Code> {
    let (mut bytes, mut frames) = (bytes, Vec::new());
    while let Some((head, rest)) = bytes.split_first_chunk::<RECORD>() {
        let Some((content, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes([head[3], head[4]]))) else {
            break;
        };
        frames.extend_from_slice(content);
        bytes = rest;
    }
    let (mut rest, mut word) = (frames.as_slice(), None);
    while !rest.is_empty() {
        let header = read_header(rest).unwrap();
        let (frame, behind) = rest.split_at(HEADER_LEN + usize::from(header.len));
        word = match Frame::decode(header, &frame[HEADER_LEN..]).unwrap() {
            Frame::Goodbye { code, .. } => code,
            _ => None,
        };
        rest = behind;
    }
    word
}

#[test]
fn farewell_follows_the_send_in_flight() {
    let (mut engine, mut party, link, mut client) = stalled();
    engine.farewell(link, Code::Killed, 0, "ended");
    engine.end_link_after_farewell(&mut party, link, Code::Killed);
    // For everybody here it has ended.
    assert_eq!((party.ended.as_slice(), engine.partings()), ([Code::Killed].as_slice(), 1));
    assert!(engine.link(link).is_none());
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // The end may be a reset, since what we sent last was not read: it comes behind the farewell.
        let _ = client.read_to_end(&mut bytes);
        bytes
    });
    let start = Instant::now();
    while engine.partings() > 0 {
        assert!(start.elapsed() < HANG, "it stays");
        engine.turn(&mut party).unwrap();
    }
    engine.turn(&mut party).unwrap();
    assert_eq!(last_word(&reader.join().unwrap()), Some(Code::Killed));
    assert_eq!((party.ended.len(), engine.counts.farewells_cut), (1, 0));
}

#[test]
fn farewell_that_nobody_reads_is_given_up_and_counted() {
    let (mut engine, mut party, link, _client) = stalled();
    engine.farewell(link, Code::Killed, 0, "ended");
    engine.end_link_after_farewell(&mut party, link, Code::Killed);
    party.hurry = false;
    let start = Instant::now();
    while engine.partings() > 0 {
        assert!(start.elapsed() < HANG, "it stays");
        engine.turn(&mut party).unwrap();
    }
    assert_eq!((party.ended.len(), engine.sizes().0, engine.counts.farewells_cut), (1, 0, 1));
}

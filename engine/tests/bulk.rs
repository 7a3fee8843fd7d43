//! Bulk: many streams at once through one link, both ends of which are one engine's; and what it does to a stream beside it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use isthmus_engine::{Ask, Caller, Control, Engine, EngineConfig, Event, Key};
use isthmus_proto::Code;
use isthmus_proto::limits::FRAME_PAYLOAD_MAX;
use isthmus_proto::link::{LinkConfig, Maintain, Side, Slot, UNSPECIFIED};
use isthmus_proto::wire::{Frame, OpenFlags, RequestKind};
use isthmus_ring::{Family, PoolConfig, Ring, RingConfig, Socket};

/// A hang is a failure; nothing here takes nearly as long.
const HANG: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);
const STREAMS: usize = 12;
/// Of each stream: several times the largest window, and no whole number of anything.
const BYTES: usize = 7_000_123;

#[derive(Default)]
struct Party {
    relay: Option<Key>,
    mediator: Option<Key>,
    accepted: Option<(Socket, SocketAddr)>,
    connecting: HashMap<Key, u16>,
    connected: usize,
    ended: usize,
    links_ended: Vec<Code>,
    /// Streams may end with their link.
    leaving: bool,
    /// Something happened: the test looks before the loop sleeps.
    news: bool,
}

impl Control for Party {
    fn on_event(&mut self, engine: &mut Engine, event: Event<'_>) {
        self.news = true;
        let config = |side| LinkConfig { side, ports_max: 64, maintain: Maintain::Relay { silence: LONG } };
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
                let stream = engine.connect_stream(Socket::tcp(Family::from(to)).unwrap(), to, link, slot, 0);
                self.connecting.insert(stream, request);
            }
            Event::Request { link, slot, ask, request, .. } => {
                engine.link(link).unwrap().answer(slot, ask.kind(), request, Code::Ok, None);
            }
            Event::Connected { stream, link, slot, result } => {
                result.unwrap();
                self.connected += 1;
                let request = self.connecting.remove(&stream).unwrap();
                engine.link(link).unwrap().answer(slot, RequestKind::Connect, request, Code::Ok, None);
                engine.touch(link);
            }
            Event::LinkEnded { code, .. } => self.links_ended.push(code),
            Event::StreamEnded { code, .. } => {
                assert!(code == Code::Closed || self.leaving, "{code:?}");
                self.ended += 1;
            }
            _ => {}
        }
    }

    fn on_turn(&mut self, _: &mut Engine) {}

    fn has_work(&self) -> bool {
        self.news
    }
}

fn until(engine: &mut Engine, party: &mut Party, mut done: impl FnMut(&Party) -> bool) {
    let deadline = Instant::now() + HANG;
    while !done(party) {
        party.news = false;
        assert!(Instant::now() < deadline, "it takes longer than {HANG:?}");
        engine.turn(party).unwrap();
    }
}

fn pair() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    (client, Socket::from(OwnedFd::from(socket)))
}

/// The byte at a place of a stream: unlike its neighbours', and unlike other streams'.
fn byte(stream: usize, at: usize) -> u8 {
    (at / 7 + at / 65_536 + stream * 31) as u8
}

/// How long a visitor does not read: without sleeping, tens of thousands of turns.
const LATE: Duration = Duration::from_millis(500);

/// Over a slow path.
const SLOW_BYTES: usize = 1_000_003;

/// Of a link's sockets: the default is of that order.
const SEND_BUFFER: usize = 128 * 1024;

/// An engine with both ends of a link; the caller dials what `via` makes of the listener's address.
fn linked(via: impl FnOnce(SocketAddr) -> SocketAddr) -> (Engine, Party, Key) {
    let (mut engine, mut party) = alone(RingConfig::small());
    let link = link_up(&mut engine, &mut party, via);
    (engine, party, link)
}

fn alone(ring: RingConfig) -> (Engine, Party) {
    (Engine::new(Ring::new(ring).unwrap(), EngineConfig::default()), Party::default())
}

/// Both ends of a link; which is the relay's.
fn link_up(engine: &mut Engine, party: &mut Party, via: impl FnOnce(SocketAddr) -> SocketAddr) -> Key {
    (party.relay, party.mediator) = (None, None);
    let listener = Socket::tcp_listener("127.0.0.1:0".parse().unwrap(), false, 16).unwrap();
    listener.set_buffers(None, Some(SEND_BUFFER)).unwrap();
    let to = via(listener.local_addr().unwrap());
    engine.add_listener(listener, 0);
    engine.dial_link(Socket::tcp(Family::from(to)).unwrap(), to, Caller::Plaintext);
    until(engine, party, |party| party.accepted.is_some());
    let (socket, peer) = party.accepted.take().unwrap();
    let link = engine.accept_link(socket, peer, None);
    until(engine, party, |party| party.relay.is_some() && party.mediator.is_some());
    link
}

/// A visitor whose connection goes through a port of the link to `host`.
fn visitor(engine: &mut Engine, link: Key, host: SocketAddr) -> (TcpStream, Slot) {
    let (client, socket) = pair();
    let now = engine.now();
    let machine = engine.link(link).unwrap();
    let slot = machine.open(0, 0, OpenFlags(OpenFlags::QUIET), UNSPECIFIED, None, now).unwrap();
    machine.connect(slot, 0, host, 0);
    engine.add_stream(socket, link, slot, 0);
    engine.touch(link);
    (client, slot)
}

#[test]
fn many_bulk_streams_arrive_whole_in_full_frames_and_make_no_turn_short() {
    let (mut engine, mut party, link) = linked(|listener| listener);
    let threads: Vec<[JoinHandle<()>; 2]> = (0..STREAMS)
        .map(|number| {
            let host = TcpListener::bind("127.0.0.1:0").unwrap();
            let (mut client, _) = visitor(&mut engine, link, host.local_addr().unwrap());
            let sender = std::thread::spawn(move || {
                let bytes: Vec<u8> = (0..BYTES).map(|at| byte(number, at)).collect();
                client.write_all(&bytes).unwrap();
                client.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            });
            let receiver = std::thread::spawn(move || {
                let mut received = Vec::new();
                host.accept().unwrap().0.read_to_end(&mut received).unwrap();
                assert_eq!(received.len(), BYTES);
                assert!(received.iter().enumerate().all(|(at, &got)| got == byte(number, at)));
            });
            [sender, receiver]
        })
        .collect();
    until(&mut engine, &mut party, |party| party.ended == 2 * STREAMS);
    for thread in threads.into_iter().flatten() {
        thread.join().unwrap();
    }
    assert_eq!(engine.sizes().1, 0);
    let counts = &engine.counts;
    assert_eq!(counts.stream_bytes_in, (STREAMS * BYTES) as u64);
    assert_eq!(counts.turns_short, 0, "bulk is taken for small messages");
    let full = (STREAMS * BYTES / FRAME_PAYLOAD_MAX) as u64;
    assert!(counts.records_opened < full * 5 / 4, "{} records where {full} would do", counts.records_opened);
}

/// What a visitor's download costs in turns who says that its request is whole, or does not, and reads late.
fn turns_of_download(ends_request: bool) -> u64 {
    let (mut engine, mut party, link) = linked(|listener| listener);
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut client, _) = visitor(&mut engine, link, host.local_addr().unwrap());
    let sender = std::thread::spawn(move || {
        let (mut host, _) = host.accept().unwrap();
        host.read_exact(&mut [0; 7]).unwrap();
        host.write_all(&(0..4 * BYTES).map(|at| byte(2, at)).collect::<Vec<_>>()).unwrap();
    });
    let receiver = std::thread::spawn(move || {
        client.write_all(b"request").unwrap();
        if ends_request {
            client.shutdown(std::net::Shutdown::Write).unwrap();
        }
        std::thread::sleep(LATE);
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received.len() == 4 * BYTES && received.iter().enumerate().all(|(at, &got)| got == byte(2, at)));
    });
    until(&mut engine, &mut party, |party| party.ended == 2);
    sender.join().unwrap();
    receiver.join().unwrap();
    engine.counts.turns
}

#[test]
fn visitor_who_sends_no_more_and_does_not_read_is_waited_for_as_any_other() {
    let [open, ended] = [false, true].map(turns_of_download);
    assert!(ended < 4 * open + 1000, "{ended} turns instead of {open}");
}

/// A path to `to`, on which each 4 KiB from there take so long, and nothing comes any more once `open` is no longer true.
fn gated_path(to: SocketAddr, each: Duration, open: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut near, far) = (listener.accept().unwrap().0, TcpStream::connect(to).unwrap());
        let (mut from, mut sent) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut sent));
        let (mut far, mut bytes) = (far, [0; 4096]);
        while open.load(Ordering::SeqCst)
            && let Ok(length @ 1..) = far.read(&mut bytes)
        {
            // The end of a link is the end of its path.
            if near.write_all(&bytes[..length]).is_err() {
                return;
            }
            std::thread::sleep(each);
        }
        if open.load(Ordering::SeqCst) {
            let _ = near.shutdown(std::net::Shutdown::Both);
            return;
        }
        // Held open, unread.
        std::thread::sleep(HANG);
        drop((near, far));
    });
    addr
}

/// Bulk of many visitors, which no longer leaves the link once `open` is not true: until its queue is full.
fn stall(
    engine: &mut Engine,
    party: &mut Party,
    link: Key,
    host: SocketAddr,
    open: &AtomicBool,
) -> (Vec<TcpStream>, Vec<Slot>) {
    let before = party.connected;
    let (mut bulk, slots): (Vec<_>, Vec<_>) = (0..2 * STREAMS).map(|_| visitor(engine, link, host)).unzip();
    until(engine, party, |party| party.connected == before + 2 * STREAMS);
    open.store(false, Ordering::SeqCst);
    // As much as each may send at first; a socket that is not read takes it.
    for client in &mut bulk {
        client.set_nonblocking(true).unwrap();
        let _ = client.write(&[0; 65_536]).unwrap();
    }
    let deadline = Instant::now() + HANG;
    while !engine.link(link).unwrap().is_congested() {
        assert!(Instant::now() < deadline, "the sockets take all of it");
        engine.turn(party).unwrap();
    }
    (bulk, slots)
}

#[test]
fn bulk_goes_on_beside_a_link_that_holds_as_many_blocks_as_are_lent() {
    let small = RingConfig::small();
    // What a shard has that shares its core with others.
    let stream = PoolConfig { provided_usual: 16, provided_max: 16, ..small.stream };
    let (mut engine, mut party) = alone(RingConfig { stream, ..small });
    let open = Arc::new(AtomicBool::new(true));
    let stalled = link_up(&mut engine, &mut party, |listener| gated_path(listener, Duration::ZERO, open.clone()));
    let link = link_up(&mut engine, &mut party, |listener| listener);
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let _bulk = stall(&mut engine, &mut party, stalled, host.local_addr().unwrap(), &open);
    assert!(engine.ring().pool_stats()[0].held >= 16);
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut client, _) = visitor(&mut engine, link, host.local_addr().unwrap());
    let sender = std::thread::spawn(move || {
        client.write_all(&vec![1; BYTES]).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    });
    let receiver = std::thread::spawn(move || host.accept().unwrap().0.read_to_end(&mut Vec::new()).unwrap());
    until(&mut engine, &mut party, |party| party.ended == 2);
    sender.join().unwrap();
    assert_eq!(receiver.join().unwrap(), BYTES);
}

#[test]
fn small_messages_are_taken_though_the_bulk_of_others_fills_the_links_queue() {
    let open = Arc::new(AtomicBool::new(true));
    let (mut engine, mut party, link) = linked(|listener| gated_path(listener, Duration::ZERO, open.clone()));
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut messages, slot) = visitor(&mut engine, link, host.local_addr().unwrap());
    until(&mut engine, &mut party, |party| party.connected == 1);
    let (_bulk, mut slots) = stall(&mut engine, &mut party, link, host.local_addr().unwrap(), &open);
    slots.retain(|&slot| engine.link(link).unwrap().room(slot) > 0);
    assert!(!slots.is_empty(), "there is bulk that has to wait");
    for number in 1..=5 {
        let room = engine.link(link).unwrap().room(slot);
        messages.write_all(b"message!").unwrap();
        let deadline = Instant::now() + HANG;
        while engine.link(link).unwrap().room(slot) >= room {
            assert!(Instant::now() < deadline, "message {number} waits for the bulk");
            engine.turn(&mut party).unwrap();
        }
    }
    assert!(engine.link(link).unwrap().is_congested());
}

#[test]
fn over_a_slow_path_all_arrives_and_a_link_that_waits_for_room_ends() {
    let each = Duration::from_millis(2);
    let open = Arc::new(AtomicBool::new(true));
    let (mut engine, mut party, link) = linked(|listener| gated_path(listener, each, open));
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut client, _) = visitor(&mut engine, link, host.local_addr().unwrap());
    let sender = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..SLOW_BYTES).map(|at| byte(1, at)).collect();
        client.write_all(&bytes).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    });
    let again = host.try_clone().unwrap();
    let receiver = std::thread::spawn(move || {
        let mut received = Vec::new();
        host.accept().unwrap().0.read_to_end(&mut received).unwrap();
        assert!(received.len() == SLOW_BYTES && received.iter().enumerate().all(|(at, &got)| got == byte(1, at)));
    });
    until(&mut engine, &mut party, |party| party.ended == 2);
    sender.join().unwrap();
    receiver.join().unwrap();

    let (mut client, _) = visitor(&mut engine, link, again.local_addr().unwrap());
    let before = engine.counts.stream_bytes_out;
    let sender = std::thread::spawn(move || while client.write_all(&[0; 65_536]).is_ok() {});
    let receiver = std::thread::spawn(move || std::io::copy(&mut again.accept().unwrap().0, &mut std::io::sink()));
    let deadline = Instant::now() + HANG;
    while engine.counts.stream_bytes_out < before + SLOW_BYTES as u64 / 4 {
        assert!(Instant::now() < deadline);
        engine.turn(&mut party).unwrap();
    }
    party.leaving = true;
    engine.end_link_after_farewell(&mut party, link, Code::Draining);
    until(&mut engine, &mut party, |party| party.links_ended.len() == 2);
    // What is on its way when the socket closes may be lost to credit that comes back for it: then the far end hears of a
    // lost connection.
    assert_eq!(party.links_ended[0], Code::Draining);
    assert_eq!((engine.counts.farewells_cut, engine.partings()), (0, 0));
    // What it closes, it closes with its next turn, or its end.
    drop(engine);
    sender.join().unwrap();
    drop(receiver.join().unwrap());
}

//! Connecting a stream's socket to its host, and first bytes with it.

use std::io;
use std::net::SocketAddr;

use isthmus_proto::link::Slot;
use isthmus_ring::{OpId, Piece, Socket};

use super::Stream;
use crate::Engine;
use crate::event::{Control, Event};
use crate::key::Key;
use crate::link_transmit::ECANCELED;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connecting {
    /// At the turn's end, with what is there to be sent by then.
    Due(SocketAddr),
    /// It was due, and is not to be begun any more.
    GivenUp,
    Begun(OpId),
    Done,
}

/// Most first bytes that go with a connect. A host that does not answer holds them until the connect is given up: so they are
/// in memory of their own.
const FIRST_BYTES_MAX: usize = 4096;

impl Engine {
    /// Joins a socket that is to be connected to a port; [`Event::Connected`] tells the result. Bytes
    /// may come for it at once.
    pub fn connect_stream(&mut self, socket: Socket, to: SocketAddr, link: Key, slot: Slot, tag: u32) -> Key {
        let key = self.insert_stream(socket, link, slot, tag);
        if let Some(link) = self.link(link) {
            link.set_owner(slot, key.to_bits());
        }
        if let Some(stream) = self.streams.get_mut(key) {
            stream.connecting = Connecting::Due(to);
        }
        self.touch_stream(key);
        key
    }

    /// Gives up a connect that takes too long: [`Event::Connected`] will tell. One that succeeds in the same moment does.
    pub fn cancel_connect(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        match stream.connecting {
            Connecting::Begun(op) => self.ring.cancel(op),
            Connecting::Due(_) => {
                stream.connecting = Connecting::GivenUp;
                self.touch_stream(key);
            }
            Connecting::GivenUp | Connecting::Done => {}
        }
    }

    /// Gives up a connect that must not be any more: nothing is sent from now on. [`Event::Connected`] will tell, with an error
    /// or, where it succeeded in the same moment, without one.
    pub fn forbid_connect(&mut self, key: Key) {
        self.cancel_connect(key);
        if let Some(stream) = self.streams.get(key)
            && let Connecting::Begun(_) = stream.connecting
        {
            // First bytes that follow by themselves find no way any more. It fails where nothing is under way.
            let _ = stream.socket.shutdown_both();
        }
    }

    /// Begins what is due; what is there already to be sent goes out as soon as that succeeds.
    pub(super) fn begin_connect(&mut self, control: &mut impl Control, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        let to = match stream.connecting {
            Connecting::Due(to) => to,
            Connecting::GivenUp => {
                let given_up = io::Error::from_raw_os_error(ECANCELED);
                return self.on_stream_connected(control, key, Err(given_up));
            }
            Connecting::Begun(_) | Connecting::Done => return,
        };
        let op = if stream.queue.is_empty() || stream.queued > FIRST_BYTES_MAX {
            self.ring.connect(&stream.socket, to, key.to_bits())
        } else {
            for piece in stream.queue.iter_mut().filter(|piece| piece.is_pooled()) {
                self.counts.stalled_bytes_compacted += piece.len() as u64;
                *piece = Piece::copy_from(piece, 0, 0);
            }
            let batch = stream.batch(&self.ring);
            let (connect, send) = self.ring.connect_and_send(&stream.socket, to, batch, key.to_bits());
            stream.send_op = Some(send);
            stream.linked = true;
            connect
        };
        stream.connecting = Connecting::Begun(op);
    }

    pub(crate) fn on_stream_connected(&mut self, control: &mut impl Control, key: Key, result: io::Result<()>) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.connecting = Connecting::Done;
        // First bytes are on their way to the host.
        self.connected |= result.is_ok() && stream.linked;
        let (link, slot) = (stream.link, stream.slot);
        let failed = result.is_err();
        if failed && let Some(stream) = self.streams.remove(key) {
            self.release(key, stream);
        }
        control.on_event(self, Event::Connected { stream: key, link, slot, result });
        if !failed {
            self.receive_stream(key);
            self.touch_stream(key);
        }
    }

    /// Ends what is under way on the socket of a stream that was removed, and closes it.
    pub(super) fn release(&mut self, key: Key, stream: Stream) {
        self.queued -= stream.queued;
        let send = stream.send_op.filter(|_| !stream.linked);
        for op in [stream.armed(), send, stream.stalled, stream.connect_op()].into_iter().flatten() {
            self.ring.cancel(op);
        }
        if let Some(timer) = stream.watch {
            self.timers.remove(timer);
        }
        if stream.linked {
            self.linked.insert(key, stream.socket);
        } else {
            self.ring.close(stream.socket);
        }
    }

    /// The linked send of a stream that was removed has ended. Before, its socket's number must not become another's.
    pub(super) fn close_linked(&mut self, key: Key) {
        if let Some(socket) = self.linked.remove(&key) {
            self.ring.close(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use isthmus_proto::Code;
    use isthmus_ring::{Family, Ring, RingConfig};

    use super::*;
    use crate::EngineConfig;

    /// What was told.
    #[derive(Default)]
    struct Told {
        connected: Vec<(Key, bool)>,
        ended: Vec<Key>,
        /// Cuts a stream whose connect succeeded.
        cuts: bool,
    }

    impl Control for Told {
        fn on_event(&mut self, engine: &mut Engine, event: Event<'_>) {
            match event {
                Event::Connected { stream, result, .. } => {
                    self.connected.push((stream, result.is_ok()));
                    if self.cuts {
                        engine.cut_stream(self, stream, Code::Denied);
                    }
                }
                Event::StreamEnded { stream, .. } => self.ended.push(stream),
                _ => {}
            }
        }

        fn on_turn(&mut self, _: &mut Engine) {}

        fn has_work(&self) -> bool {
            // Turns do not sleep.
            true
        }
    }

    struct World {
        engine: Engine,
        told: Told,
        host: TcpListener,
    }

    fn world() -> World {
        let engine = Engine::new(Ring::new(RingConfig::small()).unwrap(), EngineConfig::default());
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        World { engine, told: Told::default(), host }
    }

    impl World {
        /// A stream that is to be connected, with these bytes for the host.
        fn connect(&mut self, first: &[u8]) -> Key {
            let to = self.host.local_addr().unwrap();
            let socket = Socket::tcp(Family::from(to)).unwrap();
            let key = self.engine.connect_stream(socket, to, Key::control(0), Slot::NONE, 0);
            for part in first.chunks(1500) {
                self.engine.write_stream(key, Piece::copy_from(part, 0, 0));
            }
            key
        }

        fn turns(&mut self, count: usize) {
            for _ in 0..count {
                self.engine.turn(&mut self.told).unwrap();
            }
        }

        /// What the host is sent until the end of the connection, or its reset.
        fn heard(&self) -> Vec<u8> {
            let (mut connection, _) = self.host.accept().unwrap();
            let mut heard = Vec::new();
            let _ = connection.read_to_end(&mut heard);
            heard
        }

        fn is_at_rest(&self) {
            assert_eq!((self.engine.queued, self.engine.linked.len(), self.engine.streams.len()), (0, 0, 0));
            // The wake-up is one of the ring's own.
            assert_eq!(self.engine.ring.in_flight(), 1);
        }
    }

    #[test]
    fn first_bytes_reach_the_host_in_the_turn_of_the_connect_and_few_are_linked() {
        for (length, linked) in [(1, true), (FIRST_BYTES_MAX, true), (FIRST_BYTES_MAX + 1, false), (0, false)] {
            let mut w = world();
            let first: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let key = w.connect(&first);
            w.engine.flush(&mut w.told);
            assert_eq!(w.engine.streams.get(key).unwrap().linked, linked, "{length}");
            w.turns(4);
            assert_eq!(w.told.connected, [(key, true)]);
            w.engine.finish_stream(&mut w.told, key);
            w.turns(2);
            assert_eq!(w.heard(), first);
            // Without a link nothing is received.
            w.engine.drop_stream(&mut w.told, key, Code::Closed);
            w.turns(2);
            assert_eq!(w.told.ended, [key]);
            w.is_at_rest();
        }
    }

    #[test]
    fn connect_that_is_given_up_before_it_began_leaves_nothing_behind() {
        for forbid in [false, true] {
            let mut w = world();
            let key = w.connect(b"never sent");
            if forbid {
                w.engine.forbid_connect(key);
            } else {
                w.engine.cancel_connect(key);
            }
            w.turns(3);
            assert_eq!(w.told.connected, [(key, false)]);
            w.is_at_rest();
            w.host.set_nonblocking(true).unwrap();
            assert!(w.host.accept().is_err(), "it was begun all the same");
        }
    }

    #[test]
    fn forbidden_connect_sends_nothing_though_it_has_begun() {
        let mut w = world();
        let key = w.connect(b"secret");
        w.told.cuts = true;
        // Pushed, and given up before the kernel sees it.
        w.engine.flush(&mut w.told);
        w.engine.forbid_connect(key);
        w.turns(6);
        assert!(!w.engine.streams.keys().any(|stream| stream == key));
        assert_eq!(w.told.connected.len(), 1);
        w.is_at_rest();
        w.host.set_nonblocking(true).unwrap();
        if let Ok((mut connection, _)) = w.host.accept() {
            connection.set_nonblocking(false).unwrap();
            let mut heard = Vec::new();
            let _ = connection.read_to_end(&mut heard);
            assert!(heard.is_empty(), "{heard:?}");
        }
    }

    #[test]
    fn stream_that_is_cut_as_its_connect_succeeds_sends_nothing() {
        for _ in 0..20 {
            let mut w = world();
            w.told.cuts = true;
            let key = w.connect(b"secret");
            w.turns(6);
            assert_eq!((&w.told.connected[..], &w.told.ended[..]), (&[(key, true)][..], &[key][..]));
            w.is_at_rest();
            assert_eq!(w.heard(), b"");
        }
    }

    /// The number of a stream's socket, which is removed with its first bytes under way, is not given to another connection
    /// before these have gone, or not.
    #[test]
    fn first_bytes_of_a_removed_stream_reach_nobody_else() {
        for round in 0..200 {
            let mut w = world();
            let visitors = Socket::tcp_listener("127.0.0.1:0".parse().unwrap(), false, 16).unwrap();
            let to = visitors.local_addr().unwrap();
            let listener = w.engine.add_listener(visitors, 7);
            w.turns(1);
            let key = w.connect(b"for the host alone");
            w.engine.flush(&mut w.told);
            // In the same submission or in a later one.
            w.turns(round % 4);
            w.engine.drop_stream(&mut w.told, key, Code::Closed);
            // Accepted connections take the lowest number that is free; the control drops them.
            let others: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(to).unwrap()).collect();
            w.turns(6);
            assert!(w.told.ended == [key], "{:?}", w.told.ended);
            for mut other in others {
                let mut heard = Vec::new();
                let _ = other.read_to_end(&mut heard);
                assert!(heard.is_empty(), "round {round}: {heard:?}");
            }
            w.engine.remove_listener(listener);
            w.turns(4);
            w.is_at_rest();
        }
    }

    #[test]
    fn refused_connect_with_first_bytes_is_told_once() {
        let mut w = world();
        let to = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let socket = Socket::tcp(Family::from(to)).unwrap();
        let key = w.engine.connect_stream(socket, to, Key::control(0), Slot::NONE, 0);
        w.engine.write_stream(key, Piece::copy_from(b"lost", 0, 0));
        w.turns(5);
        assert_eq!((&w.told.connected[..], &w.told.ended[..]), (&[(key, false)][..], &[][..]));
        w.is_at_rest();
    }
}

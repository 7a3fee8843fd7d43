//! TCP: a connection's first byte says what it wants, or the one after a ClientHello (`opening`).
//!
//! A ring accepts, and serves all that echoes by itself, so that thousands of short connections a second cost little. Bulk
//! connections get a thread each with blocking calls, which is as fast as it gets with blocks of that size.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use isthmus_ring::{BATCH_PIECES_MAX, Completion, Piece, PoolConfig, Ring, RingConfig, SendMode, Socket};
use slab::Slab;

use super::opening::Opening;

/// First byte of a connection whose bytes shall be read and forgotten.
pub const SINK: u8 = b'U';

/// First byte of a connection that shall be written to without end.
pub const SOURCE: u8 = b'D';

/// First byte of a connection whose bytes come back until its end.
pub const ECHO: u8 = b'E';

/// First byte of a connection that echoes [`ONCE_BYTES`] and is then ended by this side, so that it is the visitor's side
/// where no port number stays taken afterwards (TIME_WAIT is where the first FIN came from).
pub const ONCE: u8 = b'O';

/// What [`ONCE`] echoes.
pub const ONCE_BYTES: usize = 64;

/// Bytes of one read or write of bulk.
pub const BLOCK: usize = 256 * 1024;

/// Most bulk connections at once, a thread each; more are closed.
const BULK_MAX: usize = 1024;

/// Most echoing connections at once; more are closed.
const ECHO_MAX: usize = 16_384;

const BACKLOG: u32 = 4096;

/// The listener's number among the ring's operations; connections' are their places in the table.
const LISTENER: u64 = u64::MAX;

/// How long to wait where no descriptor is left, or no buffer.
const STARVED: Duration = Duration::from_millis(5);

/// Listens, and serves from threads of its own. Returns the real address.
///
/// # Errors
/// The number is taken, no thread can be made, or there is no io_uring.
pub fn spawn(listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener =
        Socket::tcp_listener(listen, false, BACKLOG).with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    let (tell, told) = std::sync::mpsc::channel();
    thread::Builder::new().name("streams".into()).spawn(move || {
        let ring = match ring() {
            Ok(ring) => ring,
            // The other end waits for it.
            Err(error) => return drop(tell.send(Err(error))),
        };
        let _ = tell.send(Ok(()));
        let server =
            Server { ring, listener, accepting: false, again: Vec::new(), streams: Slab::new(), bulk: Arc::default() };
        if let Err(error) = server.serve() {
            tracing::error!(%error, "no stream is served any more: the ring failed");
        }
    })?;
    told.recv().context("the server's thread ended at once")??;
    Ok(address)
}

/// A ring for many small streams.
pub(crate) fn ring() -> anyhow::Result<Ring> {
    let stream = PoolConfig { prefault: 0, provided_usual: 256, provided_max: 256, ..PoolConfig::STREAM };
    Ok(Ring::new(RingConfig { sq_entries: 4096, cq_entries: 16_384, stream, ..RingConfig::small() })?)
}

struct Server {
    ring: Ring,
    listener: Socket,
    accepting: bool,
    /// Connections whose receive found no buffer.
    again: Vec<usize>,
    streams: Slab<Stream>,
    /// Bulk connections that live.
    bulk: Arc<AtomicUsize>,
}

struct Stream {
    socket: Socket,
    wish: Wish,
    receiving: bool,
    sending: bool,
    /// Received, to be sent when the send in flight is done.
    waiting: VecDeque<Piece>,
    /// No more comes, or the connection failed.
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Unknown(Opening),
    Echo,
    /// With what is still to be echoed.
    Once(usize),
}

impl Server {
    fn serve(mut self) -> anyhow::Result<()> {
        let mut received = Vec::new();
        loop {
            let starved = !self.again.is_empty();
            for index in std::mem::take(&mut self.again) {
                self.receive(index);
            }
            if !self.accepting {
                self.ring.accept(&self.listener, LISTENER);
                self.accepting = true;
            }
            self.ring.enter(Some(if starved { STARVED } else { Duration::from_secs(1) }), || false)?;
            while let Some(completion) = self.ring.next(&mut received) {
                match completion {
                    Completion::Accept { result, more, .. } => {
                        self.accepting = more;
                        match result {
                            Ok((socket, _)) => self.on_accept(socket),
                            // One connection's, gone before it was accepted, or a lack of descriptors that its end mends.
                            Err(_) if more => {}
                            Err(_) => thread::sleep(STARVED),
                        }
                    }
                    Completion::Recv { user, result, .. } => self.on_received(user as usize, result, &mut received),
                    Completion::Send { user, batch, result } => {
                        let whole = result.is_ok_and(|sent| sent == batch.bytes());
                        self.on_sent(user as usize, whole);
                    }
                    _ => {}
                }
            }
        }
    }

    fn on_accept(&mut self, socket: Socket) {
        // An error here shows at the first use.
        let _ = socket.set_nodelay();
        if self.streams.len() < ECHO_MAX {
            let (wish, waiting) = (Wish::Unknown(Opening::default()), VecDeque::new());
            let stream = Stream { socket, wish, receiving: false, sending: false, waiting, ended: false };
            let index = self.streams.insert(stream);
            self.receive(index);
        }
    }

    fn receive(&mut self, index: usize) {
        if let Some(stream) = self.streams.get_mut(index) {
            self.ring.recv_stream(&stream.socket, 0, false, index as u64);
            stream.receiving = true;
        }
    }

    fn on_received(&mut self, index: usize, result: io::Result<usize>, received: &mut Vec<Piece>) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        stream.receiving = false;
        match result {
            Ok(0) => stream.ended = true,
            Ok(_) => {}
            Err(error) if no_buffers(&error) => return self.again.push(index),
            Err(_) => {
                stream.waiting.clear();
                stream.ended = true;
            }
        }
        if let Wish::Unknown(opening) = &mut stream.wish
            && let Some(wish) = opening.take_from(received)
        {
            stream.wish = match wish {
                ECHO => Wish::Echo,
                ONCE => Wish::Once(ONCE_BYTES),
                wish => return self.hand_over(index, wish),
            };
        }
        for mut piece in received.drain(..) {
            if let Wish::Once(left) = &mut stream.wish {
                piece.truncate(*left);
                *left -= piece.len();
            }
            stream.waiting.extend((!piece.is_empty()).then_some(piece));
        }
        self.go_on(index);
    }

    fn on_sent(&mut self, index: usize, whole: bool) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        stream.sending = false;
        if !whole {
            stream.waiting.clear();
            stream.ended = true;
            // Ends the receive; an error means that the connection is gone, which ends it too.
            let _ = stream.socket.shutdown_both();
        }
        self.go_on(index);
    }

    /// Sends what waits, receives while little waits, and ends what is done.
    fn go_on(&mut self, index: usize) {
        let Some(stream) = self.streams.get_mut(index) else { return };
        if !stream.sending && !stream.waiting.is_empty() {
            let mut batch = self.ring.send_batch();
            let count = stream.waiting.len().min(BATCH_PIECES_MAX);
            stream.waiting.drain(..count).for_each(|piece| batch.push(piece));
            self.ring.send(&stream.socket, batch, SendMode::WaitAll, index as u64);
            stream.sending = true;
        }
        let stream = &self.streams[index];
        let done = stream.ended || stream.wish == Wish::Once(0);
        if done && !stream.sending && stream.waiting.is_empty() && !stream.receiving {
            let stream = self.streams.remove(index);
            return self.ring.close(stream.socket);
        }
        if !done && !stream.receiving && stream.waiting.len() < BATCH_PIECES_MAX {
            self.receive(index);
        }
    }

    /// Bulk: what came with the wish is part of it and of no interest.
    fn hand_over(&mut self, index: usize, wish: u8) {
        let socket = self.streams.remove(index).socket;
        let live = self.bulk.clone();
        if live.fetch_add(1, Ordering::Relaxed) >= BULK_MAX {
            live.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let served = thread::Builder::new().name("stream".into()).stack_size(64 * 1024).spawn(move || {
            let socket = TcpStream::from(OwnedFd::from(socket));
            // The other end closes when it has enough.
            let _ = bulk(&socket, wish);
            live.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = served {
            tracing::warn!(%error, "connection refused: no thread for it");
        }
    }
}

/// An empty pool: nothing is lost, the socket is asked again later.
pub(crate) fn no_buffers(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

fn bulk(mut socket: &TcpStream, wish: u8) -> io::Result<()> {
    let mut block = vec![0x5a; BLOCK];
    match wish {
        SOURCE => loop {
            socket.write_all(&block)?;
        },
        _ => while socket.read(&mut block)? > 0 {},
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use super::*;

    fn connect(wish: u8) -> TcpStream {
        let to = spawn("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut socket = TcpStream::connect(to).unwrap();
        socket.write_all(&[wish]).unwrap();
        socket
    }

    #[test]
    fn echo_gives_every_byte_back_until_the_end() {
        let socket = connect(ECHO);
        let bytes: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                (&socket).write_all(&bytes).unwrap();
                socket.shutdown(Shutdown::Write).unwrap();
            });
            let mut back = Vec::new();
            (&socket).read_to_end(&mut back).unwrap();
            assert!(back == bytes, "{} bytes came back", back.len());
        });
    }

    #[test]
    fn once_echoes_its_bytes_in_parts_and_ends_first() {
        let mut socket = connect(ONCE);
        let mut back = [0; ONCE_BYTES];
        socket.write_all(&[1; 10]).unwrap();
        socket.read_exact(&mut back[..10]).unwrap();
        socket.write_all(&[2; ONCE_BYTES - 10]).unwrap();
        socket.read_exact(&mut back[10..]).unwrap();
        assert!(back.starts_with(&[1; 10]) && back.ends_with(&[2; ONCE_BYTES - 10]));
        assert_eq!(socket.read(&mut back).unwrap(), 0);
    }

    #[test]
    fn source_gives_without_end_and_sink_ends_with_its_peer() {
        let mut block = vec![0; 3 * BLOCK];
        connect(SOURCE).read_exact(&mut block).unwrap();
        let mut socket = connect(SINK);
        socket.write_all(&block).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        assert_eq!(socket.read(&mut block).unwrap(), 0);
    }
}

//! Many streams at once, random bytes both ways, every byte compared; some of them stop reading for a while, and must
//! not stop the others.
//!
//! A stream begins with 16 bytes: seed and length (big-endian). Then each side sends `length` bytes of the noise of its
//! seed (the server's is the complement of the client's), and ends.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use isthmus_e2e::noise;

use crate::ends::{accept_each, connect};
use crate::{Outcome, during};

/// Bytes of noise that are made, sent and compared at a time.
const CHUNK: u64 = 64 * 1024;

#[derive(Args)]
pub(crate) struct Serve {
    /// Where to listen
    address: SocketAddr,
}

#[derive(Args)]
pub(crate) struct Call {
    /// The server
    address: SocketAddr,
    /// Streams at once
    #[arg(long, default_value_t = 64)]
    n: u64,
    /// Bytes of all streams together, in each direction: a number with K, M or G
    #[arg(long, default_value = "64M", value_parser = bytes)]
    bytes: u64,
    /// Streams of these that read nothing until all the others are done
    #[arg(long, default_value_t = 0)]
    stall: u64,
}

pub(crate) fn serve(args: &Serve) -> Outcome {
    accept_each(args.address, |mut stream| {
        let mut head = [0; 16];
        stream.read_exact(&mut head).map_err(during("receive the head"))?;
        let seed = u64::from_be_bytes(head[..8].try_into().unwrap_or_default());
        let len = u64::from_be_bytes(head[8..].try_into().unwrap_or_default());
        both_ways(&stream, !seed, seed, len, || {})
    })
}

pub(crate) fn call(args: &Call) -> Outcome {
    let started = Instant::now();
    let each = args.bytes / args.n.max(1);
    let gate = Gate::new(args.n.saturating_sub(args.stall));
    thread::scope(|scope| {
        let streams: Vec<_> = (0..args.n)
            .map(|index| {
                let gate = &gate;
                scope.spawn(move || {
                    let stalled = index < args.stall;
                    let outcome = one(args.address, index, each, || {
                        if stalled {
                            gate.wait()
                        }
                    });
                    if !stalled {
                        // Also after a failure: the stalled ones must not wait for ever for it.
                        gate.done();
                    }
                    outcome.map_err(|text| format!("stream {index}: {text}"))
                })
            })
            .collect();
        streams.into_iter().try_for_each(|stream| stream.join().map_err(|_| "a stream panicked")?)
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let gigabits = (2 * each * args.n * 8) as f64 / seconds / 1e9;
    println!("{} streams of {each} bytes each way, all as sent; {seconds:.3} s, {gigabits:.2} Gbit/s", args.n);
    Ok(())
}

fn one(address: SocketAddr, index: u64, len: u64, before_reading: impl FnOnce() + Send) -> Outcome {
    let mut stream = connect(address)?;
    let seed = index + 1;
    stream.write_all(&[seed.to_be_bytes(), len.to_be_bytes()].concat()).map_err(during("send the head"))?;
    both_ways(&stream, seed, !seed, len, before_reading)
}

fn both_ways(
    stream: &TcpStream,
    seed_sent: u64,
    seed_received: u64,
    len: u64,
    before_reading: impl FnOnce() + Send,
) -> Outcome {
    // A stalled peer reads nothing for as long as the others need: that is no failure of the one that sends.
    stream.set_write_timeout(Some(Duration::from_secs(300))).map_err(during("time limit"))?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, seed_sent, len));
        before_reading();
        let received = receive(stream, seed_received, len);
        sender.join().map_err(|_| "the sender panicked".to_owned())?.and(received)
    })
}

fn send(mut stream: &TcpStream, seed: u64, len: u64) -> Outcome {
    for (chunk_seed, size) in chunks(seed, len) {
        stream.write_all(&noise(chunk_seed, size)).map_err(during("send"))?;
    }
    stream.shutdown(Shutdown::Write).map_err(during("end"))
}

fn receive(mut stream: &TcpStream, seed: u64, len: u64) -> Outcome {
    let mut buffer = vec![0; CHUNK as usize];
    let mut offset = 0;
    for (chunk_seed, size) in chunks(seed, len) {
        stream
            .read_exact(&mut buffer[..size])
            .map_err(|error| format!("receive in the chunk at {offset} of {len}: {error}"))?;
        if buffer[..size] != noise(chunk_seed, size) {
            return Err(format!("other bytes than were sent, in the chunk at {offset}"));
        }
        offset += size;
    }
    match stream.read(&mut buffer).map_err(during("receive the end"))? {
        0 => Ok(()),
        surplus => Err(format!("{surplus} bytes after the last one")),
    }
}

fn chunks(seed: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..len.div_ceil(CHUNK)).map(move |index| {
        let size = CHUNK.min(len - index * CHUNK) as usize;
        (seed.rotate_left(32) ^ index, size)
    })
}

/// Opens when so many are done.
struct Gate {
    left: Mutex<u64>,
    open: Condvar,
}

impl Gate {
    fn new(left: u64) -> Self {
        Self { left: Mutex::new(left), open: Condvar::new() }
    }

    fn done(&self) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.open.notify_all();
    }

    fn wait(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        while *left > 0 {
            left = self.open.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number, with K, M or G behind it if you like".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is too much".to_owned())
}

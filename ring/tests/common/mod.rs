//! What the tests share: a bounded loop, connected sockets, a seeded generator.
#![allow(dead_code, unreachable_pub)]

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use isthmus_ring::{Completion, Piece, PoolConfig, Ring, RingConfig, Socket};

/// A hang is a failure; nothing here takes nearly as long.
const HANG: Duration = Duration::from_secs(20);

/// Turns of the loop until `take` has an answer.
pub fn run<T>(ring: &mut Ring, mut take: impl FnMut(&mut Ring, Completion, &mut Vec<Piece>) -> Option<T>) -> T {
    let deadline = Instant::now() + HANG;
    let mut received = Vec::new();
    loop {
        while let Some(completion) = ring.next(&mut received) {
            if let Some(answer) = take(ring, completion, &mut received) {
                return answer;
            }
        }
        assert!(Instant::now() < deadline, "no answer for {HANG:?}");
        ring.enter(Some(Duration::from_secs(1)), || false).unwrap();
    }
}

/// The next receive's result and bytes, and whether more waits.
pub fn take_recv(ring: &mut Ring, wanted: u64) -> (std::io::Result<usize>, Vec<Piece>) {
    run(ring, |_, completion, pieces| match completion {
        Completion::Recv { user, result, .. } if user == wanted => Some((result, std::mem::take(pieces))),
        _ => None,
    })
}

/// A ring with small stream blocks, so that few bytes make a bundle.
pub fn small_block_ring(payload: usize, provided_max: u16, blocks_max: usize) -> Ring {
    let provided_usual = provided_max;
    let stream =
        PoolConfig { headroom: 16, payload, tailroom: 8, provided_usual, provided_max, blocks_max, prefault: 0 };
    Ring::new(RingConfig { stream, ..RingConfig::small() }).unwrap()
}

/// Two ends of a loopback connection.
pub fn std_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

pub fn socket(stream: TcpStream) -> Socket {
    Socket::from(OwnedFd::from(stream))
}

/// The raw error number of a result.
pub fn errno<T>(result: &std::io::Result<T>) -> Option<i32> {
    result.as_ref().err().and_then(|e| e.raw_os_error())
}

pub fn bytes_of(pieces: &[Piece]) -> Vec<u8> {
    pieces.iter().flat_map(|p| p.to_vec()).collect()
}

/// A small generator: the same seed, the same numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

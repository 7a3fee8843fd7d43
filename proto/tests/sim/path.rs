//! What lies between the two ends: a byte stream, and a way for datagrams that loses, delays, doubles and damages.

use std::collections::{BTreeMap, VecDeque};

use crate::rng::Rng;

/// One direction of a TCP connection. Times are nanoseconds.
#[derive(Default)]
pub(crate) struct Pipe {
    chunks: VecDeque<(u64, Vec<u8>)>,
    in_flight: usize,
    is_cut: bool,
}

impl Pipe {
    /// Bytes that were written and are not read.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Writes bytes that arrive at `at`, or behind those before them.
    pub(crate) fn write(&mut self, bytes: Vec<u8>, at: u64) {
        self.in_flight += bytes.len();
        if !self.is_cut {
            let at = self.chunks.back().map_or(at, |&(last, _)| at.max(last));
            self.chunks.push_back((at, bytes));
        }
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.chunks.front().map(|&(at, _)| at)
    }

    /// Up to `most` bytes that have arrived.
    pub(crate) fn read(&mut self, now: u64, most: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < most
            && let Some((at, chunk)) = self.chunks.front_mut()
            && *at <= now
        {
            let n = chunk.len().min(most - out.len());
            out.extend(chunk.drain(..n));
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.in_flight -= out.len();
        out
    }

    /// Nothing gets through any more, but for a part of what is under way that ends at any byte.
    pub(crate) fn cut(&mut self, rng: &mut Rng) {
        self.is_cut = true;
        let mut left = rng.below(self.in_flight as u64 + 1) as usize;
        for (_, chunk) in &mut self.chunks {
            chunk.truncate(left);
            left -= chunk.len();
        }
        self.chunks.retain(|(_, chunk)| !chunk.is_empty());
    }
}

/// What happens to datagrams, in percent, and how long they take, in nanoseconds.
#[derive(Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) damaged: u64,
    pub(crate) delay: u64,
    pub(crate) jitter: u64,
}

/// A datagram, and whether it is as it was sent.
pub(crate) type Flown = (Vec<u8>, bool);

/// One direction of a UDP channel.
#[derive(Default)]
pub(crate) struct Air {
    flying: BTreeMap<(u64, u64), Flown>,
    count: u64,
    is_cut: bool,
}

impl Air {
    pub(crate) fn send(&mut self, bytes: &[u8], now: u64, weather: Weather, rng: &mut Rng) {
        if self.is_cut || rng.percent(weather.lost) {
            return;
        }
        for copy in 0..1 + u64::from(rng.percent(weather.doubled)) {
            let mut bytes = bytes.to_vec();
            let damaged = rng.percent(weather.damaged);
            if damaged {
                let place = rng.below(bytes.len() as u64) as usize;
                bytes[place] ^= 1 << rng.below(8);
            }
            self.count += 1;
            let at = now + weather.delay + rng.below(weather.jitter * (1 + copy) + 1);
            self.flying.insert((at, self.count), (bytes, !damaged));
        }
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.flying.first_key_value().map(|(&(at, _), _)| at)
    }

    pub(crate) fn receive(&mut self, now: u64) -> Option<Flown> {
        self.flying.first_entry().filter(|first| first.key().0 <= now).map(|first| first.remove())
    }

    pub(crate) fn cut(&mut self) {
        self.is_cut = true;
        self.flying.clear();
    }
}

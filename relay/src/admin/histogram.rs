//! How values are spread: fixed buckets that one shard alone writes and anybody reads without a lock.
//!
//! What is observed is rare or sampled, so it goes straight to the atomics, by a load and a store: nobody else adds.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a series' values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Kept in nanoseconds, shown in seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// Most bounds of one series.
pub const BOUNDS_MAX: usize = 16;

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
const S: u64 = 1_000 * MS;
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

macro_rules! series {
    ($($name:ident = $word:literal, $unit:ident, $bounds:expr, $help:literal;)*) => {
        /// Values whose spread is kept.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Series { $(#[doc = $help] $name,)* }

        impl Series {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// What it is.
            pub fn help(self) -> &'static str {
                match self { $(Self::$name => $help,)* }
            }

            /// Of what.
            pub fn unit(self) -> Unit {
                match self { $(Self::$name => Unit::$unit,)* }
            }

            /// The buckets' upper bounds, ascending; a value that is equal to one is in it.
            pub fn bounds(self) -> &'static [u64] {
                match self { $(Self::$name => const {
                    let bounds: &'static [u64] = &$bounds;
                    assert!(bounds.len() <= BOUNDS_MAX);
                    bounds
                },)* }
            }
        }
    };
}

series! {
    Connect = "connect_seconds", Seconds,
        [500 * US, MS, 2 * MS, 5 * MS, 10 * MS, 20 * MS, 50 * MS, 100 * MS, 200 * MS, 500 * MS, S, 2 * S, 5 * S, 10 * S],
        "From a visitor's request of a connection to the mediator's word that the host has taken it; every SOCKS5 and HTTP CONNECT client, and one in 16 of other visitors";
    RoundTrip = "maintain_round_trip_seconds", Seconds,
        [100 * US, 200 * US, 500 * US, MS, 2 * MS, 5 * MS, 10 * MS, 20 * MS, 50 * MS, 100 * MS, 200 * MS, 500 * MS, S, 2 * S, 5 * S],
        "Round trips of maintain packets on TCP channels of tunnels and terminals, which the relay sends while payload moves, twice a second at most";
    UdpPeriod = "udp_keepalive_period_seconds", Seconds,
        [S, 2 * S, 5 * S, 8 * S, 15 * S, 20 * S, 30 * S, 45 * S, 60 * S, 90 * S, 120 * S, 180 * S, 300 * S],
        "Times between maintain packets on UDP channels, each time that a mediator has learned that its gateway keeps a binding that long, or not so long";
    Queued = "queued_bytes", Bytes,
        [0, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB],
        "Bytes that wait in all queues of a shard, seen with one packet in 1024";
    InRelay = "packet_in_relay_seconds", Seconds,
        [5 * US, 10 * US, 20 * US, 50 * US, 100 * US, 200 * US, 500 * US, MS, 2 * MS, 5 * MS, 10 * MS, 50 * MS, 200 * MS, S],
        "From the turn of the loop that takes a packet from the kernel to the end of that turn, which gives it back; of one packet in 1024, without the time that a full queue holds it";
}

const COUNT: usize = Series::ALL.len();

/// A shard's series.
#[derive(Debug, Default)]
pub struct Histograms([Histogram; COUNT]);

#[derive(Debug, Default)]
struct Histogram {
    /// One bucket beyond the last bound.
    buckets: [AtomicU64; BOUNDS_MAX + 1],
    sum: AtomicU64,
}

/// What was read of a series, of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Values up to each bound, and all of them at the end.
    pub up_to: Vec<u64>,
    /// Their sum, in nanoseconds or bytes.
    pub sum: u64,
}

impl Histograms {
    /// Adds a value: nanoseconds or bytes. Only the shard that owns it may.
    pub fn observe(&self, series: Series, value: u64) {
        let Histogram { buckets, sum } = &self.0[series as usize];
        let bucket = &buckets[series.bounds().partition_point(|&bound| bound < value)];
        bucket.store(bucket.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        sum.store(sum.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
    }

    /// What is there now. The sum may be a value ahead of the buckets, or behind.
    pub fn read(&self, series: Series) -> Reading {
        let Histogram { buckets, sum } = &self.0[series as usize];
        let mut total = 0;
        let mut add = |bucket: &AtomicU64| {
            total += bucket.load(Ordering::Relaxed);
            total
        };
        let up_to = buckets[..=series.bounds().len()].iter().map(&mut add).collect();
        Reading { up_to, sum: sum.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_in_the_bucket_whose_bound_it_reaches_and_in_all_above() {
        let histograms = Histograms::default();
        for value in [0, 4 * KIB, 4 * KIB + 1, u64::MAX / 4] {
            histograms.observe(Series::Queued, value);
        }
        let read = histograms.read(Series::Queued);
        assert_eq!(read.up_to, [1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4]);
        assert_eq!(read.sum, 8 * KIB + 1 + u64::MAX / 4);
        assert_eq!(histograms.read(Series::Connect).up_to.last(), Some(&0));
    }

    #[test]
    fn bounds_ascend_and_names_tell_the_unit() {
        for (n, &series) in Series::ALL.iter().enumerate() {
            assert_eq!(series as usize, n);
            assert!(series.bounds().is_sorted_by(|a, b| a < b), "{}", series.word());
            let unit = match series.unit() {
                Unit::Seconds => "_seconds",
                Unit::Bytes => "_bytes",
            };
            assert!(series.word().ends_with(unit), "{}", series.word());
        }
    }
}

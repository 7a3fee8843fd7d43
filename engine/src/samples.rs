//! Measurements that are too rare or too dear to count: the party takes them once a turn.

use std::time::Duration;

use crate::Engine;

/// Most of them that wait; what is more is left out, since others of its kind are there.
const SAMPLES_MAX: usize = 256;

/// One packet in so many, as a power of two.
const PACKETS_SHIFT: u32 = 10;

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// A maintain packet's way to the other end of a link and back.
    RoundTrip(Duration),
    /// The relay's end of a UDP channel: another longest silence between its caller's maintain packets, dead time included.
    ChannelSilence(Duration),
    /// With one packet in 1024: how long the turn took that moved it, and what waits in all queues at its end.
    Turn {
        /// From taking packets from the kernel to giving them back.
        spent: Duration,
        /// Bytes.
        queued: usize,
    },
}

#[derive(Default)]
pub(crate) struct Samples {
    list: Vec<Sample>,
    /// The packets that were counted when the last turn was sampled, in units of one sample.
    mark: u64,
}

impl Samples {
    pub(crate) fn push(&mut self, sample: Sample) {
        if self.list.len() < SAMPLES_MAX {
            self.list.push(sample);
        }
    }
}

impl Engine {
    /// What was measured since the last call, in order.
    pub fn take_samples(&mut self) -> impl Iterator<Item = Sample> + '_ {
        self.samples.list.drain(..)
    }

    /// At the end of a turn. The packets are counted in any case: one that is not sampled costs nothing, and a turn
    /// without a sample reads no clock.
    pub(crate) fn sample_turn(&mut self) {
        let counts = &self.counts;
        let packets = counts.records_opened + counts.records_sealed + counts.datagrams_in + counts.datagrams_out;
        let mark = packets >> PACKETS_SHIFT;
        if std::mem::replace(&mut self.samples.mark, mark) != mark {
            let spent = self.start.elapsed().saturating_sub(Duration::from_nanos(self.now.0));
            self.samples.push(Sample::Turn { spent, queued: self.queued });
        }
    }
}

//! What is measured rather than counted: see [`Series`].

use std::collections::HashMap;

use isthmus_engine::{Engine, Key, Sample};
use isthmus_proto::time::Instant;

use super::Shard;
use crate::admin::Series;

/// One visitor in so many has its mediator answer the connect. Others do not ask: an answer is a record for both ends.
const ANSWERED_EACH: u32 = 16;

/// Most connects that are timed at once; others are not.
const TIMED_MAX: usize = 1024;

/// Visitors' connects under way whose time is taken.
#[derive(Default)]
pub(super) struct Connects {
    visitors: u32,
    begun: HashMap<Key, Instant>,
}

impl Connects {
    /// Whether the next visitor's connect is to be answered.
    pub(super) fn is_timed(&mut self) -> bool {
        let timed = self.visitors.is_multiple_of(ANSWERED_EACH) && self.begun.len() < TIMED_MAX;
        self.visitors = self.visitors.wrapping_add(1);
        timed
    }

    pub(super) fn begin(&mut self, stream: Key, now: Instant) {
        self.begun.insert(stream, now);
    }

    /// It is over, or there is no answer to wait for any more.
    pub(super) fn end(&mut self, stream: Key) -> Option<Instant> {
        if self.begun.is_empty() { None } else { self.begun.remove(&stream) }
    }
}

impl Shard {
    /// A host has taken a connection that was asked for then.
    pub(super) fn observe_connect(&self, engine: &Engine, begun: Instant) {
        self.observe(Series::Connect, engine.now().since(begun).as_nanos());
    }

    /// Takes over what the engine has measured.
    pub(super) fn observe_samples(&self, engine: &mut Engine) {
        for sample in engine.take_samples() {
            match sample {
                Sample::RoundTrip(time) => self.observe(Series::RoundTrip, time.as_nanos()),
                Sample::ChannelSilence(silence) => {
                    let period = silence.saturating_sub(self.shared.config.dead_after);
                    self.observe(Series::UdpPeriod, period.as_nanos());
                }
                Sample::Turn { spent, queued } => {
                    self.observe(Series::InRelay, spent.as_nanos());
                    self.observe(Series::Queued, queued as u128);
                }
            }
        }
    }

    fn observe(&self, series: Series, value: u128) {
        self.seat.counters.histograms.observe(series, u64::try_from(value).unwrap_or(u64::MAX));
    }
}

//! What forged datagrams may cost.

use std::collections::VecDeque;
use std::time::Duration;

use isthmus_proto::time::Instant;

/// What datagrams cost that nobody has proved to have sent yet. Anybody can send them, under any channel's name.
#[derive(Default)]
pub(super) struct Doubts {
    /// When the second began of which `made` were made.
    since: Instant,
    made: u32,
    /// Resting channels whose key contexts were built for a forged datagram, the oldest first.
    built: VecDeque<u32>,
}

/// Keys of next epochs that a thread makes in a second where only a datagram's word tells that one has begun. Two
/// derivations each: all of them take a few milliseconds. Whoever really turns goes on sending, and gets in between.
const DOUBTFUL_EPOCHS_MAX: u32 = 256;

/// Resting channels that may keep what was built for a forged datagram, 1.5 KiB each, until their next maintain packet.
const DOUBTFUL_CONTEXTS_MAX: usize = 256;

impl Doubts {
    /// Whether one more epoch's keys may be made.
    pub(super) fn may_make(&mut self, now: Instant) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            (self.since, self.made) = (now, 0);
        }
        self.made += 1;
        self.made <= DOUBTFUL_EPOCHS_MAX
    }

    /// A resting channel built for nothing; gives the one that must give that back now.
    pub(super) fn built(&mut self, index: u32) -> Option<u32> {
        self.built.push_back(index);
        if self.built.len() > DOUBTFUL_CONTEXTS_MAX { self.built.pop_front() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant(1 + ms * 1_000_000)
    }

    #[test]
    fn doubtful_epochs_are_made_up_to_the_limit_in_each_second() {
        let mut doubts = Doubts::default();
        for start in [1000, 2000, 9000] {
            let made = (0..3 * DOUBTFUL_EPOCHS_MAX).filter(|n| doubts.may_make(at(start + u64::from(n % 999)))).count();
            assert_eq!(made, DOUBTFUL_EPOCHS_MAX as usize);
        }
    }

    #[test]
    fn contexts_built_for_nothing_are_kept_up_to_the_limit_and_the_oldest_goes_first() {
        let mut doubts = Doubts::default();
        let limit = DOUBTFUL_CONTEXTS_MAX as u32;
        assert!((0..limit).all(|index| doubts.built(index).is_none()));
        assert_eq!([doubts.built(limit), doubts.built(limit + 1)], [Some(0), Some(1)]);
    }
}

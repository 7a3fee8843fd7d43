//! How much a link's network takes at a time. What comes to be sent first waits for the send in flight, and for what the
//! kernel has not sent yet: on a slow path, where one large send lasts long, that would be most of its delay.

use std::time::Duration;

use crate::turn::BYTES_MAX;

/// A send is as much as the network takes within this time, as far as can be known before.
pub(crate) const SEND_TIME: Duration = Duration::from_millis(4);

/// Least bytes of a send that has more behind it: a record.
const SEND_MIN: usize = 16 * 1024;

/// The kernel keeps as much as it likes: the default of `TCP_NOTSENT_LOWAT`.
const UNBOUNDED: u32 = u32::MAX;

/// Of one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    bytes: u32,
    /// What the kernel may keep before it has sent it, as it was told last.
    unsent: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bytes: BYTES_MAX as u32, unsent: UNBOUNDED }
    }
}

impl Pace {
    /// Most bytes of the next send.
    pub(crate) fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Whether the kernel is to keep little before it has sent it.
    pub(crate) fn is_slow(self) -> bool {
        self.unsent != UNBOUNDED
    }

    /// A send of so many bytes is over, `full`: of as many as were allowed, with more behind it. What the kernel is to be told: how many bytes it may keep that it has not sent.
    pub(crate) fn sent(&mut self, bytes: usize, full: bool, took: Duration) -> Option<u32> {
        // Few bytes that waited tell only that others went before them.
        if bytes < SEND_MIN {
            return None;
        }
        let now = self.bytes();
        let next = if took >= SEND_TIME {
            (bytes as u128 * SEND_TIME.as_micros() / took.as_micros()) as usize
        } else if full {
            now * 2
        } else {
            // The network may take more, but was not asked to.
            now
        };
        // One send that was held up says little: it takes several.
        self.bytes = next.clamp(SEND_MIN.max(now - now / 4), BYTES_MAX) as u32;
        let wanted = if self.bytes() == BYTES_MAX { UNBOUNDED } else { self.bytes.next_power_of_two() };
        // It is told only what has changed much.
        let changed = wanted <= (self.unsent / 2).min(BYTES_MAX as u32 / 4) || wanted / 4 >= self.unsent;
        changed.then(|| {
            self.unsent = wanted;
            wanted
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as much as it may, `times` times, over a network of so many bytes a millisecond; what the kernel was told.
    fn send(pace: &mut Pace, times: usize, rate: usize) -> Vec<u32> {
        let sends = (0..times).filter_map(|_| {
            let bytes = pace.bytes();
            pace.sent(bytes, true, Duration::from_micros((bytes * 1000 / rate) as u64))
        });
        sends.collect()
    }

    #[test]
    fn a_send_is_what_the_network_takes_in_a_few_milliseconds() {
        for (rate, bytes) in [(100, SEND_MIN), (10_000, 40_000), (25_000, 100_000), (1_000_000, BYTES_MAX)] {
            let mut pace = Pace::default();
            send(&mut pace, 40, rate);
            // Up to what one more doubling would be too much.
            assert!((bytes..=2 * bytes).contains(&pace.bytes()), "{rate}: {pace:?}");
            assert_eq!(pace.is_slow(), bytes < BYTES_MAX, "{rate}");
        }
    }

    #[test]
    fn a_network_that_became_fast_gets_large_sends_again_and_the_kernel_its_freedom() {
        let mut pace = Pace::default();
        let told = send(&mut pace, 40, 4_000);
        assert!(told.is_sorted_by(|a, b| a > b) && told.len() <= 4, "{told:?}");
        assert_eq!(send(&mut pace, 8, 1_000_000).last(), Some(&UNBOUNDED));
        assert_eq!((pace.bytes(), pace.is_slow()), (BYTES_MAX, false));
    }

    #[test]
    fn a_fast_network_that_holds_up_a_send_now_and_then_is_not_taken_for_a_slow_one() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            assert_eq!(pace.sent(pace.bytes(), true, Duration::from_millis(50)), None);
            assert_eq!(pace.sent(pace.bytes(), true, Duration::from_micros(300)), None);
        }
        assert!(pace.bytes() >= BYTES_MAX / 2 && !pace.is_slow());
    }

    #[test]
    fn few_bytes_and_what_nothing_waited_behind_tell_nothing() {
        let mut pace = Pace::default();
        assert_eq!(pace.sent(100, false, Duration::from_secs(20)), None);
        assert_eq!(pace, Pace::default());
        send(&mut pace, 40, 4_000);
        let slow = pace;
        assert_eq!(pace.sent(SEND_MIN - 1, true, Duration::ZERO), None);
        assert_eq!((pace.sent(SEND_MIN, false, Duration::ZERO), pace), (None, slow));
    }
}

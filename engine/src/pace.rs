//! How much a link's network takes at a time. What comes to be sent first waits for the send in flight, and for what the
//! kernel has not sent yet: on a slow path, where one large send lasts long, that would be most of its delay.

use std::time::Duration;

use isthmus_proto::time::Instant;

use crate::turn::BYTES_MAX;

/// A send is as much as the network takes within this time, as far as can be known before.
pub(crate) const SEND_TIME: Duration = Duration::from_millis(4);

/// Least bytes of a send that has more behind it: a record.
const SEND_MIN: usize = 16 * 1024;

/// What is sent at first, and after a rest. From there on it is known within some 50 ms that a network is fast. The other way,
/// how slow one is would never show where credit lets go less than the kernel has room for.
const START: usize = 64 * 1024;

/// Without much to send for so long, what is known of the network is old.
const REST: Duration = Duration::from_secs(1);

/// The kernel keeps as much as it likes: the default of `TCP_NOTSENT_LOWAT`, as long as a link never had much to send.
const UNTOLD: u32 = u32::MAX;

/// How long is watched before it is known how much that is. A single send tells little: the kernel may have had room for it,
/// or something else held it up.
const WATCHED: Duration = Duration::from_millis(16);

/// Of one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    bytes: u32,
    /// What the kernel may keep before it has sent it, as it was told last.
    unsent: u32,
    /// Of full sends since it was known last: their bytes, and how long they took and had to wait
    /// together, in microseconds.
    sent: u32,
    took: u32,
    waited: u32,
    /// When much was sent last, in milliseconds modulo 2^32.
    busy_at: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bytes: START as u32, unsent: UNTOLD, sent: 0, took: 0, waited: 0, busy_at: 0 }
    }
}

impl Pace {
    /// Most bytes of the next send.
    pub(crate) fn bytes(&mut self, now: Instant) -> usize {
        if self.bytes as usize > START && u128::from(millis(now).wrapping_sub(self.busy_at)) > REST.as_millis() {
            (self.bytes, self.sent, self.took, self.waited) = (START as u32, 0, 0, 0);
        }
        self.bytes as usize
    }

    /// Whether the kernel is to keep little before it has sent it.
    pub(crate) fn is_slow(self) -> bool {
        self.unsent <= BYTES_MAX as u32 / 4
    }

    /// What the kernel is to be told before a send of so many bytes: how many it may keep that it has not sent. Only what has
    /// changed much, and if there is much to send.
    pub(crate) fn tell(&mut self, bytes: usize) -> Option<u32> {
        let wanted = self.bytes.next_power_of_two();
        let end = [SEND_MIN, START, BYTES_MAX].contains(&(self.bytes as usize));
        let changed = end || wanted <= self.unsent / 4 || wanted / 4 >= self.unsent;
        (bytes >= SEND_MIN && changed && wanted != self.unsent).then(|| {
            self.unsent = wanted;
            wanted
        })
    }

    /// A send of so many bytes is over, `full`: of as many as were allowed, with more behind it. It took so long, and
    /// `waited` for the network rather than for its thread.
    pub(crate) fn sent(&mut self, bytes: usize, full: bool, took: Duration, waited: bool, now: Instant) {
        if bytes >= SEND_MIN {
            self.busy_at = millis(now);
        }
        if !full {
            // The network may take more, but was not asked to.
            return;
        }
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.sent = self.sent.saturating_add(bytes as u32);
        self.took = self.took.saturating_add(micros);
        self.waited = self.waited.saturating_add(if waited { micros } else { 0 });
        if u128::from(self.took) < WATCHED.as_micros() {
            return;
        }
        let next = match self.waited {
            waited if waited > self.took / 2 => u64::from(self.sent) * SEND_TIME.as_micros() as u64 / u64::from(waited),
            _ => BYTES_MAX as u64,
        };
        (self.sent, self.took, self.waited) = (0, 0, 0);
        let now = self.bytes as usize;
        let (least, most) = (SEND_MIN.max(now / 2), BYTES_MAX.min(now * 2));
        self.bytes = next.clamp(least as u64, most as u64) as u32;
    }
}

fn millis(at: Instant) -> u32 {
    (at.0 / 1_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant(5_000_000_000);

    /// Sends as much as it may, `times` times, over a network of so many bytes a millisecond behind a kernel that has room
    /// for some without waiting; what the kernel was told.
    fn send(pace: &mut Pace, times: usize, rate: usize, room: usize) -> Vec<u32> {
        let mut kept = 0;
        let sends = (0..times).filter_map(|_| {
            let bytes = pace.bytes(NOW);
            let told = pace.tell(bytes);
            kept += bytes;
            let waits = kept.saturating_sub(room);
            kept -= waits;
            pace.sent(bytes, true, Duration::from_micros((waits * 1000 / rate) as u64), true, NOW);
            told
        });
        sends.collect()
    }

    #[test]
    fn a_send_is_what_the_network_takes_in_a_few_milliseconds_whatever_the_kernel_has_room_for() {
        for (rate, bytes) in
            [(100, SEND_MIN), (2_500, SEND_MIN), (10_000, 40_000), (25_000, 100_000), (200_000, BYTES_MAX)]
        {
            for room in [0, 100_000] {
                let mut pace = Pace::default();
                let told = send(&mut pace, 1000, rate, room);
                assert!((pace.bytes as usize).abs_diff(bytes) <= bytes / 8, "{rate} {room}: {pace:?}");
                assert_eq!(pace.is_slow(), bytes < BYTES_MAX, "{rate}");
                assert!(*told.last().unwrap() as usize <= 4 * bytes, "{rate}: {told:?}");
                assert!(told.len() <= 4, "{rate}: {told:?}");
            }
        }
    }

    #[test]
    fn a_network_that_became_slow_or_fast_is_found_so() {
        let mut pace = Pace::default();
        assert_eq!(send(&mut pace, 1000, 1_000_000, 0).last(), Some(&(BYTES_MAX as u32)));
        assert_eq!(send(&mut pace, 10, 4_000, 0).last(), Some(&(SEND_MIN as u32)));
        assert_eq!(send(&mut pace, 5000, 1_000_000, 0).last(), Some(&(BYTES_MAX as u32)));
        assert!(!pace.is_slow());
    }

    #[test]
    fn a_fast_network_that_holds_up_a_send_now_and_then_is_not_taken_for_a_slow_one() {
        let mut pace = Pace::default();
        send(&mut pace, 1000, 1_000_000, 0);
        for _ in 0..100 {
            pace.sent(pace.bytes as usize, true, Duration::from_millis(50), true, NOW);
            assert_eq!(pace.tell(BYTES_MAX), None);
            for _ in 0..60 {
                pace.sent(pace.bytes as usize, true, Duration::from_micros(300), true, NOW);
            }
            assert_eq!(pace.bytes as usize, BYTES_MAX);
        }
    }

    #[test]
    fn a_thread_that_is_slow_itself_is_not_taken_for_its_network() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.sent(pace.bytes as usize, true, Duration::from_millis(8), false, NOW);
        }
        assert_eq!(pace.bytes as usize, BYTES_MAX);
    }

    #[test]
    fn few_bytes_and_what_nothing_waited_behind_change_nothing() {
        let mut pace = Pace::default();
        pace.sent(100, false, Duration::from_secs(20), true, NOW);
        assert_eq!((pace, pace.tell(100)), (Pace::default(), None));
        send(&mut pace, 40, 4_000, 0);
        let slow = pace.bytes;
        pace.sent(SEND_MIN, false, Duration::ZERO, true, NOW);
        assert_eq!((pace.bytes, pace.tell(SEND_MIN)), (slow, None));
    }

    #[test]
    fn after_a_rest_it_begins_anew_and_the_kernel_is_told_with_the_next_much() {
        let mut pace = Pace::default();
        send(&mut pace, 1000, 1_000_000, 0);
        let later = NOW + REST + Duration::from_millis(1);
        assert_eq!((pace.bytes(NOW + REST), pace.bytes(later)), (BYTES_MAX, START));
        assert_eq!((pace.tell(1000), pace.tell(START), pace.tell(START)), (None, Some(START as u32), None));
    }
}

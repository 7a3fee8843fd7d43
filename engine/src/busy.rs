//! When the ring may poll busily: only while payload moves, so that an idle engine sleeps.

use std::time::Duration;

use isthmus_proto::time::Instant;

/// Payload makes more of it likely for so long.
const BUSY_FOR: Duration = Duration::from_millis(4);

/// The setting, and what decides whether it holds now.
pub(crate) struct BusyPoll {
    spell: Duration,
    /// What had moved when it was looked at last.
    moved: u64,
    until: Instant,
}

impl BusyPoll {
    pub(crate) fn new(spell: Duration) -> Self {
        Self { spell, moved: 0, until: Instant(0) }
    }

    /// How long to poll before this turn's sleep. `moved` differs from the last turn's if payload moved.
    pub(crate) fn spell(&mut self, moved: u64, now: Instant) -> Duration {
        if moved != self.moved {
            self.moved = moved;
            self.until = now + BUSY_FOR;
        }
        if now < self.until { self.spell } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_ends_soon_after_the_last_payload() {
        let spell = Duration::from_micros(50);
        let mut busy = BusyPoll::new(spell);
        let start = Instant(1);
        assert_eq!(busy.spell(0, start), Duration::ZERO, "nothing has moved");
        let last = start + Duration::from_secs(1);
        assert_eq!(busy.spell(64, last), spell);
        assert_eq!(busy.spell(64, last + (BUSY_FOR - Duration::from_nanos(1))), spell);
        assert_eq!(busy.spell(64, last + BUSY_FOR), Duration::ZERO);
        assert_eq!(busy.spell(128, last + BUSY_FOR), spell, "payload moves again");
    }
}

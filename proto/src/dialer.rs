//! How to come back to a relay: exponential back-off with full jitter.

use std::time::Duration;

/// Chooses the wait before each attempt. Thousands of mediators that lost the same relay at the same
/// moment spread over the whole of each wait, rather than around its end.
#[derive(Clone, Debug)]
pub struct Dialer {
    base: Duration,
    cap: Duration,
    /// Attempts since the last success.
    attempts: u32,
    told: Option<Duration>,
    random: u64,
}

impl Dialer {
    /// Longest wait that a relay may impose; a mediator must not be sent away for good.
    pub const TOLD_MAX: Duration = Duration::from_secs(3600);

    /// The first wait is up to `base`, and its bound doubles with each attempt, up to `cap`. The same `seed` gives
    /// the same waits; each mediator needs its own.
    pub fn new(base: Duration, cap: Duration, seed: u64) -> Self {
        Self { base: base.min(cap), cap, attempts: 0, told: None, random: seed }
    }

    /// The wait before the next attempt: from nothing up to the present bound. After
    /// [`Dialer::told_to_wait`], once, what was told and up to half of it more (or up to the bound, if
    /// that is more).
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.base.saturating_mul(1u32.checked_shl(self.attempts).unwrap_or(u32::MAX)).min(self.cap);
        self.attempts = self.attempts.saturating_add(1);
        match self.told.take() {
            None => self.up_to(bound),
            Some(told) => told + self.up_to(bound.max(told / 2)),
        }
    }

    /// The session was established: the next wait is a short one again.
    pub fn succeeded(&mut self) {
        self.attempts = 0;
        self.told = None;
    }

    /// The relay said when to come back; it counts for the next attempt only.
    pub fn told_to_wait(&mut self, wait: Duration) {
        self.told = Some(wait.min(Self::TOLD_MAX));
    }

    /// Evenly spread over 0 to `bound`, both included.
    fn up_to(&mut self, bound: Duration) -> Duration {
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        let random = u128::from(self.next_random());
        // Multiply and shift rather than a remainder: it has no bias worth speaking of.
        Duration::from_nanos(((random * (u128::from(nanos) + 1)) >> 64) as u64)
    }

    /// SplitMix64: small, and good enough for spreading.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(500);
    const CAP: Duration = Duration::from_secs(60);

    fn dialers() -> impl Iterator<Item = Dialer> {
        (0..2000).map(|seed| Dialer::new(BASE, CAP, seed))
    }

    #[test]
    fn waits_grow_to_the_cap_and_never_beyond() {
        let mut longest = [Duration::ZERO; 40];
        for mut dialer in dialers() {
            for longest in &mut longest {
                *longest = dialer.next_delay().max(*longest);
            }
        }
        for (n, &longest) in longest.iter().enumerate() {
            let bound = BASE.saturating_mul(1 << n.min(20)).min(CAP);
            assert!(longest <= bound && longest > bound * 9 / 10, "attempt {n}: {longest:?} of {bound:?}");
        }
    }

    #[test]
    fn waits_spread_evenly_from_nothing_to_the_bound() {
        let mut tenths = [0; 10];
        for mut dialer in dialers() {
            let wait = dialer.next_delay();
            tenths[(wait.as_nanos() * 10 / (BASE.as_nanos() + 1)) as usize] += 1;
        }
        assert!(tenths.iter().all(|&n| (140..260).contains(&n)), "{tenths:?}");
    }

    #[test]
    fn success_makes_the_next_wait_short_and_forgets_what_was_told() {
        for mut dialer in dialers() {
            for _ in 0..20 {
                dialer.next_delay();
            }
            dialer.told_to_wait(CAP);
            dialer.succeeded();
            assert!(dialer.next_delay() <= BASE);
        }
    }

    #[test]
    fn told_wait_is_kept_once_with_jitter_and_is_bounded() {
        let told = Duration::from_secs(20);
        let (mut shortest, mut longest) = (Duration::MAX, Duration::ZERO);
        for mut dialer in dialers() {
            dialer.told_to_wait(told);
            let wait = dialer.next_delay();
            assert!((told..=told * 3 / 2).contains(&wait), "{wait:?}");
            (shortest, longest) = (shortest.min(wait), longest.max(wait));
            assert!(dialer.next_delay() <= BASE * 2);
            dialer.told_to_wait(Duration::MAX);
            assert!(dialer.next_delay() <= Dialer::TOLD_MAX * 3 / 2);
        }
        assert!(longest - shortest > told / 2 * 9 / 10, "{shortest:?} {longest:?}");
    }

    #[test]
    fn same_seed_gives_the_same_waits() {
        let waits = |seed| {
            let mut dialer = Dialer::new(BASE, CAP, seed);
            (0..10).map(|_| dialer.next_delay()).collect::<Vec<_>>()
        };
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
    }

    #[test]
    fn extreme_bounds_do_not_overflow() {
        let mut dialer = Dialer::new(Duration::MAX, Duration::MAX, 1);
        for _ in 0..100 {
            assert!(dialer.next_delay() > Duration::ZERO);
        }
        let mut dialer = Dialer::new(Duration::ZERO, Duration::ZERO, 1);
        assert_eq!(dialer.next_delay(), Duration::ZERO);
    }
}

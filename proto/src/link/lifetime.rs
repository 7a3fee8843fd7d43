//! How long a gateway keeps an idle UDP binding, found out by asking for packets after silences.
//!
//! The caller has a spare local port that carries nothing else. It sends a probe there that asks the relay to
//! answer after `T` of silence. If the answer arrives, bindings live at least `T`, and the channels' maintain packets
//! may be almost as far apart. Growing steps find the first silence that is too long, halving ones then close in on it.
//!
//! ```text
//!            after a random wait
//!   Waiting ─────────────────────► Warming ── answer ──► Probing ── answer: proven = T, the next longer one ──┐
//!      ▲                             ▲  ▲                  │  ▲                                               │
//!      │                             │  └── no answer: again, seldom       ◄──────────────────────────────────┤
//!      │                             └──── no answer: once more; then failed = T, halfway back ◄──────────────┤
//!      └── channel died, new address: everything forgotten                    nothing left to find: Settled ◄─┘
//! ```

use std::time::Duration;

use crate::time::Instant;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifetimeAction {
    /// Nothing before [`Lifetime::deadline`].
    Wait,
    /// Send a probe from the spare port: an answer is wanted after this silence, at once if it is zero.
    Probe(Duration),
    /// All is known: the spare port may be closed. Channels follow [`Lifetime::period`].
    Settled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Until then nothing: very many callers that come at once do not probe at once.
    Waiting {
        until: Instant,
    },
    /// The port's binding is made and used in both directions: gateways hold only such a one for long.
    Warming {
        until: Instant,
    },
    /// Warm, but younger than what counts as a lasting flow.
    Aging {
        until: Instant,
    },
    /// An answer is due after `silence`.
    Probing {
        silence: Duration,
        until: Instant,
    },
    Settled,
}

/// One caller's knowledge of its gateway. See the module's text.
#[derive(Clone, Debug)]
pub struct Lifetime {
    start: Duration,
    max: Duration,
    /// The longest silence that an answer survived.
    proven: Duration,
    /// The shortest one that none did.
    failed: Option<Duration>,
    /// Unanswered probes of the present silence.
    misses: u32,
    /// Attempts in a row at which the port got no answer at all.
    cold: u32,
    state: State,
    random: u64,
}

/// Longest wait before the first probe, as a multiple of the start value.
const SPREAD: u32 = 8;

/// An answer may be late by so much.
const GRACE: Duration = Duration::from_secs(1);

/// Linux takes a flow for a lasting one when it is used after two seconds, and holds it longer from then on.
const AGE: Duration = Duration::from_millis(2500);

/// Each step is longer than the one before by 7/4.
const STEP: (u32, u32) = (7, 4);

/// Steps end when what is open is less than this part of what is proven.
const PRECISION: u32 = 8;

/// A silence is too long when so many probes in a row were not answered: one may be lost.
const MISSES: u32 = 2;

/// The part of the proven lifetime after which maintain packets are sent.
const SAFE: (u32, u32) = (4, 5);

impl Lifetime {
    /// Bindings are taken to live `start`, and asked whether they do up to `max`; a `max` not above `start` asks
    /// nothing. `random` spreads the first probes of many callers.
    pub fn new(start: Duration, max: Duration, random: u64, now: Instant) -> Self {
        let mut new = Self {
            start,
            max,
            proven: start,
            failed: None,
            misses: 0,
            cold: 0,
            state: State::Settled,
            // A xorshift stays at zero for ever.
            random: random | 1,
        };
        new.forget(now);
        new
    }

    /// What was learned holds no longer: the address changed, or a channel died. It begins anew.
    pub fn forget(&mut self, now: Instant) {
        (self.proven, self.failed, self.misses, self.cold) = (self.start, None, 0, 0);
        let spread = self.start * SPREAD;
        let wait = Duration::from_nanos(self.next_random() % (spread.as_nanos() as u64).max(1));
        self.state = match self.max > self.start {
            true => State::Waiting { until: now + self.start + wait },
            false => State::Settled,
        };
    }

    /// How far apart the channels' maintain packets may be: the start value until more is proven, then a safe part.
    pub fn period(&self) -> Duration {
        (self.proven * SAFE.0 / SAFE.1).max(self.start)
    }

    /// The longest silence that an answer survived, or the start value.
    pub fn proven(&self) -> Duration {
        self.proven
    }

    /// Whether nothing is left to be found out.
    pub fn is_settled(&self) -> bool {
        self.state == State::Settled
    }

    /// The time to call [`Lifetime::on_deadline`], which every other call may change; none when settled.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } | State::Warming { until } | State::Aging { until } => Some(until),
            State::Probing { until, .. } => Some(until),
            State::Settled => None,
        }
    }

    /// What to do now.
    pub fn on_deadline(&mut self, now: Instant) -> LifetimeAction {
        match self.state {
            State::Settled => LifetimeAction::Settled,
            State::Waiting { until } | State::Warming { until } | State::Aging { until } if now < until => {
                LifetimeAction::Wait
            }
            State::Probing { until, .. } if now < until => LifetimeAction::Wait,
            State::Waiting { .. } => self.warm(now),
            State::Warming { .. } => {
                // Nothing comes at all: no UDP, or the relay does not answer probes. Seldom asked again.
                self.cold += 1;
                let wait = self.start * SPREAD * (1 << self.cold.min(6));
                self.state = State::Waiting { until: now + wait };
                LifetimeAction::Wait
            }
            State::Aging { .. } => match self.candidate() {
                Some(silence) => self.probe(silence, now),
                None => self.settle(),
            },
            State::Probing { silence, .. } => {
                self.misses += 1;
                if self.misses >= MISSES {
                    self.failed = Some(silence);
                    self.misses = 0;
                }
                // The binding may be gone, and is made anew.
                match self.candidate() {
                    Some(_) => self.warm(now),
                    None => self.settle(),
                }
            }
        }
    }

    /// The answer to the last probe came. One that was not waited for is passed over.
    pub fn answered(&mut self, now: Instant) {
        match self.state {
            State::Warming { .. } => {
                self.cold = 0;
                self.state = State::Aging { until: now + AGE };
            }
            State::Probing { silence, .. } => {
                self.proven = self.proven.max(silence);
                self.misses = 0;
                // The next one at once: the timer's call asks for it.
                self.state = State::Aging { until: now };
            }
            State::Waiting { .. } | State::Aging { .. } | State::Settled => {}
        }
    }

    fn warm(&mut self, now: Instant) -> LifetimeAction {
        self.state = State::Warming { until: now + GRACE };
        LifetimeAction::Probe(Duration::ZERO)
    }

    fn probe(&mut self, silence: Duration, now: Instant) -> LifetimeAction {
        self.state = State::Probing { silence, until: now + silence + GRACE };
        LifetimeAction::Probe(silence)
    }

    fn settle(&mut self) -> LifetimeAction {
        self.state = State::Settled;
        LifetimeAction::Settled
    }

    /// The silence to ask for next; none when no gain is left.
    fn candidate(&self) -> Option<Duration> {
        let gain = self.proven / PRECISION;
        match self.failed {
            None if self.proven >= self.max => None,
            None => Some((self.proven * STEP.0 / STEP.1).min(self.max)),
            Some(failed) if failed.saturating_sub(self.proven) <= gain => None,
            Some(failed) => Some(self.proven + (failed - self.proven) / 2),
        }
    }

    fn next_random(&mut self) -> u64 {
        // xorshift64: it only has to spread.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_secs(8);

    /// Plays the relay behind a gateway whose bindings live `lives`; every `lost`-th probe or answer is lost.
    /// Gives what was found, how long it took, and how many probes.
    fn learn(lives: Duration, max: Duration, lost: u64, seed: u64) -> (Lifetime, Duration, u64) {
        let begin = Instant::ZERO + Duration::from_secs(1000);
        let (mut now, mut it, mut probes) = (begin, Lifetime::new(START, max, seed, begin), 0);
        let mut answer_at = None;
        for _ in 0..1000 {
            let Some(deadline) = it.deadline() else { break };
            if let Some(at) = answer_at.filter(|&at| at <= deadline) {
                (now, answer_at) = (at, None);
                it.answered(now);
                continue;
            }
            now = deadline;
            if let LifetimeAction::Probe(silence) = it.on_deadline(now) {
                probes += 1;
                let arrives = silence < lives && (lost == 0 || probes % lost != 0);
                answer_at = arrives.then(|| now + silence + Duration::from_millis(50));
            }
        }
        (it, now.since(begin), probes)
    }

    #[test]
    fn gateways_lifetimes_are_found_from_below() {
        for (lives, least) in [(10, 8), (30, 24), (60, 51), (120, 102), (180, 120)] {
            let (it, took, probes) = learn(Duration::from_secs(lives), Duration::from_secs(120), 0, 7);
            assert!(it.is_settled());
            let proven = it.proven();
            assert!(proven >= Duration::from_secs(least) && proven < Duration::from_secs(lives), "{lives}: {proven:?}");
            assert!(it.period() < proven || it.period() == START);
            assert!(took < Duration::from_secs(20 * 60) && probes < 40, "{took:?} {probes}");
        }
    }

    #[test]
    fn without_any_answer_the_start_value_stays_and_probes_are_few() {
        let begin = Instant::ZERO;
        let mut it = Lifetime::new(START, START * 10, 3, begin);
        let mut probes = 0;
        while let Some(deadline) = it.deadline().filter(|&at| at < begin + Duration::from_secs(24 * 3600)) {
            probes += u64::from(matches!(it.on_deadline(deadline), LifetimeAction::Probe(_)));
        }
        assert_eq!(it.period(), START);
        assert!((5..60).contains(&probes), "{probes}");
    }

    #[test]
    fn one_lost_answer_does_not_shorten_what_is_found() {
        let (clean, ..) = learn(Duration::from_secs(60), Duration::from_secs(120), 0, 9);
        let (lossy, ..) = learn(Duration::from_secs(60), Duration::from_secs(120), 7, 9);
        assert_eq!(clean.proven(), lossy.proven());
    }

    #[test]
    fn a_new_address_forgets_everything() {
        let (mut it, ..) = learn(Duration::from_secs(60), Duration::from_secs(120), 0, 9);
        assert!(it.period() > START);
        it.forget(Instant::ZERO);
        assert_eq!((it.period(), it.is_settled()), (START, false));
    }

    #[test]
    fn a_maximum_that_is_the_start_asks_nothing() {
        let mut it = Lifetime::new(START, START, 1, Instant::ZERO);
        assert_eq!((it.deadline(), it.on_deadline(Instant::ZERO)), (None, LifetimeAction::Settled));
    }

    #[test]
    fn many_that_come_at_once_do_not_probe_at_once() {
        let mut slots = [0; 16];
        for seed in 0..1600u64 {
            let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let deadline = Lifetime::new(START, START * 9, seed, Instant::ZERO).deadline().unwrap();
            let within = deadline.since(Instant::ZERO + START).as_secs_f64() / (START * SPREAD).as_secs_f64();
            slots[(within * 16.0) as usize] += 1;
        }
        assert!(slots.iter().all(|&count| (50..200).contains(&count)), "{slots:?}");
    }

    proptest! {
        #[test]
        fn the_period_is_always_below_the_lifetime(lives in 9u64..400, max in 1u64..300, lost in 0u64..9, seed: u64) {
            prop_assume!(lost != 1);
            let (lives, max) = (Duration::from_secs(lives), Duration::from_secs(max));
            let (it, ..) = learn(lives, max, lost, seed);
            prop_assert!(it.proven() == START || it.proven() < lives);
            prop_assert!(it.proven() <= max.max(START));
            prop_assert!(it.period() == START || it.period() <= it.proven() * 4 / 5);
            if lost == 0 {
                prop_assert!(it.is_settled());
                let limit = lives.min(max);
                prop_assert!(it.proven() == START || it.proven() * 9 / 8 + Duration::from_millis(1) >= limit, "{:?} of {limit:?}", it.proven());
            }
        }
    }
}

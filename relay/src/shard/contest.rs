//! Two mediators on one token take the tunnel from each other for ever. It is told from a mediator that comes back by the
//! number of its process, and slowed down: the one that is sent away is told to wait longer each time.

use std::time::Duration;

use isthmus_proto::time::Instant;

/// First wait of the one that is replaced, and the longest.
const WAIT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));

/// A tunnel that lasted for longer, beyond the wait that its rival was told, ends the contest.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// What a tunnel knows of the process that holds it and the one that held it before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contest {
    /// This process; zero if it does not say.
    instance: u64,
    /// The one whose session it replaced.
    rival: u64,
    since: Instant,
    /// How often the two have replaced each other.
    rounds: u32,
}

impl Contest {
    pub(super) fn new(instance: u64, now: Instant) -> Self {
        Self { instance, since: now, ..Self::default() }
    }

    /// The contest of the session that replaces this one.
    pub(super) fn replaced_by(&self, instance: u64, now: Instant) -> Self {
        if instance == 0 || instance == self.instance {
            // It came back by itself: what it knew of a rival stays.
            return Self { instance: self.instance.max(instance), since: now, ..*self };
        }
        let lasting = now.since(self.since) > FORGOTTEN + self.wait();
        let rounds = if lasting { 0 } else { self.rounds };
        // The first change of process is a restart, or a new box for an old one.
        let back = instance == self.rival;
        Self { instance, rival: self.instance, since: now, rounds: rounds + u32::from(back) }
    }

    /// How often two have replaced each other, if they do.
    pub(super) fn rounds(&self) -> u32 {
        self.rounds
    }

    /// What the one that is replaced is told to wait; nothing before there is a contest.
    pub(super) fn wait(&self) -> Duration {
        match self.rounds {
            0 => Duration::ZERO,
            rounds => WAIT.0.saturating_mul(1 << (rounds - 1).min(20)).min(WAIT.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_restart_and_a_return_are_no_contest() {
        let first = Contest::new(7, at(0));
        let again = first.replaced_by(7, at(1));
        assert_eq!((again.rounds(), again.wait()), (0, Duration::ZERO));
        let restarted = again.replaced_by(8, at(2));
        assert_eq!(restarted.rounds(), 0);
        assert_eq!(restarted.replaced_by(9, at(3)).rounds(), 0);
        assert_eq!(restarted.replaced_by(0, at(3)).rounds(), 0);
    }

    #[test]
    fn alternation_is_counted_and_waits_double_to_the_limit() {
        let mut contest = Contest::new(1, at(0)).replaced_by(2, at(1));
        let mut waits = Vec::new();
        for n in 0..12 {
            contest = contest.replaced_by(1 + n % 2, at(2 + n));
            waits.push(contest.wait().as_secs());
        }
        assert_eq!(contest.rounds(), 12);
        assert_eq!(waits[..4], [10, 20, 40, 80]);
        assert_eq!(waits[11], 3600);
    }

    #[test]
    fn a_lasting_tunnel_ends_the_contest() {
        let contest = Contest::new(1, at(0)).replaced_by(2, at(1)).replaced_by(1, at(2));
        assert_eq!(contest.rounds(), 1);
        assert_eq!(contest.replaced_by(2, at(2 + 610)).rounds(), 2);
        assert_eq!(contest.replaced_by(2, at(2 + 611)).rounds(), 1);
    }
}

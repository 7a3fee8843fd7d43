//! Which packet numbers were seen already (as RFC 4303 3.4.3).

/// A window over the newest [`ReplayWindow::SIZE`] packet numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReplayWindow {
    /// One more than the largest number seen; 0 before any.
    next: u64,
    /// Bit `n % SIZE` tells whether `n`, one of the newest `SIZE` numbers, was seen; without bits, all of them were.
    seen: Option<Box<Seen>>,
}

type Seen = [u64; ReplayWindow::SIZE as usize / 64];

/// Why a number is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replay {
    /// It was seen.
    Seen,
    /// It is so old that nobody knows.
    TooOld,
}

impl ReplayWindow {
    /// Wide enough for the reordering between two GSO batches of 64 that overtake each other, twice.
    pub(super) const SIZE: u64 = 256;

    /// Takes `number`, once.
    pub(super) fn accept(&mut self, number: u64) -> Result<(), Replay> {
        if number < self.next && (self.next - number > Self::SIZE || self.seen.is_none()) {
            return Err(Replay::TooOld);
        }
        let seen = self.seen.get_or_insert_with(|| Box::new([u64::MAX; Self::SIZE as usize / 64]));
        if number >= self.next {
            // The places of the numbers passed over still hold what was there SIZE numbers ago.
            if number - self.next >= Self::SIZE {
                **seen = Default::default();
            } else {
                (self.next..number).for_each(|passed| seen[word(passed)] &= !bit(passed));
            }
            self.next = number.saturating_add(1);
        } else if seen[word(number)] & bit(number) != 0 {
            return Err(Replay::Seen);
        }
        seen[word(number)] |= bit(number);
        Ok(())
    }

    /// Frees the memory of the numbers below the largest one seen: from now on all of them are too old. For a
    /// channel at rest, on which nothing is late any more.
    pub(super) fn rest(&mut self) {
        self.seen = None;
    }

    /// One more than the largest number seen; 0 before any.
    pub(super) fn next(&self) -> u64 {
        self.next
    }
}

fn word(number: u64) -> usize {
    (number % ReplayWindow::SIZE / 64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn window_ends_exactly_at_its_size() {
        let newest = 10_000;
        for (number, want) in [
            (newest - 255, Ok(())),
            (newest - 256, Err(Replay::TooOld)),
            (newest, Err(Replay::Seen)),
            (newest + 1, Ok(())),
        ] {
            let mut window = ReplayWindow::default();
            window.accept(newest).unwrap();
            assert_eq!(window.accept(number), want, "{number}");
        }
    }

    #[test]
    fn first_number_may_be_any_and_passed_over_ones_are_still_taken() {
        let mut window = ReplayWindow::default();
        for number in [0, 3, 1, 2] {
            assert_eq!(window.accept(number), Ok(()));
            assert_eq!(window.accept(number), Err(Replay::Seen));
        }
        assert_eq!(window.accept(u64::MAX - 1), Ok(()));
        assert_eq!(window.accept(u64::MAX - 2), Ok(()));
        assert_eq!(window.accept(3), Err(Replay::TooOld));
    }

    #[test]
    fn after_a_rest_no_older_number_is_taken_and_newer_ones_are_once() {
        let mut window = ReplayWindow::default();
        for number in [0, 1, 7] {
            window.accept(number).unwrap();
        }
        window.rest();
        assert_eq!([1, 5, 7].map(|number| window.accept(number)), [Err(Replay::TooOld); 3]);
        assert_eq!([9, 8].map(|number| window.accept(number)), [Ok(()); 2]);
        assert_eq!([9, 8, 7, 5, 1].map(|number| window.accept(number)), [Err(Replay::Seen); 5]);
    }

    proptest! {
        #[test]
        fn window_agrees_with_a_set(steps in prop::collection::vec(prop_oneof![
            8 => -300i64..20,
            2 => 0i64..600,
            1 => 0i64..100_000,
        ], 1..400)) {
            let mut window = ReplayWindow::default();
            let mut taken = BTreeSet::new();
            let mut newest = 1000i64;
            for step in steps {
                let number = u64::try_from((newest + step).max(0)).unwrap();
                let largest = taken.last().copied();
                let want = match largest {
                    Some(largest) if number + 256 <= largest => Err(Replay::TooOld),
                    _ if taken.contains(&number) => Err(Replay::Seen),
                    _ => Ok(()),
                };
                prop_assert_eq!(window.accept(number), want);
                if want.is_ok() {
                    taken.insert(number);
                    newest = newest.max(number as i64);
                }
            }
        }
    }
}

//! The highest rate at which hardly anything is lost.

use std::time::Duration;

use crate::load::udp::{Client, Outcome, SENT_MIN};
use crate::report::Line;

/// Loss, as a share, that a rate may have and still count as carried.
pub const LOSS_MAX: f64 = 0.005;

const STEP: Duration = Duration::from_millis(600);
const RATE_FIRST: f64 = 10_000.0;
const RATE_MIN: f64 = 300.0;
const RATE_MAX: f64 = 4_000_000.0;
const GROWTH: f64 = 1.5;
const HALVINGS: usize = 4;
const FINAL_TRIES: usize = 8;

/// Finds the rate, then measures at it for the client's time; where that loses more after all, at lower ones.
///
/// # Errors
/// As [`Client::run`].
pub fn highest(client: &mut Client) -> anyhow::Result<Line> {
    let (found, _) = bracket(|rate| Ok(carries(&client.run(rate, STEP)?, rate)))?;
    let mut rate = found;
    for _ in 1..FINAL_TRIES {
        let (outcome, line) = client.measure(rate)?;
        if carries(&outcome, rate) {
            return Ok(line.with("searched", "yes"));
        }
        rate *= 0.93;
    }
    // As it is: the loss in the line tells that no rate was good.
    client.measure(rate).map(|(_, line)| line.with("searched", "no"))
}

fn carries(outcome: &Outcome, rate: f64) -> bool {
    outcome.loss() < LOSS_MAX && outcome.rate() >= rate * SENT_MIN
}

/// Grows the rate until `good` says no, then halves the interval: the last good one, and the first bad one.
fn bracket(mut good: impl FnMut(f64) -> anyhow::Result<bool>) -> anyhow::Result<(f64, f64)> {
    let (mut low, mut high) = (RATE_FIRST / GROWTH, RATE_FIRST);
    while high < RATE_MAX && good(high)? {
        (low, high) = (high, high * GROWTH);
    }
    // Not even the first: the interval is somewhere below.
    if high == RATE_FIRST {
        while low > RATE_MIN && !good(low)? {
            (low, high) = (low / GROWTH, low);
        }
    }
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if good(middle)? { low = middle } else { high = middle }
    }
    Ok((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_ends_just_below_the_true_limit() {
        for limit in [700.0, 8_000.0, 47_000.0, 310_000.0] {
            let (low, high) = bracket(|rate| Ok(rate <= limit)).unwrap();
            assert!(low <= limit && limit < high && high - low < limit * 0.1, "{low} {limit} {high}");
        }
    }

    #[test]
    fn search_ends_where_nothing_is_ever_lost() {
        assert!(bracket(|_| Ok(true)).unwrap().0 <= RATE_MAX * GROWTH);
        assert!(bracket(|_| Ok(false)).unwrap().0 > 0.0);
    }

    #[test]
    fn rate_counts_only_if_it_was_sent_and_came_back() {
        let outcome = |sent, echoed| Outcome { sent, echoed, time: Duration::from_secs(1), ..Outcome::default() };
        assert!(carries(&outcome(1000, 996), 1000.0));
        assert!(!carries(&outcome(1000, 994), 1000.0));
        assert!(!carries(&outcome(940, 940), 1000.0));
    }
}

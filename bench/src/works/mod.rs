//! What Isthmus alone is asked: what idle tunnels cost, how soon all are back after a crash, what bulk does to others, what
//! many tunnels and flows cost those that are active, what the front doors cost.
//!
//! | work | question | module |
//! |---|---|---|
//! | `idle` | memory and CPU of N tunnels that carry nothing | [`idle`] |
//! | `storm` | N mediators reconnect after the relay's kill -9 | [`storm`] |
//! | `mixed` | a ping-pong's p99 beside bulk, on its tunnel and on others | [`mixed`] |
//! | `share` | CPU per GB of A active tunnels among N | [`share`] |
//! | `flows` | CPU per datagram with thousands of flows, and with thousands of mediators | [`flows`] |
//! | `doors` | CPU per GB and connection through SOCKS5 and names by a plain port, and among 10,000 names | [`doors`] |
//!
//! Each runs in a [`World`] of its own, and gives a [`Report`].

pub mod doors;
pub mod flows;
pub mod handshake;
pub mod idle;
mod lab;
pub mod mixed;
pub mod share;
pub mod storm;
pub mod table;

use std::collections::BTreeMap;

use crate::console::note;
use crate::results::{Bar, Measurement, Report};

pub use lab::Common;

/// What is measured, in results.
const SYSTEM: &str = "isthmus";

/// Most mediators of a work: more than any machine has memory for.
pub const COUNT_MAX: usize = 10_000_000;

type Values = BTreeMap<String, f64>;

/// Adds a measurement, and says so to whoever waits.
fn record(report: &mut Report, work: &str, case: &str, round: u32, values: Values) {
    let words: Vec<String> = values
        .iter()
        .filter(|(key, _)| !crate::values::is_detail(key))
        .map(|(key, value)| format!("{key}={}", crate::values::word(*value)))
        .collect();
    let bound =
        if values.get("load_bound").is_some_and(|&bound| bound > 0.0) { " (the load is at its end)" } else { "" };
    note(format_args!("{work}, {case}: {}{bound}", words.join(" ")));
    let (work, case, system) = (work.to_owned(), case.to_owned(), SYSTEM.to_owned());
    report.results.push(Measurement { work, case, system, round, values });
}

/// A figure that shall be at most `limit`.
fn at_most(name: &str, words: &str, limit: f64, measured: Option<f64>) -> Bar {
    let met = measured.map(|measured| measured <= limit);
    Bar { name: name.to_owned(), bar: words.to_owned(), limit, measured, met, why: None }
}

/// Without a verdict, for a run that is too small for one.
fn open(bar: Bar, why: &str) -> Bar {
    Bar { met: None, why: Some(why.to_owned()), ..bar }
}

/// The median of the rounds' ratios of two cases.
fn ratio(report: &Report, work: &str, key: &str, case: &str, base: &str) -> Option<f64> {
    report.ratio(work, key, (case, SYSTEM), (base, SYSTEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_of_two_cases_and_bars_are_judged_on_both_sides() {
        let mut report = Report::begin("cubic");
        for (case, value) in [("quiet", 2.0), ("loud", 5.0), ("none", 0.0)] {
            record(&mut report, "mixed", case, 1, Values::from([("p99_us".to_owned(), value)]));
        }
        assert_eq!(ratio(&report, "mixed", "p99_us", "loud", "quiet"), Some(2.5));
        assert_eq!(ratio(&report, "mixed", "p99_us", "loud", "none"), None);
        assert_eq!(ratio(&report, "mixed", "p50_us", "loud", "quiet"), None);
        let met = |measured| at_most("x", "<= 2", 2.0, measured).met;
        assert_eq!((met(Some(2.0)), met(Some(2.1)), met(None)), (Some(true), Some(false), None));
    }
}

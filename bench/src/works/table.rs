//! A report of these works on the terminal.

use std::fmt::Write;

use crate::compare::table::bars;
use crate::results::Report;
use crate::values::{is_detail, number};

/// Medians of what matters first, a line each, then the bars.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for work in report.works() {
        for case in report.cases(work) {
            for system in report.systems(work) {
                let of_case = report.results.iter().filter(|m| m.work == work && m.case == case && m.system == system);
                let Some(first) = of_case.into_iter().next() else { continue };
                // Writing to a string does not fail.
                let bound = report.values(work, case, system, "load_bound").any(|bound| bound > 0.0);
                let _ = writeln!(text, "{work}, {case}{}", if bound { " (the load is at its end)" } else { "" });
                for key in first.values.keys().filter(|key| !is_detail(key)) {
                    if let Some(spread) = report.spread(work, case, system, key) {
                        let [min, median, max] = [spread.min, spread.median, spread.max].map(number);
                        let range = if min == max { String::new() } else { format!("  ({min} to {max})") };
                        let _ = writeln!(text, "    {key:24} {median:>12}{range}");
                    }
                }
            }
        }
    }
    let _ = write!(text, "\n{}", bars(&report.bars));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_and_bar_is_shown() {
        let report = crate::html::tests::report();
        let text = text(&report);
        for part in ["tcp, 1 stream up", "tcp, 16 streams <down>", "(21.0 to 23.0)", "<= 0.95 x haproxy", "MISSED"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

//! The tables of a work's values.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::escape;
use crate::results::{Report, Spread};
use crate::values;

/// A work's keys: what grows with good results first, then by name.
pub(super) fn keys<'a>(report: &'a Report, work: &str) -> Vec<&'a str> {
    let of_work = report.results.iter().filter(|measurement| measurement.work == work);
    let keys: BTreeSet<&str> = of_work.flat_map(|m| m.values.keys()).map(String::as_str).collect();
    let mut keys: Vec<&str> = keys.into_iter().collect();
    keys.sort_by_key(|key| values::better(key) != values::Better::More);
    keys
}

/// Medians, a row for each case and system.
pub(super) fn medians(page: &mut String, report: &Report, work: &str, keys: &[&str]) {
    table(page, report, work, keys, |cell, spread| {
        let _ = write!(cell, "{}", values::number(spread.median));
    });
}

/// Medians and ends.
pub(super) fn spreads(page: &mut String, report: &Report, work: &str, keys: &[&str]) {
    table(page, report, work, keys, |cell, Spread { min, median, max, .. }| {
        let [min, median, max] = [min, median, max].map(values::number);
        let _ = write!(cell, "{median} ({min} to {max})");
    });
}

fn table(page: &mut String, report: &Report, work: &str, keys: &[&str], write: impl Fn(&mut String, Spread)) {
    page.push_str("<div class=\"scroll\"><table><thead><tr><th>Case</th><th>System</th>");
    for key in keys {
        let _ = write!(page, "<th class=\"n\">{}</th>", escape(key));
    }
    page.push_str("</tr></thead><tbody>");
    for case in report.cases(work) {
        for system in report.systems(work) {
            let spreads: Vec<Option<Spread>> = keys.iter().map(|key| report.spread(work, case, system, key)).collect();
            if spreads.iter().all(Option::is_none) {
                continue;
            }
            let _ = write!(page, "<tr><td>{}</td><td>{}</td>", escape(case), escape(system));
            for spread in spreads {
                page.push_str("<td class=\"n\">");
                match spread {
                    Some(spread) => write(page, spread),
                    None => page.push('-'),
                }
                page.push_str("</td>");
            }
            page.push_str("</tr>");
        }
    }
    page.push_str("</tbody></table></div>");
}

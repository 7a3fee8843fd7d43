//! Results as text: medians by work, case and system; bars with their verdicts.

use std::fmt::Write;

use crate::results::{Bar, Report};

/// Heading, key, decimals.
type Column = (&'static str, &'static str, usize);

const TCP: &[Column] = &[
    ("Gbit/s", "gbit_s", 2),
    ("CPU-s per GB: W", "machine_s_per_gb", 3),
    ("relay", "relay_s_per_gb", 3),
    ("agent", "agent_s_per_gb", 3),
];
const SETUP: &[Column] = &[
    ("a second", "rate", 0),
    ("p50 us", "p50_us", 0),
    ("p99 us", "p99_us", 0),
    ("CPU-us each: W", "machine_us_per_connection", 1),
    ("relay", "relay_us_per_connection", 1),
    ("agent", "agent_us_per_connection", 1),
    ("failed", "failed", 0),
];
const PINGPONG: &[Column] = &[
    ("p50 us", "p50_us", 0),
    ("p99 us", "p99_us", 0),
    ("p99.9 us", "p999_us", 0),
    ("max us", "max_us", 0),
    ("CPU-us each: W", "machine_us_per_message", 1),
    ("relay", "relay_us_per_message", 1),
    ("agent", "agent_us_per_message", 1),
];
const UDP: &[Column] = &[
    ("echoes/s", "echo_rate", 0),
    ("loss %", "loss_percent", 2),
    ("p50 us", "rtt_p50_us", 0),
    ("p99 us", "rtt_p99_us", 0),
    ("CPU-us a datagram: W", "machine_us_per_datagram", 2),
    ("relay", "relay_us_per_datagram", 2),
    ("agent", "agent_us_per_datagram", 2),
];

/// The columns of the works that `compare` drives.
fn columns(work: &str) -> Option<(&'static str, &'static [Column])> {
    match work {
        "tcp" => Some(("Bulk TCP", TCP)),
        "setup" => Some(("New connections", SETUP)),
        "pingpong" => Some(("Ping-pong on an open connection", PINGPONG)),
        "udp" => Some(("UDP echoes, each two datagrams", UDP)),
        _ => None,
    }
}

/// Stands behind a system in whose case the load was at its own end in one round or more.
const BOUND: &str = " *";

/// A table of medians for each work, then what was skipped.
pub fn results(report: &Report) -> String {
    let mut text = String::new();
    let mut any_bound = false;
    for work in report.works() {
        let Some((title, columns)) = columns(work) else { continue };
        let header: Vec<String> =
            ["case", "system"].into_iter().chain(columns.iter().map(|c| c.0)).map(String::from).collect();
        let mut rows = vec![header];
        for case in report.cases(work) {
            for system in report.systems(work) {
                let cells = columns.iter().map(|&(_, key, decimals)| {
                    let median = report.median(work, case, system, key);
                    median.map(|median| format!("{median:.decimals$}"))
                });
                let cells: Vec<Option<String>> = cells.collect();
                if cells.iter().any(Option::is_some) {
                    let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "-".to_owned()));
                    let bound = report.values(work, case, system, "load_bound").any(|bound| bound > 0.0);
                    any_bound |= bound;
                    let system = format!("{system}{}", if bound { BOUND } else { "" });
                    rows.push([case.to_owned(), system].into_iter().chain(cells).collect());
                }
            }
        }
        // Writing to a string does not fail.
        let _ = write!(text, "{title}, {}\n{}\n", report.machine.congestion, align(&rows, 2));
    }
    if any_bound {
        text.push_str("* The load was at its own end, or late: the system may do more.\n");
    }
    for skipped in &report.skipped {
        let _ = writeln!(text, "skipped: {} {}: {}", skipped.system, skipped.work, skipped.why);
    }
    text
}

/// A table of bars.
pub fn bars(bars: &[Bar]) -> String {
    let mut rows = vec![["bar", "wanted", "measured", ""].map(String::from).to_vec()];
    // Those of other works and systems would hide the others.
    let (shown, left_out): (Vec<&Bar>, Vec<&Bar>) =
        bars.iter().partition(|bar| bar.measured.is_some() || bar.met.is_some() || bar.why.is_some());
    for bar in shown {
        let verdict = match (bar.met, &bar.why) {
            (Some(true), _) => "met".to_owned(),
            (Some(false), None) => "MISSED".to_owned(),
            (Some(false), Some(why)) => format!("MISSED: {why}"),
            (None, Some(why)) => format!("no verdict: {why}"),
            (None, None) => "no verdict".to_owned(),
        };
        let measured = bar.measured.map_or("-".to_owned(), |measured| format!("{measured:.3}"));
        rows.push(vec![bar.name.clone(), bar.bar.clone(), measured, verdict]);
    }
    let mut text = align(&rows, 2);
    if !left_out.is_empty() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} more bars are about works or systems that were not measured.", left_out.len());
    }
    text
}

/// Columns as wide as their widest cell; the first `left` and the last of texts to the left, figures to the right.
fn align(rows: &[Vec<String>], left: usize) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if at == 0 { "" } else { "  " };
            let _ = if at < left { write!(line, "{gap}{cell:width$}") } else { write!(line, "{gap}{cell:>width$}") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::results::{Measurement, Skipped};

    #[test]
    fn table_shows_medians_and_a_dash_for_what_is_missing() {
        let mut report = Report::begin("cubic");
        for (round, gbit_s) in [(1, 4.0), (2, 6.0), (3, 5.0)] {
            report.results.push(Measurement {
                work: "tcp".into(),
                case: "1 stream up".into(),
                system: "haproxy".into(),
                round,
                values: BTreeMap::from([("gbit_s".into(), gbit_s), ("relay_s_per_gb".into(), 0.5)]),
            });
        }
        report.skipped.push(Skipped { system: "nginx".into(), work: "all".into(), why: "not installed".into() });
        let text = results(&report);
        assert!(!text.contains('*'), "{text}");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["Bulk", "TCP,", "cubic"]);
        assert_eq!(lines[2], ["1", "stream", "up", "haproxy", "5.00", "-", "0.500", "-"]);
        assert!(text.contains("skipped: nginx all: not installed"));
        // Once is enough: a median would hide it.
        report.results[1].values.insert("load_bound".into(), 1.0);
        let text = results(&report);
        assert!(text.contains("haproxy *  ") && text.contains("* The load was at its own end"), "{text}");
    }

    #[test]
    fn bars_have_a_verdict_in_words() {
        let bar = |measured, met| Bar { name: "W".into(), bar: "<= 1".into(), limit: 1.0, measured, met, why: None };
        let lost = Bar { why: Some("2 % lost".into()), ..bar(None, None) };
        let slow = Bar { why: Some("3 % lost".into()), ..bar(None, Some(false)) };
        let text = bars(&[bar(Some(0.5), Some(true)), bar(Some(2.0), Some(false)), bar(None, None), lost, slow]);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert!(lines[0].contains(" 0.500 ") && lines[0].ends_with(" met"), "{text}");
        assert!(lines[1].ends_with("MISSED") && lines[2].ends_with("no verdict: 2 % lost"), "{text}");
        assert!(lines[3].ends_with("MISSED: 3 % lost") && lines[4].starts_with("1 more bars"), "{text}");
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "100".to_owned()]];
        assert_eq!(align(&rows, 1), "a       1\nlong  100\n");
    }
}

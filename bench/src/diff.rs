//! Two runs side by side: medians, the change in percent, and whether it is more than the rounds differ among themselves.

use std::fmt::{self, Write};

use crate::results::{Measurement, Report, Spread};
use crate::values::{self, Better};

/// One value in both runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Kind of load.
    pub work: String,
    /// Its variant.
    pub case: String,
    /// What carried it.
    pub system: String,
    /// Which value.
    pub key: String,
    /// In the first run.
    pub before: Spread,
    /// In the second.
    pub after: Spread,
}

impl Change {
    /// The median's change in percent of the first run's; infinite where that is 0 and the other is not.
    pub fn percent(&self) -> f64 {
        let (before, after) = (self.before.median, self.after.median);
        if before == after { 0.0 } else { (after - before) / before.abs() * 100.0 }
    }

    /// Whether no round of one run lies within those of the other. One round has no spread, and tells nothing of chance.
    pub fn is_beyond_spread(&self) -> bool {
        self.has_spread() && (self.after.min > self.before.max || self.after.max < self.before.min)
    }

    /// Whether both runs have more than one round of it.
    pub fn has_spread(&self) -> bool {
        self.before.rounds > 1 && self.after.rounds > 1
    }

    /// Whether it is Isthmus' own, and not a peer's or a ceiling's.
    pub fn is_ours(&self) -> bool {
        is_ours(&self.system)
    }

    /// By how many percent it is worse; negative where it is better, 0 where neither way is.
    pub fn worse_percent(&self) -> f64 {
        match values::better(&self.key) {
            Better::More => -self.percent(),
            Better::Less => self.percent(),
            Better::Neither => 0.0,
        }
    }

    /// Whether Isthmus is worse by more than `percent`, and not by the rounds' chance. What peers and ceilings do is not ours.
    pub fn is_worse_than(&self, percent: f64) -> bool {
        self.is_ours() && self.is_beyond_spread() && self.worse_percent() > percent
    }
}

/// What both runs have: of each work, case and system, the values that matter first, or all.
pub fn changes(before: &Report, after: &Report, all: bool) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for measurement in &before.results {
        let (work, case, system) = (&measurement.work, &measurement.case, &measurement.system);
        for key in measurement.values.keys().filter(|key| all || !values::is_detail(key)) {
            let known = |change: &Change| {
                change.key == *key && change.system == *system && change.case == *case && change.work == *work
            };
            if changes.iter().any(known) {
                continue;
            }
            let spreads = (before.spread(work, case, system, key), after.spread(work, case, system, key));
            if let (Some(before), Some(after)) = spreads {
                let [work, case, system, key] = [work, case, system, key].map(Clone::clone);
                changes.push(Change { work, case, system, key, before, after });
            }
        }
    }
    changes
}

/// A case that only the first run has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    work: String,
    case: String,
    system: String,
}

impl Missing {
    /// Whether it is Isthmus that was not measured again.
    pub fn is_ours(&self) -> bool {
        is_ours(&self.system)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", printable(&format!("{}, {}, {}", self.work, self.case, self.system)))
    }
}

/// What was measured before and is not in the second run, of the works that it has: a system that ended, or was left out.
pub fn missing(before: &Report, after: &Report) -> Vec<Missing> {
    let mut missing: Vec<Missing> = Vec::new();
    for Measurement { work, case, system, .. } in &before.results {
        let there = |m: &Measurement| m.work == *work && m.case == *case && m.system == *system;
        let known = |m: &Missing| m.work == *work && m.case == *case && m.system == *system;
        let of_work = after.works().contains(&work.as_str());
        if of_work && !after.results.iter().any(there) && !missing.iter().any(known) {
            missing.push(Missing { work: work.clone(), case: case.clone(), system: system.clone() });
        }
    }
    missing
}

fn is_ours(system: &str) -> bool {
    system.starts_with("isthmus")
}

/// Names are from a file, which may be anybody's: none of them shall move the terminal's cursor.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A table for the terminal. A `*` marks changes beyond the rounds' spread, with the word for which way they go.
pub fn table(changes: &[Change]) -> String {
    let mut table = String::new();
    let name = |change: &Change| printable(&format!("{}, {}, {}", change.work, change.case, change.system));
    let width = changes.iter().map(|change| name(change).chars().count()).max().unwrap_or(0).max(4);
    let key_width = changes.iter().map(|change| change.key.len()).max().unwrap_or(0).max(3);
    // Writing to a string does not fail.
    let _ =
        writeln!(table, "{:width$}  {:key_width$}  {:>12}  {:>12}  {:>9}", "case", "key", "before", "after", "change");
    for change in changes {
        let mark = match (change.is_beyond_spread(), change.worse_percent()) {
            (false, _) => "",
            (true, worse) if worse > 0.0 => " * worse",
            (true, worse) if worse < 0.0 => " * better",
            (true, _) => " *",
        };
        let (before, after) = (values::number(change.before.median), values::number(change.after.median));
        let (name, key, percent) = (name(change), printable(&change.key), change.percent());
        let _ = writeln!(table, "{name:width$}  {key:key_width$}  {before:>12}  {after:>12}  {percent:>+7.1} %{mark}");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::html::tests::report;

    fn change(key: &str, before: [f64; 3], after: [f64; 3]) -> Change {
        let spread = |[min, median, max]: [f64; 3]| Spread { min, median, max, rounds: 3 };
        let [work, case, system] = ["tcp", "1 stream up", "isthmus"].map(str::to_owned);
        Change { work, case, system, key: key.into(), before: spread(before), after: spread(after) }
    }

    #[test]
    fn change_is_worse_by_its_unit_and_beyond_the_spread_only() {
        let slower = change("gbit_s", [9.0, 10.0, 11.0], [7.0, 8.0, 8.9]);
        assert!(slower.is_worse_than(19.9) && !slower.is_worse_than(20.1));
        assert!(!change("gbit_s", [9.0, 10.0, 11.0], [7.0, 8.0, 9.0]).is_beyond_spread());
        let dearer = change("p50_us", [9.0, 10.0, 11.0], [12.0, 12.0, 13.0]);
        assert_eq!((dearer.worse_percent(), dearer.is_beyond_spread()), (20.0, true));
        assert!(change("p50_us", [9.0, 10.0, 11.0], [7.0, 8.0, 8.0]).worse_percent() < 0.0);
        assert_eq!(change("bytes", [1.0; 3], [2.0; 3]).worse_percent(), 0.0);
        assert!(change("loss_percent", [0.0; 3], [1.0; 3]).is_worse_than(1e9));
        assert_eq!(change("loss_percent", [0.0; 3], [0.0; 3]).percent(), 0.0);
    }

    #[test]
    fn single_round_is_no_verdict_and_a_peer_s_change_is_not_ours() {
        let slower = change("gbit_s", [9.0, 10.0, 11.0], [7.0, 8.0, 8.9]);
        for (before, after) in [(1, 3), (3, 1)] {
            let mut once = slower.clone();
            (once.before.rounds, once.after.rounds) = (before, after);
            assert!(!once.is_beyond_spread() && !once.is_worse_than(0.0));
        }
        let ceiling = Change { system: "direct".into(), ..slower };
        assert!(ceiling.is_beyond_spread() && !ceiling.is_worse_than(0.0));
    }

    #[test]
    fn what_both_have_is_compared_once() {
        let before = report();
        let mut after = before.clone();
        after.results.retain(|measurement| measurement.system == "isthmus");
        for measurement in &mut after.results {
            *measurement.values.get_mut("gbit_s").unwrap() *= 2.0;
        }
        let found = changes(&before, &after, false);
        assert_eq!(found.len(), 2 * 2, "{found:?}");
        assert_eq!(changes(&before, &after, true).len(), 2 * 3);
        let peers = missing(&before, &after);
        assert!(!peers.is_empty() && peers.iter().all(|case| !case.is_ours()), "{peers:?}");
        let ours = missing(&before, &Report { results: before.results[..1].to_vec(), ..after.clone() });
        assert!(ours.iter().any(Missing::is_ours), "{ours:?}");
        assert!(missing(&before, &before).is_empty() && missing(&before, &Report::begin("cubic")).is_empty());
        assert_eq!(printable("a\u{1b}[31m"), "a?[31m");
        let table = table(&found);
        assert!(table.contains("tcp, 1 stream up, isthmus"), "{table}");
        assert!(table.lines().any(|line| line.contains("gbit_s") && line.ends_with("+100.0 % * better")), "{table}");
        assert!(table.lines().any(|line| line.contains("w_s_per_gb") && line.ends_with("+0.0 %")), "{table}");
    }
}

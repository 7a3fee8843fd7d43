//! The model of a run's results: what `compare` and the works write, and what reports and differences are made of.
//!
//! It is JSON, versioned by [`SCHEMA`]. Values are kept as they were measured, one [`Measurement`] for each round;
//! whoever shows them takes medians ([`Report::median`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::file;

/// What this version writes, and the only one that it reads.
pub const SCHEMA: &str = "isthmus-bench/1";

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// When it was begun, as in RFC 3339.
    pub created: String,
    /// Where.
    pub machine: Machine,
    /// The command line.
    pub command: String,
    /// Everything that was measured, in the order of time.
    pub results: Vec<Measurement>,
    /// What was not, and why.
    pub skipped: Vec<Skipped>,
    /// What was to be reached, and whether it was.
    pub bars: Vec<Bar>,
    /// What others used of the machine between the measurements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<Background>,
}

/// The machine that everything ran on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Processors of the system.
    pub cores: usize,
    /// Memory in GiB, rounded.
    pub memory_gib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Version of the compiler that is installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rustc: Option<String>,
    /// TCP congestion control on every route of the run.
    pub congestion: String,
}

/// One system at one case of one work, in one round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Kind of load: `tcp`, `udp`, `setup` …
    pub work: String,
    /// Which of its variants: `16 streams up`, `200 B, 1 flow, max` …
    pub case: String,
    /// What carried the load: `isthmus`, `haproxy` …
    pub system: String,
    /// From 1.
    pub round: u32,
    /// By key; keys end in their unit.
    pub values: BTreeMap<String, f64>,
}

/// A system, or one work of it, that was not measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The system.
    pub system: String,
    /// The work and case, or `all`.
    pub work: String,
    /// The reason, and what would help.
    pub why: String,
}

/// What was to be reached: a ratio inside this run, or a figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// What is compared.
    pub name: String,
    /// The bar in words: `<= 0.36 x rathole-tls`.
    pub bar: String,
    /// Its number.
    pub limit: f64,
    /// What was measured, at the worst of its cases; `None` where something was not measured.
    pub measured: Option<f64>,
    /// Whether it is reached.
    pub met: Option<bool>,
    /// Why there is no verdict, where something was measured that does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// CPU time of others, in percent of one core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Background {
    /// The median of the looks.
    pub median_percent: f64,
    /// The largest.
    pub max_percent: f64,
}

/// Least, middle and greatest of a value's rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The greatest.
    pub max: f64,
    /// Of so many rounds.
    pub rounds: usize,
}

/// What every version of a report has.
#[derive(Deserialize)]
struct Version {
    schema: String,
}

impl Report {
    /// An empty report of a run that begins now, on this machine, by this process's command line.
    pub fn begin(congestion: &str) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            created: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            machine: Machine::this(congestion),
            command: command_line(std::env::args()),
            results: Vec::new(),
            skipped: Vec::new(),
            bars: Vec::new(),
            background: None,
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is no report, or is of another version.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let none = || format!("{} is no result of isthmus-bench --json", path.display());
        let Version { schema } = serde_json::from_slice(&text).with_context(none)?;
        ensure!(
            schema == SCHEMA,
            "{} has the schema '{schema}', and this program reads '{SCHEMA}': measure again",
            path.display()
        );
        serde_json::from_slice(&text).with_context(none)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        file::write(path, &text)
    }

    /// All rounds' values of a key, in the order of time.
    pub fn values<'a>(
        &'a self,
        work: &'a str,
        case: &'a str,
        system: &'a str,
        key: &'a str,
    ) -> impl Iterator<Item = f64> + 'a {
        let of = move |m: &&Measurement| m.work == work && m.case == case && m.system == system;
        self.results.iter().filter(of).filter_map(move |m| m.values.get(key).copied())
    }

    /// The median over the rounds; `None` where nothing was measured.
    pub fn median(&self, work: &str, case: &str, system: &str, key: &str) -> Option<f64> {
        self.spread(work, case, system, key).map(|spread| spread.median)
    }

    /// The median over the rounds and the ends.
    pub fn spread(&self, work: &str, case: &str, system: &str, key: &str) -> Option<Spread> {
        let mut values: Vec<f64> = self.values(work, case, system, key).collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        Some(Spread { min, median: middle(&values), max, rounds: values.len() })
    }

    /// The median of the rounds' ratios of one case and system by another, over the rounds that have both; `None` without
    /// one that says something. Whatever makes the machine slower for a while changes both of a round, and the ratio little.
    pub fn ratio(&self, work: &str, key: &str, of: (&str, &str), by: (&str, &str)) -> Option<f64> {
        let mut ratios: Vec<f64> = self.ratios(work, key, of, by).collect();
        ratios.sort_by(f64::total_cmp);
        (!ratios.is_empty()).then(|| middle(&ratios))
    }

    /// Those ratios, in the order of time; nothing divided by nothing, where a clock was too coarse, is left out.
    pub fn ratios<'a>(
        &'a self,
        work: &'a str,
        key: &'a str,
        of: (&'a str, &'a str),
        by: (&'a str, &'a str),
    ) -> impl Iterator<Item = f64> + 'a {
        let at = move |m: &Measurement, (case, system)| m.work == work && m.case == case && m.system == system;
        self.results.iter().filter(move |m| at(m, of)).filter_map(move |m| {
            let base = self.results.iter().find(|other| at(other, by) && other.round == m.round)?;
            let ratio = m.values.get(key)? / base.values.get(key)?;
            ratio.is_finite().then_some(ratio)
        })
    }

    /// The works, each once, in the order of time.
    pub fn works(&self) -> Vec<&str> {
        distinct(self.results.iter().map(|m| m.work.as_str()))
    }

    /// A work's cases, each once, in the order of time.
    pub fn cases(&self, work: &str) -> Vec<&str> {
        distinct(self.results.iter().filter(|m| m.work == work).map(|m| m.case.as_str()))
    }

    /// A work's systems, each once, in the order of time.
    pub fn systems(&self, work: &str) -> Vec<&str> {
        distinct(self.results.iter().filter(|m| m.work == work).map(|m| m.system.as_str()))
    }
}

impl Machine {
    /// What the system says of itself; what it does not say is empty.
    pub fn this(congestion: &str) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
            line.and_then(|line| line.split_once(':').map(|(_, value)| value.trim().to_owned())).unwrap_or_default()
        };
        let kib = field(&read("/proc/meminfo"), "MemTotal").split(' ').next().and_then(|word| word.parse::<u64>().ok());
        let rustc = Command::new("rustc").arg("--version").output().ok().filter(|output| output.status.success());
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib.unwrap_or_default() + (1 << 19)) >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            rustc: rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            congestion: congestion.to_owned(),
        }
    }
}

/// The median of sorted values, of which there is at least one.
pub(crate) fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

/// The program without its folder, which tells nothing to a reader elsewhere.
fn command_line(words: impl Iterator<Item = String>) -> String {
    let quoted = |word: String| if word.contains(char::is_whitespace) { format!("'{word}'") } else { word };
    let mut words = words.map(quoted);
    let program = words.next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    std::iter::once(program).chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(case: &str, system: &str, round: u32, value: f64) -> Measurement {
        let (work, case, system) = ("tcp".to_owned(), case.to_owned(), system.to_owned());
        Measurement { work, case, system, round, values: BTreeMap::from([("gbit_s".to_owned(), value)]) }
    }

    fn report() -> Report {
        let mut report = Report::begin("cubic");
        let rounds = [(1, 5.0), (2, 1.0), (3, 2.0), (4, 4.0)];
        report.results = rounds.map(|(round, value)| measurement("1 stream up", "isthmus", round, value)).into();
        report.results.push(measurement("1 stream up", "haproxy", 1, 7.0));
        report.results.push(measurement("1 stream down", "isthmus", 1, 9.0));
        report
    }

    #[test]
    fn medians_are_of_one_work_case_system_and_key() {
        let report = report();
        let spread = report.spread("tcp", "1 stream up", "isthmus", "gbit_s");
        assert_eq!(spread, Some(Spread { min: 1.0, median: 3.0, max: 5.0, rounds: 4 }));
        assert_eq!(report.median("tcp", "1 stream up", "haproxy", "gbit_s"), Some(7.0));
        for missing in [["udp", "1 stream up", "isthmus", "gbit_s"], ["tcp", "1 stream up", "isthmus", "bytes"]] {
            assert_eq!(report.median(missing[0], missing[1], missing[2], missing[3]), None);
        }
        assert_eq!(report.cases("tcp"), ["1 stream up", "1 stream down"]);
        assert_eq!(report.systems("tcp"), ["isthmus", "haproxy"]);
        assert_eq!(report.works(), ["tcp"]);
    }

    #[test]
    fn ratio_is_the_median_of_the_rounds_that_have_both() {
        let mut report = Report::begin("cubic");
        // The machine is four times as slow in the last round, for both; a round with one of them does not count.
        for (round, ours, theirs) in [(1, 2.0, 4.0), (2, 3.0, 5.0), (3, 8.0, 20.0)] {
            report.results.push(measurement("1 stream up", "isthmus", round, ours));
            report.results.push(measurement("1 stream up", "haproxy", round, theirs));
        }
        report.results.push(measurement("1 stream up", "isthmus", 4, 99.0));
        let ratio = |case, other| report.ratio("tcp", "gbit_s", (case, "isthmus"), (case, other));
        assert_eq!(ratio("1 stream up", "haproxy"), Some(0.5));
        assert_eq!(ratio("1 stream up", "nginx"), None);
        let mut idle = Report::begin("cubic");
        idle.results.extend(["isthmus", "haproxy"].map(|system| measurement("x", system, 1, 0.0)));
        assert_eq!(idle.ratio("tcp", "gbit_s", ("x", "isthmus"), ("x", "haproxy")), None);
    }

    #[test]
    fn report_comes_back_from_its_file() {
        let mut report = report();
        report.skipped.push(Skipped { system: "nginx".into(), work: "all".into(), why: "absent".into() });
        report.bars.push(Bar {
            name: "W".into(),
            bar: "<= 1".into(),
            limit: 1.0,
            measured: Some(0.5),
            met: Some(true),
            why: None,
        });
        report.bars.push(Bar { name: "X".into(), bar: "<= 1".into(), limit: 1.0, ..Bar::default() });
        report.background = Some(Background { median_percent: 1.5, max_percent: 4.0 });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        report.save(&path).unwrap();
        assert_eq!(Report::load(&path).unwrap(), report);
    }

    #[test]
    fn other_schemas_and_other_files_are_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        let mut report = report();
        report.schema = "isthmus-bench/0".into();
        report.save(&path).unwrap();
        assert!(format!("{:#}", Report::load(&path).unwrap_err()).contains("measure again"));
        // Whatever else an older one lacks.
        fs::write(&path, r#"{"schema":"isthmus-bench/0"}"#).unwrap();
        assert!(format!("{:#}", Report::load(&path).unwrap_err()).contains("measure again"));
        fs::write(&path, "{}").unwrap();
        assert!(format!("{:#}", Report::load(&path).unwrap_err()).contains("is no result"));
    }

    #[test]
    fn command_line_can_be_read_and_repeated_elsewhere() {
        let words = ["/somewhere/isthmus-bench", "compare", "--cases", "16 streams"].map(str::to_owned);
        assert_eq!(command_line(words.into_iter()), "isthmus-bench compare --cases '16 streams'");
    }
}

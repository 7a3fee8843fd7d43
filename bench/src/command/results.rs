//! `report` and `diff`: what becomes of a run's JSON.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use isthmus_bench::console::{note, put};
use isthmus_bench::results::Report;
use isthmus_bench::{diff, file, html};

#[derive(Debug, Args)]
pub(super) struct Render {
    /// What --json wrote
    #[arg(value_name = "RUN.JSON")]
    run: PathBuf,
    /// Where the page goes
    #[arg(long, value_name = "FILE")]
    html: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Diff {
    /// What --json wrote before
    #[arg(value_name = "BEFORE.JSON")]
    before: PathBuf,
    /// And after
    #[arg(value_name = "AFTER.JSON")]
    after: PathBuf,
    /// Every value, and not only those that matter first
    #[arg(long)]
    all: bool,
    /// End with status 1 when a median of Isthmus is worse by more than that, beyond the rounds' spread, or is missing
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    fail_on_worse: Option<f64>,
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse::<f64>().ok().filter(|percent| percent.is_finite() && *percent >= 0.0);
    percent.ok_or_else(|| "write a number from 0 on".to_owned())
}

pub(super) fn render(args: &Render) -> anyhow::Result<ExitCode> {
    write_page(&Report::load(&args.run)?, &args.html)?;
    Ok(ExitCode::SUCCESS)
}

/// Where a run is written to.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    pub(super) json: Option<&'a Path>,
    pub(super) html: Option<&'a Path>,
}

impl Files<'_> {
    /// Whether they can be written: a run takes minutes, and its end is late for that.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn check(self) -> anyhow::Result<()> {
        [self.json, self.html].into_iter().flatten().try_for_each(file::check)
    }

    /// Writes each of them, whatever becomes of the other, and says where it is. Before anything is printed: what was
    /// measured is not lost with a closed pipe.
    ///
    /// # Errors
    /// The system's, of the first that fails.
    pub(super) fn save(self, report: &Report) -> anyhow::Result<()> {
        let json = self.json.map_or(Ok(()), |path| report.save(path));
        let html = self.html.map_or(Ok(()), |path| write_page(report, path));
        json.and(html)
    }
}

/// Writes a run's page, and says where.
fn write_page(report: &Report, path: &Path) -> anyhow::Result<()> {
    file::write(path, html::page(report)?.as_bytes())?;
    note(format_args!("the report is in {}", path.display()));
    Ok(())
}

pub(super) fn diff(args: &Diff) -> anyhow::Result<ExitCode> {
    let (before, after) = (Report::load(&args.before)?, Report::load(&args.after)?);
    let changes = diff::changes(&before, &after, args.all);
    ensure!(!changes.is_empty(), "the two runs have no case in common: nothing can be compared");
    put(format_args!("{}", diff::table(&changes)));
    if before.machine != after.machine {
        note(format_args!("the runs are from machines or settings that differ: changes may be theirs"));
    }
    let missing = diff::missing(&before, &after);
    for case in &missing {
        note(format_args!("only in {}: {case}", args.before.display()));
    }
    let gone = args.fail_on_worse.is_some() && missing.iter().any(diff::Missing::is_ours);
    if args.fail_on_worse.is_some() && !gone {
        let ours = changes.iter().filter(|change| change.is_ours());
        let once = ours.clone().filter(|change| !change.has_spread()).count();
        ensure!(
            ours.clone().any(diff::Change::has_spread),
            "--fail-on-worse: no value of Isthmus has two rounds in both runs, so that none can be judged; give --rounds 3"
        );
        if once > 0 {
            note(format_args!("{once} values of Isthmus have one round only, and are not judged"));
        }
    }
    let worse = args.fail_on_worse.map_or(0, |percent| changes.iter().filter(|c| c.is_worse_than(percent)).count());
    if worse > 0 {
        note(format_args!("{worse} values are worse by more than {} %", args.fail_on_worse.unwrap_or_default()));
    }
    Ok(if worse > 0 || gone { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

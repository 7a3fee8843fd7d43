//! `report` and `diff`: what becomes of a run's JSON.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use isthmus_bench::results::Report;
use isthmus_bench::{diff, html};

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
    /// End with status 1 when a median of Isthmus is worse by more than that, beyond the rounds' spread
    #[arg(long, value_name = "PERCENT")]
    fail_on_worse: Option<f64>,
}

pub(super) fn render(args: &Render) -> anyhow::Result<ExitCode> {
    write_page(&Report::load(&args.run)?, &args.html)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a run's page, and says where.
pub(super) fn write_page(report: &Report, file: &Path) -> anyhow::Result<()> {
    let page = html::page(report)?;
    fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("the report is in {}", file.display());
    Ok(())
}

pub(super) fn diff(args: &Diff) -> anyhow::Result<ExitCode> {
    let (before, after) = (Report::load(&args.before)?, Report::load(&args.after)?);
    let changes = diff::changes(&before, &after, args.all);
    ensure!(!changes.is_empty(), "the two runs have no case in common: nothing can be compared");
    print!("{}", diff::table(&changes));
    if before.machine != after.machine {
        eprintln!("the runs are from machines or settings that differ: changes may be theirs");
    }
    let worse = args.fail_on_worse.map_or(0, |percent| changes.iter().filter(|c| c.is_worse_than(percent)).count());
    if worse > 0 {
        eprintln!("{worse} values are worse by more than {} %", args.fail_on_worse.unwrap_or_default());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

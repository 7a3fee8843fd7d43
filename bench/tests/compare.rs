//! `compare` from its command line to its files, on the ceilings, which need no other program.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use isthmus_bench::results::Report;
use isthmus_bench::world::find;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);

/// Whether a world can be made; says so where it cannot.
fn can_run() -> bool {
    let can =
        rustix::process::geteuid().is_root() && ["ip", "nft", "conntrack"].iter().all(|tool| find(tool).is_some());
    if !can {
        eprintln!("skipped: needs root, and ip, nft and conntrack");
    }
    can
}

/// The namespaces that a process has made and that still are there.
fn namespaces(pid: u32) -> usize {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return 0 };
    let prefix = format!("isb{pid}-");
    entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
}

#[test]
fn systems_are_measured_round_by_round_and_the_absent_one_is_skipped_with_a_word() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (json, html) = (folder.path().join("run.json"), folder.path().join("run.html"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-bench"));
    command.args(["compare", "--works", "setup,pingpong", "--cases", "64 B, 2000", "--cases", "setup 1 at once"]);
    command.args([
        "--systems",
        "direct,dnat,plain-hops,rathole",
        "--rathole",
        "/nowhere/rathole",
        "--rounds",
        "2",
        "--seconds",
        "1",
    ]);
    command.arg("--bars").arg("--json").arg(&json).arg("--html").arg(&html);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let (text, words) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words}");

    let report = Report::load(&json).unwrap();
    assert_eq!(report.works(), ["setup", "pingpong"], "{words}");
    for (work, case, key) in [("setup", "1 at once", "rate"), ("pingpong", "64 B, 2000 a second", "p99_us")] {
        for system in ["direct", "dnat", "plain-hops"] {
            assert_eq!(
                report.values(work, case, system, key).filter(|value| *value > 0.0).count(),
                2,
                "{work} {words}"
            );
        }
    }
    // Every second round begins with another system.
    let order: Vec<&str> = report.results.iter().map(|m| m.system.as_str()).collect();
    let (first, second) = (["plain-hops", "direct", "dnat"], ["direct", "dnat", "plain-hops"]);
    assert_eq!(order, [first, first, second, second].concat());
    assert!(report.skipped.iter().any(|s| s.system == "rathole" && s.why.contains("no such file")), "{words}");
    assert!(report.bars.iter().all(|bar| bar.met.is_none()) && text.contains("not measured"), "{text}");
    assert!(text.contains("New connections, cubic") && text.contains("skipped: rathole all"), "{text}");
    assert!(html.metadata().unwrap().len() > 0 && report.background.is_some());
    assert_eq!(namespaces(pid), 0);
}

#[test]
fn interrupted_run_leaves_no_namespace() {
    if !can_run() {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-bench"));
    command.args(["compare", "--works", "pingpong", "--systems", "dnat", "--seconds", "600", "--rounds", "1"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while namespaces(child.id()) < 5 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no world was made");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it did not end when asked to");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(namespaces(child.id()), 0);
}

//! Man pages and completions that the real programs make of themselves, judged by the programs that read them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use isthmus_e2e::{have, program};
use tempfile::TempDir;

const PROGRAMS: [&str; 3] = ["isthmus-relay", "isthmus-agent", "isthmus"];

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Ended well and without a word of complaint.
#[track_caller]
fn clean(command: &mut Command) -> String {
    let output = run(command);
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && complaint.is_empty(), "{command:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

fn completions(name: &str, shell: &str, dir: &Path) -> String {
    let script = clean(Command::new(program(name)).args(["completions", shell]));
    let path = dir.join(format!("{name}.{shell}"));
    fs::write(&path, script).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn completion_scripts_are_valid_for_each_shell() {
    let dir = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish"].into_iter().filter(|shell| have(shell)) {
        for name in PROGRAMS {
            let path = completions(name, shell, dir.path());
            clean(Command::new(shell).args(["-n", &path]));
        }
    }
}

#[test]
fn bash_completes_flags_and_subcommands() {
    if !have("bash") {
        return;
    }
    let dir = TempDir::new().unwrap();
    // What bash does at the Tab key: COMP_WORDS and COMP_CWORD in, COMPREPLY out.
    let complete = |name: &str, words: &[&str]| {
        let path = completions(name, "bash", dir.path());
        let script = "source $0; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMP_LINE=\"$*\"
            f=$(complete -p \"$1\" | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f \"$1\" \"${@: -1}\" \"${@: -2:1}\"; echo \"${COMPREPLY[*]}\"";
        clean(Command::new("bash").args(["-c", script, &path, name]).args(words)).trim().to_owned()
    };
    assert_eq!(complete("isthmus-relay", &["--publish-a"]), "--publish-allow");
    assert_eq!(complete("isthmus-relay", &["ctl", "--stats"]), "--stats-socket");
    assert_eq!(complete("isthmus-relay", &["enr"]), "enroll");
    assert_eq!(complete("isthmus-agent", &["--token-f"]), "--token-file");
    assert_eq!(complete("isthmus", &["forw"]), "forward");
    assert_eq!(complete("isthmus", &["listen", "--obl"]), "--obligatory");
    assert_eq!(complete("isthmus", &["completions", "fi"]), "fish");
}

#[test]
fn man_pages_name_every_flag_and_are_free_of_warnings() {
    for name in PROGRAMS {
        let dir = TempDir::new().unwrap();
        clean(Command::new(program(name)).arg("man").arg(dir.path()));
        let pages: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(pages.contains(&dir.path().join(format!("{name}.1"))), "{pages:?}");
        assert!(pages.len() > 2, "{pages:?}");
        let top = fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap().replace('\\', "");
        let help = clean(Command::new(program(name)).arg("--help"));
        let flags = help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        for flag in flags.map(|flag| flag.trim_end_matches(|c: char| !c.is_ascii_alphanumeric())) {
            assert!(top.contains(flag), "{name}.1 lacks {flag}");
        }
        for page in &pages {
            if have("man") {
                clean(Command::new("man").args(["-l", "--warnings", "-E", "UTF-8"]).arg(page).env("MANROFFSEQ", ""));
            }
            if have("mandoc") {
                let lint = run(Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(page));
                let lint = String::from_utf8_lossy(&lint.stdout).into_owned();
                // A page has no date, so that the same source gives the same bytes; a break beside a blank line is harmless.
                let known = |line: &&str| !line.contains("date") && !line.contains("skipping paragraph macro");
                let found: Vec<_> = lint.lines().filter(known).collect();
                assert!(found.is_empty(), "{found:?}");
            }
        }
    }
}

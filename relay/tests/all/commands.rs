//! The binary's subcommands, from a shell's side.

use std::path::Path;
use std::process::{Command, Output};

use crate::common::{Plane, row};
use isthmus_proto::ShardId;
use isthmus_relay::admin::Limits;

fn relay(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-relay"));
    for name in ["ISTHMUS_STATE", "ISTHMUS_STATS_SOCKET"] {
        command.env_remove(name);
    }
    command.args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ctl(socket: &Path, command: &[&str]) -> Output {
    relay(&[&["ctl", "--stats-socket", socket.to_str().unwrap()], command].concat())
}

#[test]
fn ctl_prints_the_answer_and_its_exit_code_tells_errors() {
    let plane = Plane::start(2, vec![row("cpe-1", ShardId(0))], Limits::default());
    let good = ctl(&plane.path, &["show", "tunnels", "json"]);
    assert!(good.status.success());
    let json: serde_json::Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(json["tunnels"][0]["id"], "cpe-1");

    let bad = ctl(&plane.path, &["kill tunnel cpe-2"]);
    assert_eq!((bad.status.code(), text(&bad.stdout).as_str()), (Some(1), "error: no tunnel of cpe-2\n"));

    let both = ctl(&plane.path, &["help;", "kill", "tunnel", "cpe-1;", "quit"]);
    assert!(both.status.success(), "{both:?}");
    assert!(text(&both.stdout).ends_with("\n\ntunnel of cpe-1 killed\n"));
    plane.stop();
}

#[test]
fn ctl_finds_the_socket_in_the_state_directory_and_says_when_no_relay_runs() {
    let plane = Plane::start(1, Vec::new(), Limits::default());
    let dir = plane.path.parent().unwrap().to_owned();
    let state = dir.to_str().unwrap();
    assert!(relay(&["ctl", "--state", state, "help"]).status.success());
    let copy = tempfile::tempdir().unwrap();
    let none = relay(&["ctl", "--state", copy.path().to_str().unwrap(), "help"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("no relay runs"), "{none:?}");
    plane.stop();
}

#[test]
fn fingerprint_and_token_make_the_state_and_agree_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let state = state.to_str().unwrap();
    let first = relay(&["fingerprint", "--state", state]);
    assert!(first.status.success() && text(&first.stdout).starts_with("SHA256:"), "{first:?}");
    let token = relay(&["token", "--state", state, "--mediator", "cpe-1"]);
    assert!(token.status.success(), "{token:?}");
    assert_eq!(text(&token.stdout).trim().split('.').count(), 3);
    assert_eq!(relay(&["fingerprint", "--state", state]).stdout, first.stdout);
}

#[test]
fn failures_go_to_standard_error_with_the_cure() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    relay(&["fingerprint", "--state", state.to_str().unwrap()]);
    std::fs::remove_file(state.join("token.key")).unwrap();
    let output = relay(&["token", "--state", state.to_str().unwrap(), "--mediator", "cpe-1"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(text(&output.stderr).contains("token.key missing"), "{output:?}");

    let usage = relay(&["--listen", "x"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(text(&usage.stderr).contains("--listen"), "{usage:?}");
}

//! Four places of a setting, and which of them counts.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use isthmus_settings::{Rules, parse_with};

#[derive(Debug, Parser)]
#[command(name = "program", subcommand_negates_reqs = true)]
struct Program {
    #[command(subcommand)]
    command: Option<Sub>,
    /// Where the settings are
    #[arg(long)]
    config: Option<PathBuf>,
    /// Needed
    #[arg(long, required = true)]
    state: Option<PathBuf>,
    /// A number
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..100))]
    port_count: u32,
    /// A list
    #[arg(long)]
    publish: Vec<String>,
    /// A list with commas
    #[arg(long, value_delimiter = ',')]
    allow: Vec<u8>,
    /// A switch
    #[arg(long, conflicts_with_all = ["pin", "ca"])]
    plaintext: bool,
    /// One way
    #[arg(long, conflicts_with = "ca")]
    pin: Option<String>,
    /// Another way
    #[arg(long)]
    ca: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Sub {
    Other,
}

fn run(line: &str, environment: &[(&str, &str)], file: Option<&str>) -> Result<Program, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    let mut words: Vec<OsString> = std::iter::once("program").chain(line.split_whitespace()).map(Into::into).collect();
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
        words.splice(1..1, ["--config".into(), path.into_os_string()]);
    }
    let environment = |name: &str| {
        let found = environment.iter().find(|(n, _)| *n == name)?;
        Some(OsString::from(found.1))
    };
    parse_with(words, Rules::default(), &environment).map_err(|error| error.to_string())
}

#[test]
fn flag_counts_more_than_environment_than_file_than_default() {
    let file = Some("state = \"/f\"\nport_count = 3\npublish = [\"f1\", \"f2\"]\n");
    let environment = [("ISTHMUS_PORT_COUNT", "4"), ("ISTHMUS_PUBLISH", "e1  e2"), ("ISTHMUS_STATE", "/e")];
    let of = |program: Program| (program.state.unwrap(), program.port_count, program.publish.join(","));
    let (f, e, d) = (PathBuf::from("/f"), PathBuf::from("/e"), PathBuf::from("/d"));
    assert_eq!(of(run("--state /d", &[], None).unwrap()), (d.clone(), 7, String::new()));
    assert_eq!(of(run("", &[], file).unwrap()), (f, 3, "f1,f2".into()));
    assert_eq!(of(run("", &environment, file).unwrap()), (e, 4, "e1,e2".into()));
    let line = "--state /d --port-count 5 --publish c";
    assert_eq!(of(run(line, &environment, file).unwrap()), (d, 5, "c".into()));
    // An empty variable is none.
    assert_eq!(run("", &[("ISTHMUS_PORT_COUNT", " ")], file).unwrap().port_count, 3);
}

#[test]
fn file_may_be_named_by_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, "state = \"/f\"").unwrap();
    let environment = |name: &str| (name == "ISTHMUS_CONFIG").then(|| path.clone().into_os_string());
    let program: Program = parse_with(["program"], Rules::default(), &environment).unwrap();
    assert_eq!(program.state.as_deref(), Some(Path::new("/f")));
}

#[test]
fn switches_and_lists_are_as_on_the_command_line() {
    let program = run("--state /d", &[], Some("plaintext = true\nallow = [1, 2]\npublish = \"one\"\n")).unwrap();
    assert!(program.plaintext);
    assert_eq!((program.allow, program.publish), (vec![1, 2], vec!["one".to_owned()]));
    assert!(!run("--state /d", &[("ISTHMUS_PLAINTEXT", "no")], Some("plaintext = true")).unwrap().plaintext);
    assert!(run("--state /d", &[("ISTHMUS_PLAINTEXT", "1")], None).unwrap().plaintext);
    assert!(run("--state /d", &[("ISTHMUS_ALLOW", "1 2")], None).unwrap().allow == [1, 2]);
}

#[test]
fn place_that_counts_more_decides_between_alternatives() {
    let file = Some("state = \"/d\"\npin = \"f\"\n");
    let program = run("--ca c", &[], file).unwrap();
    assert_eq!((program.pin, program.ca.as_deref()), (None, Some("c")));
    let program = run("", &[("ISTHMUS_CA", "e")], file).unwrap();
    assert_eq!((program.pin, program.ca.as_deref()), (None, Some("e")));
    let program = run("--plaintext", &[], file).unwrap();
    assert_eq!((program.pin, program.plaintext), (None, true));
    let program = run("", &[], Some("state = \"/d\"\npin = \"f\"\nplaintext = false\n")).unwrap();
    assert_eq!(program.pin.as_deref(), Some("f"));
    let error = run("", &[], Some("state = \"/d\"\npin = \"f\"\nca = \"f\"\n")).unwrap_err();
    assert!(error.contains("line 3") && error.contains("'ca' excludes 'pin' of line 2"), "{error}");
}

#[test]
fn errors_tell_where_the_value_is_and_what_to_do() {
    for (line, environment, file, parts) in [
        ("--state /d", None, Some("\nport_cuont = 3"), &["p.toml, line 2", "'port-cuont'", "'port-count'"][..]),
        ("--state /d", None, Some("zzz = 3"), &["line 1", "'zzz'", "--help"]),
        ("--state /d", None, Some("config = \"x\""), &["unknown key 'config'"]),
        ("--state /d", None, Some("help = true"), &["unknown key 'help'"]),
        ("--state /d", None, Some("port-count = 100"), &["p.toml, line 1: invalid value '100'", "--port-count"]),
        ("--state /d", Some(("ISTHMUS_PORT_COUNT", "x")), None, &["ISTHMUS_PORT_COUNT: invalid value 'x'"]),
        ("--state /d", None, Some("port-count = [3]"), &["takes one value"]),
        ("--state /d", None, Some("port-count = true"), &["needs a value"]),
        ("--state /d", None, Some("plaintext = \"yes\""), &["either true or false"]),
        ("--state /d", None, Some("[relay]\nport-count = 3"), &["line 1", "section"]),
        ("--config /nonexistent --state /d", None, None, &["cannot read /nonexistent"]),
        ("--state /d --port-count 100", None, None, &["error: invalid value '100'"]),
        ("", None, None, &["--state"]),
        ("--stat /d", None, Some("port-count = 3"), &["--stat"]),
    ] {
        let environment: Vec<_> = environment.into_iter().collect();
        let error = run(line, &environment, file).expect_err(line);
        assert!(parts.iter().all(|part| error.contains(part)), "{line} {file:?}: {error}");
    }
}

#[test]
fn subcommand_of_its_own_does_not_need_the_settings() {
    let program = run("other", &[("ISTHMUS_CONFIG", "/nonexistent")], None).unwrap();
    assert!(matches!(program.command, Some(Sub::Other)));
}

#[test]
fn help_names_the_variables_and_not_the_files_values() {
    let help = run("--help", &[], Some("state = \"/f\"\nport-count = 3\n")).unwrap_err();
    assert!(help.contains("[env: ISTHMUS_PORT_COUNT]") && help.contains("[default: 7]"), "{help}");
    assert!(help.contains("[env: ISTHMUS_PUBLISH, with blanks between]"), "{help}");
}

//! A check for the example file of a program: it names every setting, and what it sets are the defaults.
//!
//! In an example, a line `key = value` gives the default, `#key = value` (without a blank) a setting that has none, and
//! `# text` explains.

use std::ffi::OsString;

use clap::{ArgMatches, Command};

use crate::{Rules, inject, matches};

/// Checks an example file's text; `words` is a command line that is whole without a file. For tests.
///
/// # Errors
/// A setting is missing, a line cannot be read, or an active line is not the default.
pub fn check_example(command: &Command, words: &[&str], text: &str, rules: Rules) -> Result<(), String> {
    let names: Vec<String> = inject::settings(command).map(inject::long).collect();
    let line_of = |name: &String| {
        let lines = text.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
        lines.filter_map(|line| line.split_once('=')).any(|(key, _)| key.trim_end() == name)
    };
    let missing: Vec<_> = names.iter().filter(|name| !line_of(name)).cloned().collect();
    if !missing.is_empty() {
        return Err(format!("the example lacks: {}", missing.join(", ")));
    }
    let read = |content: &str| read(command, words, content, rules);
    let (default, example) = (read("")?, read(text)?);
    for arg in inject::settings(command) {
        let of = |matches: &ArgMatches| {
            let values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
            values.map(|value| value.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        if of(&default) != of(&example) {
            let long = inject::long(arg);
            return Err(format!(
                "the example sets {long} to {:?}, but the default is {:?}",
                of(&example),
                of(&default)
            ));
        }
    }
    for line in text.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(' ')) {
        if !line.is_empty() {
            read(line)?;
        }
    }
    Ok(())
}

fn read(command: &Command, words: &[&str], content: &str, rules: Rules) -> Result<ArgMatches, String> {
    let name = format!("isthmus-example-{}-{:x}.toml", std::process::id(), content.as_ptr() as usize);
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, content).map_err(|error| error.to_string())?;
    let mut line: Vec<OsString> = words.iter().map(OsString::from).collect();
    line.insert(1.min(line.len()), format!("--config={}", path.display()).into());
    let rules = Rules { secrets: &[], ..rules };
    let result = matches(command.clone(), &line, rules, &|_| None);
    // What is left behind in the directory for temporary files is no failure.
    let _ = std::fs::remove_file(&path);
    result.map(|(matches, _)| matches).map_err(|error| format!("{content}: {error}"))
}

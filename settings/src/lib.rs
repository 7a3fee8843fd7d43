//! The settings of the three programs, from four places: **flag > environment > file > default**. The first place that
//! names a setting decides it whole: a list on the command line replaces the file's list.
//!
//! A program describes its settings once, as flags of [clap](https://docs.rs/clap). Each long flag of the program itself
//! (not those of its subcommands) then has
//! - a key in the configuration file (TOML), of the flag's name, with `-` or `_` between its words: `stats-socket = "…"`;
//!   a flag without a value is `true` or `false`, one that may be repeated takes a list;
//! - an environment variable, `ISTHMUS_` and the name in capitals: `ISTHMUS_STATS_SOCKET`; an empty one counts as none,
//!   one of a list holds its values with blanks between.
//!
//! The file is named by `--config FILE` or `ISTHMUS_CONFIG`. An unknown key is an error that names the nearest known one.
//! Of two flags that exclude each other (as `--pin` and `--ca`) the place that counts more wins, without an error.

#![forbid(unsafe_code)]

mod documents;
mod example;
mod file;
mod inject;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

pub use documents::{check_documents, check_help, code_lines, documents};
pub use example::check_example;
pub use file::BadFile;

/// The flag that names the file.
pub const CONFIG_FLAG: &str = "config";

/// The program's environment, or a test's.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What a program says of its settings beyond its flags.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Settings that are secrets, by their flags: a file that holds one must not be readable by others.
    pub secrets: &'static [&'static str],
    /// Settings of which one takes the place of the others, by their flags, beyond those that clap knows to conflict.
    pub alternatives: &'static [&'static [&'static str]],
    /// Subcommands that take the program's own settings, so that the file is read for them too.
    pub subcommands: &'static [&'static str],
}

/// A setting in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its flag, without the dashes.
    pub name: String,
    /// As they were written; none where there is no default.
    pub values: Vec<String>,
    /// Where they are from: `command line`, a variable, file and line, or `default`.
    pub from: String,
}

/// Reads settings from a command line (its first word is the program's name), the process's environment and the file
/// that either names.
///
/// # Errors
/// clap's own, which know how to print themselves, `--help` and `--version` included. One about the file or the
/// environment names file and line, or the variable.
pub fn parse<P, I>(words: I, rules: Rules) -> Result<P, clap::Error>
where
    P: CommandFactory + FromArgMatches,
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    parse_with(words, rules, &|name| std::env::var_os(name))
}

/// [`parse`] with another environment.
///
/// # Errors
/// As those of [`parse`].
pub fn parse_with<P, I>(words: I, rules: Rules, environment: Environment<'_>) -> Result<P, clap::Error>
where
    P: CommandFactory + FromArgMatches,
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    parse_told(words, rules, environment).map(|(settings, _)| settings)
}

/// [`parse_with`], telling each setting's values and where they are from.
///
/// # Errors
/// As those of [`parse`].
pub fn parse_told<P, I>(words: I, rules: Rules, environment: Environment<'_>) -> Result<(P, Vec<Setting>), clap::Error>
where
    P: CommandFactory + FromArgMatches,
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    let (mut matches, told) = matches(P::command(), &words, rules, environment)?;
    let settings = P::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut P::command()))?;
    Ok((settings, told))
}

fn matches(
    command: Command,
    words: &[OsString],
    rules: Rules,
    environment: Environment<'_>,
) -> Result<(ArgMatches, Vec<Setting>), clap::Error> {
    let mut command = inject::describe(command);
    // First to see what the command line names and where the file is; its own errors come out of the second reading.
    let Ok(seen) = command.clone().ignore_errors(true).try_get_matches_from(words) else {
        return command.try_get_matches_from(words).map(|matches| (matches, Vec::new()));
    };
    let mut sources = inject::Sources::new(&command, rules.alternatives, |id| {
        matches!(seen.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    });
    command = inject::environment(command, &mut sources, environment);
    if let Some(path) = config_path(&command, &seen, rules, environment) {
        let file = file::read(&path, rules.secrets).map_err(|error| refuse(&mut command, &error))?;
        command = inject::file(command.clone(), &mut sources, &file).map_err(|error| refuse(&mut command, &error))?;
    }
    let mut plain = command.clone();
    let matches = command.try_get_matches_from(words).map_err(|error| name_the_source(&mut plain, &sources, error))?;
    let told = tell(&plain, &matches, &sources);
    Ok((matches, told))
}

/// What each setting is, and from where.
fn tell(command: &Command, matches: &ArgMatches, sources: &inject::Sources) -> Vec<Setting> {
    let setting = |arg: &clap::Arg| {
        let (id, name) = (arg.get_id().as_str(), inject::long(arg));
        let raw = matches.try_get_raw(id).ok().flatten();
        let values = raw.into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect();
        let from = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "command line".to_owned(),
            Some(ValueSource::EnvVariable) => inject::variable(&name),
            _ => sources.place(&name).unwrap_or("default").to_owned(),
        };
        Setting { name, values, from }
    };
    inject::settings(command).map(setting).collect()
}

/// The configuration file, unless a subcommand runs that does not take the program's settings.
fn config_path(command: &Command, seen: &ArgMatches, rules: Rules, environment: Environment<'_>) -> Option<PathBuf> {
    let arg = command.get_arguments().find(|arg| arg.get_long() == Some(CONFIG_FLAG))?;
    let takes_none = |name| !rules.subcommands.contains(&name);
    if seen.subcommand_name().is_some_and(takes_none) && !arg.is_global_set() {
        return None;
    }
    let given = seen.try_get_one::<PathBuf>(arg.get_id().as_str()).ok().flatten().cloned();
    given
        .or_else(|| environment(&inject::variable(CONFIG_FLAG)).map(PathBuf::from))
        .filter(|path| path != OsStr::new(""))
}

fn refuse(command: &mut Command, error: &BadFile) -> clap::Error {
    command.error(ErrorKind::ValueValidation, error)
}

/// An error about a value that is not on the command line tells where it is.
fn name_the_source(command: &mut Command, sources: &inject::Sources, error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return error };
    let long = arg.trim_start_matches("--");
    let long = long.split([' ', '=', '.', '[']).next().unwrap_or(long);
    let Some(place) = sources.place(long) else { return error };
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let text = text.split("\n\nFor more information").next().unwrap_or(text).trim_end();
    let text = format!("{place}: {text}");
    command.error(ErrorKind::ValueValidation, text)
}

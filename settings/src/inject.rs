//! Environment and file become defaults of the flags: clap itself then puts the command line before them.

use std::collections::HashMap;
use std::ffi::OsString;

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, Command};

use crate::file::{BadFile, Entry, Settings, Value};
use crate::{CONFIG_FLAG, Environment};

/// What may be nearest to a key that nobody knows: closer than this, of 1.
const SIMILAR: f64 = 0.7;

/// A flag's environment variable.
pub(crate) fn variable(long: &str) -> String {
    format!("ISTHMUS_{}", long.to_uppercase().replace('-', "_"))
}

/// Which place has named which setting so far.
pub(crate) struct Sources {
    /// By flag; no text for those that the command line named.
    places: HashMap<String, Option<String>>,
    /// Flags that exclude each other, both ways.
    conflicts: HashMap<String, Vec<String>>,
}

impl Sources {
    pub(crate) fn new(command: &Command, alternatives: &[&[&str]], given: impl Fn(&str) -> bool) -> Self {
        let mut sources = Self { places: HashMap::new(), conflicts: HashMap::new() };
        for (one, other) in
            alternatives.iter().flat_map(|group| group.iter().flat_map(|one| group.iter().map(move |o| (one, o))))
        {
            if one != other {
                sources.conflicts.entry((*one).to_owned()).or_default().push((*other).to_owned());
            }
        }
        for arg in settings(command) {
            let long = long(arg);
            if given(arg.get_id().as_str()) {
                sources.places.insert(long.clone(), None);
            }
            for other in command.get_arg_conflicts_with(arg).into_iter().filter_map(|other| other.get_long()) {
                sources.conflicts.entry(long.clone()).or_default().push(other.to_owned());
                sources.conflicts.entry(other.to_owned()).or_default().push(long.clone());
            }
        }
        sources
    }

    /// Where a flag's value is, if not on the command line.
    pub(crate) fn place(&self, long: &str) -> Option<&str> {
        self.places.get(long)?.as_deref()
    }

    /// Whether two flags exclude each other.
    fn exclude(&self, one: &str, other: &str) -> bool {
        self.conflicts.get(one).is_some_and(|others| others.iter().any(|name| name == other))
    }

    /// Whether a place that counts more has decided about a flag, by its name or by one that excludes it.
    fn is_decided(&self, long: &str) -> bool {
        let others = self.conflicts.get(long).map_or(&[][..], Vec::as_slice);
        self.places.contains_key(long) || others.iter().any(|other| self.places.contains_key(other))
    }
}

/// Adds each flag's variable to its help, and lets a switch be set by the words that people use.
pub(crate) fn describe(command: Command) -> Command {
    command.mut_args(|arg| {
        let Some(long) = arg.get_long().map(str::to_owned) else { return arg };
        let arg = if is_switch(&arg) { arg.value_parser(BoolishValueParser::new()) } else { arg };
        let named = arg.get_help().is_some_and(|help| help.to_string().contains("[env:"));
        if !is_setting(&arg) || arg.get_env().is_some() || named {
            return arg;
        }
        let blanks = if is_list(&arg) { ", with blanks between" } else { "" };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        arg.help(format!("{help} [env: {}{blanks}]", variable(&long)))
    })
}

/// Puts the environment's values behind the flags that nobody named. Those that clap reads itself it has read.
pub(crate) fn environment(mut command: Command, sources: &mut Sources, environment: Environment<'_>) -> Command {
    let mut found = Vec::new();
    for arg in settings(&command).filter(|arg| arg.get_env().is_none()) {
        let (long, name) = (long(arg), variable(&long(arg)));
        let Some(value) = environment(&name).filter(|value| !value.to_string_lossy().trim().is_empty()) else {
            continue;
        };
        if !sources.is_decided(&long) {
            let values = match (is_list(arg), value.to_str()) {
                (true, Some(text)) => text.split_whitespace().map(OsString::from).collect(),
                _ => vec![value],
            };
            found.push((arg.get_id().clone(), long, name, values));
        }
    }
    for (id, long, name, values) in found {
        sources.places.insert(long, Some(name));
        command = command.mut_arg(id, |arg| behind(arg, values));
    }
    command
}

/// Puts a file's values behind the flags that nobody named.
pub(crate) fn file(mut command: Command, sources: &mut Sources, file: &Settings) -> Result<Command, BadFile> {
    let mut decided: Vec<&Entry> = Vec::new();
    for entry in &file.entries {
        let bad = |why: String| BadFile(format!("{}: {why}", file.place(entry)));
        let key = entry.key.as_str();
        let Some(arg) = settings(&command).find(|arg| arg.get_long() == Some(key)) else {
            return Err(bad(unknown(&command, key)));
        };
        let values = match (&entry.value, is_switch(arg), is_list(arg)) {
            (Value::Flag(flag), true, _) => vec![flag.to_string().into()],
            (_, true, _) => return Err(bad(format!("'{key}' is either true or false"))),
            (Value::Flag(_), false, _) => return Err(bad(format!("'{key}' needs a value, not true or false"))),
            (Value::One(word), ..) => vec![word.into()],
            (Value::List(words), _, true) => words.iter().map(OsString::from).collect(),
            (Value::List(_), _, false) => return Err(bad(format!("'{key}' takes one value, not a list"))),
        };
        // A file may name alternatives of a flag's only if it does not name two of them.
        let on = !matches!(entry.value, Value::Flag(false));
        if on && let Some(other) = decided.iter().find(|other| sources.exclude(&other.key, key)) {
            return Err(bad(format!("'{key}' excludes '{}' of line {}; remove one", other.key, other.line)));
        }
        if on && !sources.is_decided(key) {
            let id = arg.get_id().clone();
            command = command.mut_arg(id, |arg| behind(arg, values));
            decided.push(entry);
        }
    }
    for entry in decided {
        sources.places.insert(entry.key.clone(), Some(file.place(entry)));
    }
    Ok(command)
}

fn behind(arg: Arg, values: Vec<OsString>) -> Arg {
    let arg = arg.required(false);
    // An empty list is one: the default's values are not to come back.
    if values.is_empty() { arg.default_value(None::<&'static str>) } else { arg.default_values(values) }
}

/// The flags that are settings.
pub(crate) fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| is_setting(arg))
}

fn is_setting(arg: &Arg) -> bool {
    let is_help =
        matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version);
    arg.get_long().is_some_and(|long| long != CONFIG_FLAG) && !is_help
}

pub(crate) fn long(arg: &Arg) -> String {
    arg.get_long().unwrap_or_default().to_owned()
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn unknown(command: &Command, key: &str) -> String {
    let nearest = settings(command)
        .filter_map(|arg| arg.get_long())
        .map(|long| (strsim::jaro_winkler(long, key), long))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((similarity, long)) if similarity > SIMILAR => format!("unknown key '{key}'; is it '{long}'?"),
        _ => format!("unknown key '{key}'; `--help` lists the flags, whose names the keys are"),
    }
}

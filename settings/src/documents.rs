//! A check for the documentation: each command line of a program in a code block is one that the program takes.
//!
//! A code block is fenced, or indented by four blanks. A command line begins with the program's name, maybe behind `sudo`
//! or assignments; it goes on where it ends in `\`, and ends at a comment, at a shell's operator, or at three blanks,
//! behind which a remark stands. `…` stands for flags that are left out, and so do brackets around one.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap::error::ErrorKind;

/// What stands for the reader's own, where the name itself would not do.
const SAMPLES: &[(&str, &str)] = &[
    ("RELAY-IP", "192.0.2.1"),
    ("HOST:PORT", "relay.example.net:4470"),
    ("ADDR:PORT", "192.0.2.1:1080"),
    ("IP:PORT", "192.0.2.1:80"),
    ("TIME", "30s"),
];

/// Directories that hold no documentation of the project.
const NOT_OURS: &[&str] = &["target", ".git"];

/// All Markdown files below `root`.
///
/// # Panics
/// When a directory cannot be read; it is for tests.
pub fn documents(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut ahead) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = ahead.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.map(|entry| entry.expect("a directory's entry").path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !path.is_symlink() && !NOT_OURS.contains(&&*name) {
                ahead.push(path);
            } else if name.ends_with(".md") && path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Checks the command lines of `program` in all documents below `root`; `take` is the program's own reading of its
/// command line, which does nothing else. Gives how many there were. For tests.
///
/// # Errors
/// The command lines that are not taken, with file, line and reason.
pub fn check_documents(
    program: &str,
    root: &Path,
    take: impl Fn(&[String]) -> Result<(), clap::Error>,
) -> Result<usize, String> {
    let (mut count, mut wrong) = (0, Vec::new());
    for path in documents(root) {
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        for (number, line) in code_lines(&text) {
            for command in commands(&line, program) {
                count += 1;
                if let Some(error) = refused(&command, &take) {
                    let reason = error.split("\n\n").next().unwrap_or_default().trim().to_owned();
                    wrong.push(format!("{}:{number}: {}: {reason}", path.display(), command.join(" ")));
                }
            }
        }
    }
    if wrong.is_empty() { Ok(count) } else { Err(wrong.join("\n")) }
}

/// Holds the examples in a program's help, its subcommands' with it, against its own parser. The result is their number.
///
/// # Errors
/// Those that are not taken, and commands that have no example, a line each.
pub fn check_help(command: &Command, take: impl Fn(&[String]) -> Result<(), clap::Error>) -> Result<usize, String> {
    let (mut count, mut wrong) = (0, Vec::new());
    let mut waiting = vec![command];
    while let Some(shown) = waiting.pop() {
        waiting.extend(shown.get_subcommands().filter(|sub| !SELF_EXPLAINING.contains(&sub.get_name())));
        let text = shown.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<Vec<String>> =
            text.lines().flat_map(|line| commands(line.trim(), command.get_name())).collect();
        if examples.is_empty() && !shown.has_subcommands() {
            wrong.push(format!("{} has no example in its help", shown.get_name()));
        }
        for words in examples {
            count += 1;
            if let Some(error) = refused(&words, &take) {
                wrong.push(format!("{}: {}", words.join(" "), error.split("\n\n").next().unwrap_or_default()));
            }
        }
    }
    if wrong.is_empty() { Ok(count) } else { Err(wrong.join("\n")) }
}

/// Commands that take a word or nothing.
const SELF_EXPLAINING: [&str; 3] = ["help", "man", "completions"];

/// Why a command line is not taken. One that leaves something out need not be whole.
fn refused(words: &[String], take: impl Fn(&[String]) -> Result<(), clap::Error>) -> Option<String> {
    let is_left_out = |word: &str| word == "…" || word == "...";
    let is_optional = |word: &str| word.starts_with("[-");
    let partial = words.iter().any(|word| is_left_out(word) || is_optional(word));
    let sample = |word: &String| {
        let bare = if is_optional(word) { word.trim_start_matches('[') } else { word };
        // A bracket that closes stands at an optional flag's last word; an address's is followed by its port.
        let bare = bare.strip_suffix(']').filter(|_| partial && !bare.contains('[')).unwrap_or(bare);
        SAMPLES.iter().fold(bare.to_owned(), |text, (name, value)| text.replace(name, value))
    };
    let words: Vec<String> = words.iter().filter(|word| !is_left_out(word)).map(sample).collect();
    let error = take(&words).err()?;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => None,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            if partial =>
        {
            None
        }
        _ => Some(error.to_string()),
    }
}

/// The lines of a document's code blocks, with their numbers; a line that ends in `\` is one with the next. What is
/// fenced as `text` shows a screen, and is no code.
pub fn code_lines(text: &str) -> Vec<(usize, String)> {
    let (mut lines, mut fenced, mut may_indent) = (Vec::<(usize, String)>::new(), false, true);
    let mut is_picture = false;
    for (n, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            is_picture = fenced && line.trim() == "```text";
            continue;
        }
        if is_picture {
            continue;
        }
        // An indented block begins behind an empty line; other indented lines are a list's.
        let indented = may_indent && line.starts_with("    ");
        may_indent = line.trim().is_empty() || indented;
        if !fenced && !indented {
            continue;
        }
        match lines.last_mut().filter(|(_, before)| before.ends_with('\\')) {
            Some((_, before)) => {
                before.pop();
                let joined = format!("{} {}", before.trim_end(), line.trim());
                *before = joined;
            }
            None => lines.push((n + 1, line.trim().to_owned())),
        }
    }
    lines
}

/// The words of each command of `program` on a line.
fn commands(line: &str, program: &str) -> Vec<Vec<String>> {
    let (mut all, mut command) = (Vec::new(), Vec::new());
    for word in words(line) {
        match word {
            Some(word) => command.push(word),
            None => all.push(std::mem::take(&mut command)),
        }
    }
    all.push(command);
    all.into_iter().filter_map(|command| of_program(command, program)).collect()
}

fn of_program(command: Vec<String>, program: &str) -> Option<Vec<String>> {
    let is_before = |word: &String| word == "sudo" || word == "$" || is_assignment(word);
    let words: Vec<String> = command.into_iter().skip_while(is_before).collect();
    let name = Path::new(words.first()?).file_name()?;
    (name == program).then_some(words)
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// A line's words as a shell takes them; none where a command ends.
fn words(line: &str) -> Vec<Option<String>> {
    let (mut words, mut word, mut quote, mut blanks) = (Vec::new(), None::<String>, None, 0);
    let end = |word: &mut Option<String>, words: &mut Vec<Option<String>>| {
        let Some(text) = word.take() else { return };
        let is_operator = matches!(&*text, "|" | "||" | "&&" | "&" | ">" | ">>" | "<" | ";");
        words.push(Some(text).filter(|_| !is_operator));
    };
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => return words,
            (None, ' ') => {
                end(&mut word, &mut words);
                blanks += 1;
                if blanks == 3 {
                    words.push(None);
                }
                continue;
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
        blanks = 0;
    }
    end(&mut word, &mut words);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands_of(line: &str) -> Vec<String> {
        commands(line, "isthmus").iter().map(|words| words.join("|")).collect()
    }

    #[test]
    fn command_lines_are_found_among_what_else_is_in_a_block() {
        assert_eq!(commands_of("isthmus list          # the mediators"), ["isthmus|list"]);
        assert_eq!(commands_of("sudo A_B=c target/isthmus nc 'a b' \"c\"d"), ["target/isthmus|nc|a b|cd"]);
        assert_eq!(commands_of("isthmus info cpe    tells all"), ["isthmus|info|cpe"]);
        assert_eq!(commands_of("isthmus list | grep x && isthmus info a"), ["isthmus|list", "isthmus|info|a"]);
        assert_eq!(commands_of("isthmus-agent --x      isthmus list"), ["isthmus|list"]);
        assert_eq!(commands_of("ssh -o 'ProxyCommand=isthmus nc a b'"), Vec::<String>::new());
    }

    #[test]
    fn blocks_are_fenced_or_indented_and_lists_are_none() {
        let text = "a\n\n    b \\\n      c\n    d\n\n- e\n    f\n\n```\ng\n```\nh\n";
        let lines = code_lines(text);
        assert_eq!(lines, [(3, "b c".into()), (5, "d".into()), (11, "g".into())]);
    }

    #[test]
    fn what_is_wrong_is_told_and_what_is_left_out_is_not_missed() {
        let command = || Command::new("p").arg(clap::arg!(--need <X>).required(true)).arg(clap::arg!(--more <X>));
        let take = |words: &[String]| command().try_get_matches_from(words).map(drop);
        let refused = |line: &str| refused(&commands(line, "p")[0], take);
        assert_eq!(refused("p --need a"), None);
        assert_eq!(refused("p … --more RELAY-IP"), None);
        assert_eq!(refused("p --need [::]:1 [--more x]"), None);
        assert!(refused("p --more a").unwrap().contains("--need"));
        assert!(refused("p … --les x").unwrap().contains("--les"));
        assert!(refused("p --need [::]:1 [--mor x]").unwrap().contains("--mor"));
    }
}

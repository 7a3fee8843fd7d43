//! The documentation is true where a program can tell: its links lead somewhere, and the flags and variables that it names
//! are those of the programs. (Command lines are checked beside each program's own, frames and codes in proto.)

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use isthmus_e2e::program;
use isthmus_settings::documents;

/// Pages that others may link to already; whoever writes one takes it off here.
const COMING: &[&str] = &[];

/// Flags of other programs that the documentation uses.
const OF_OTHERS: &[&str] = &[
    // cargo and scripts
    "--bins",
    "--once",
    "--static",
    "--open",
    "--release",
    "--workspace",
    // container engines and systemctl
    "--network",
    "--now",
    "--rm",
    "--security-opt",
    "--user",
    // browsers and curl
    "--proxy-server",
    "--socks5-hostname",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every document, by its path from the root.
fn texts() -> BTreeMap<String, String> {
    let root = root();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a document");
        (path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned(), text)
    };
    documents(&root).into_iter().map(read).collect()
}

/// A document's lines that are no code, with their numbers, and without the code in them.
fn prose(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (n, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((n + 1, line.split('`').step_by(2).collect::<Vec<_>>().join("`")));
        }
    }
    lines
}

/// The targets of a line's links: `](TARGET)`.
fn targets(line: &str) -> Vec<&str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).collect()
}

/// What a heading is named in links: lower case, blanks as `-`, and of the rest letters, digits, `-` and `_` only.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.trim().to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        let heading = line.trim_start_matches('#');
        if !fenced && line.starts_with('#') && heading.starts_with(' ') {
            let name = anchor(heading);
            let numbered = (1..).map(|n| format!("{name}-{n}"));
            let free = std::iter::once(name.clone()).chain(numbered).find(|name| !found.contains(name));
            found.extend(free);
        }
    }
    found
}

/// A relative link's file as a path from the root.
fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[test]
fn every_relative_link_and_anchor_leads_somewhere() {
    let (root, texts) = (root(), texts());
    let (mut count, mut wrong) = (0, Vec::new());
    for (document, text) in &texts {
        for (line, prose) in prose(text) {
            for target in targets(&prose).into_iter().filter(|target| !target.contains("://")) {
                count += 1;
                let (file, place) = target.split_once('#').unwrap_or((target, ""));
                let file = if file.is_empty() { document.clone() } else { resolve(document, file) };
                let there = match texts.get(&file) {
                    Some(text) => place.is_empty() || anchors(text).contains(place),
                    None => place.is_empty() && (root.join(&file).exists() || COMING.contains(&&*file)),
                };
                if !there {
                    wrong.push(format!("{document}:{line}: {target}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
    assert!(count > 40, "only {count} links are found");
}

/// What a program says of itself, with all its subcommands.
fn help(name: &str, words: &[String]) -> String {
    let output = Command::new(program(name)).args(words).arg("--help").output().expect("the program's help");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && text.contains("Usage:"), "{name} {words:?} --help: {text}");
    let listed = text.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap_or(""));
    // A command's name is indented by two blanks, what it does by more.
    let named = |line: &str| Some(line.strip_prefix("  ")?.split(' ').next()?.to_owned());
    let commands = listed.lines().filter_map(named).filter(|name| !name.is_empty() && name != "help");
    let below: Vec<_> = commands.map(|command| help(name, &[words, &[command]].concat())).collect();
    format!("{text}\n{}", below.join("\n"))
}

/// The flags that a text names.
fn flags(text: &str) -> BTreeSet<String> {
    let is_flags = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("--") {
        let own_start = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-');
        let rest = &text[at + 2..];
        let name = &rest[..rest.find(|c| !is_flags(c)).unwrap_or(rest.len())];
        let name = name.trim_end_matches('-');
        if own_start && name.starts_with(|c: char| c.is_ascii_lowercase()) {
            found.insert(format!("--{name}"));
        }
    }
    found
}

#[test]
fn every_flag_in_the_documentation_is_one_of_the_programs() {
    let programs = ["isthmus-relay", "isthmus-agent", "isthmus", "isthmus-bench"];
    let mut known: BTreeSet<String> = programs.iter().flat_map(|name| flags(&help(name, &[]))).collect();
    known.extend(OF_OTHERS.iter().map(|&flag| flag.to_owned()));
    let mut unknown = Vec::new();
    for (document, text) in texts() {
        unknown.extend(flags(&text).difference(&known).map(|flag| format!("{document}: {flag}")));
    }
    assert!(unknown.is_empty(), "flags that no program has:\n{}", unknown.join("\n"));
}

#[test]
fn every_variable_in_the_documentation_is_a_flag_of_the_programs() {
    let known: BTreeSet<String> =
        ["isthmus-relay", "isthmus-agent", "isthmus"].iter().flat_map(|name| flags(&help(name, &[]))).collect();
    let mut unknown = Vec::new();
    for (document, text) in texts() {
        for (at, prefix) in text.match_indices("ISTHMUS_") {
            let rest = &text[at + prefix.len()..];
            let name = &rest[..rest.find(|c: char| !c.is_ascii_uppercase() && c != '_').unwrap_or(rest.len())];
            // The prefix alone stands for all of them.
            if !name.is_empty() && !known.contains(&format!("--{}", name.to_lowercase().replace('_', "-"))) {
                unknown.push(format!("{document}: {prefix}{name}"));
            }
        }
    }
    assert!(unknown.is_empty(), "variables that no program reads:\n{}", unknown.join("\n"));
}

#[test]
fn headings_and_links_are_read_as_they_are_shown() {
    assert_eq!(anchor(" What \"a\" `b-c` is, and_why"), "what-a-b-c-is-and_why");
    assert_eq!(anchors("# A\n```\n# no\n```\n## A\n#no\n").into_iter().collect::<Vec<_>>(), ["a", "a-1"]);
    assert_eq!(targets("see [a](b.md#c), [d](e)"), ["b.md#c", "e"]);
    assert_eq!(prose("a `[x](y)` b\n```\n[x](y)\n```\n"), [(1, "a ` b".to_owned())]);
    assert_eq!(resolve("docs/a.md", "../b/./c.md"), "b/c.md");
    assert_eq!(flags("--a-b, `--c=`; d--e ---f --- (--g)").into_iter().collect::<Vec<_>>(), ["--a-b", "--c", "--g"]);
}

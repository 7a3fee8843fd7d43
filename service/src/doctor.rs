//! What `doctor` found, for people and for programs.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// It works, but worse than it could, or not for long.
    Warning,
    /// It does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in few words; it stays the same from version to version.
    pub name: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do; empty where nothing has to be done.
    pub cure: String,
}

/// All that was looked at, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Adds one that is as it should be.
    pub fn ok(&mut self, name: &str, found: impl Into<String>) {
        self.add(name, Severity::Ok, found, "");
    }

    /// Adds one.
    pub fn add(&mut self, name: &str, severity: Severity, found: impl Into<String>, cure: impl Into<String>) {
        self.0.push(Finding { name: name.to_owned(), severity, found: found.into(), cure: cure.into() });
    }

    /// The worst of them.
    pub fn worst(&self) -> Severity {
        self.0.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    /// Prints them; the exit code is 0 for nothing worse than notes, 1 for warnings, 2 for errors.
    pub fn print(&self, json: bool) -> ExitCode {
        let text = if json { self.json() } else { self.text(std::io::stdout().is_terminal()) };
        println!("{text}");
        match self.worst() {
            Severity::Ok | Severity::Note => ExitCode::SUCCESS,
            Severity::Warning => ExitCode::from(1),
            Severity::Error => ExitCode::from(2),
        }
    }

    fn json(&self) -> String {
        #[derive(Serialize)]
        struct Answer<'a> {
            v: u32,
            worst: Severity,
            findings: &'a [Finding],
        }
        // Plain data: it always serialises.
        serde_json::to_string(&Answer { v: 1, worst: self.worst(), findings: &self.0 }).unwrap_or_default()
    }

    fn text(&self, colours: bool) -> String {
        let width = self.0.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding { name, severity, found, cure } in &self.0 {
            let (word, colour) = match severity {
                Severity::Ok => ("ok", "32"),
                Severity::Note => ("note", "36"),
                Severity::Warning => ("warning", "33"),
                Severity::Error => ("ERROR", "31"),
            };
            let word = if colours { format!("\x1b[{colour}m{word:7}\x1b[0m") } else { format!("{word:7}") };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{word}  {name:width$}  {found}");
            if !cure.is_empty() {
                let _ = writeln!(text, "{:7}  {:width$}  -> {cure}", "", "");
            }
        }
        text.truncate(text.trim_end().len());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_finding_decides_and_each_cure_is_below_its_finding() {
        let mut findings = Findings::default();
        assert_eq!(findings.worst(), Severity::Ok);
        findings.ok("kernel", "Linux 6.18");
        findings.add("RLIMIT_NOFILE", Severity::Warning, "it is 1024", "set LimitNOFILE=");
        assert_eq!(findings.worst(), Severity::Warning);
        assert_eq!(
            findings.text(false),
            "ok       kernel         Linux 6.18\n\
             warning  RLIMIT_NOFILE  it is 1024\n                        -> set LimitNOFILE="
        );
        let json: serde_json::Value = serde_json::from_str(&findings.json()).unwrap();
        assert_eq!(
            (&json["v"], &json["worst"], &json["findings"][1]["cure"]),
            (&1.into(), &"warning".into(), &"set LimitNOFILE=".into())
        );
    }
}

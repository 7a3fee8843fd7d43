//! The configuration file: flat TOML, its values as words that a flag would take.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// Largest file that is read, in bytes.
const LEN_MAX: u64 = 4 << 20;

/// The file cannot be used; the text says where, why, and what to do.
#[derive(Debug)]
pub struct BadFile(pub(crate) String);

impl std::fmt::Display for BadFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadFile {}

/// A read file.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) path: PathBuf,
    pub(crate) entries: Vec<Entry>,
}

/// One key of it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As a flag is named.
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    Flag(bool),
    One(String),
    List(Vec<String>),
}

impl Settings {
    /// Where an entry is, for a message.
    pub(crate) fn place(&self, entry: &Entry) -> String {
        format!("{}, line {}", self.path.display(), entry.line)
    }
}

pub(crate) fn read(path: &Path, secrets: &[&str]) -> Result<Settings, BadFile> {
    let shown = path.display();
    let cannot = |error: io::Error| BadFile(format!("--config: cannot read {shown}: {error}"));
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.permissions().mode() & 0o777;
    let mut text = String::new();
    file.take(LEN_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > LEN_MAX {
        return Err(BadFile(format!("--config: {shown} is longer than {LEN_MAX} bytes")));
    }
    let entries = parse(&text).map_err(|(line, why)| BadFile(format!("{shown}, line {line}: {why}")))?;
    let secret = entries.iter().find(|entry| secrets.contains(&entry.key.as_str()));
    if let (Some(entry), true) = (secret, mode & 0o077 != 0) {
        let key = &entry.key;
        return Err(BadFile(format!(
            "{shown} holds a secret ({key}) and can be read by others (mode {mode:04o}); run: chmod 600 {shown}"
        )));
    }
    Ok(Settings { path: path.to_owned(), entries })
}

fn parse(text: &str) -> Result<Vec<Entry>, (usize, String)> {
    let line_at = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_at(span.start));
        (line, error.message().replace('\n', ", "))
    })?;
    let mut entries: Vec<Entry> = Vec::new();
    for (key, value) in table.get_ref() {
        let line = line_at(key.span().start);
        let name = key.get_ref().replace('_', "-");
        if let Some(other) = entries.iter().find(|entry| entry.key == name) {
            return Err((line.max(other.line), format!("'{name}' is there twice; remove one")));
        }
        let value = match value.get_ref() {
            DeValue::Boolean(flag) => Value::Flag(*flag),
            DeValue::Array(list) => {
                let words = list.iter().map(|value| word(value.get_ref()));
                Value::List(words.collect::<Result<_, _>>().map_err(|why| (line, format!("'{name}' {why}")))?)
            }
            one => Value::One(word(one).map_err(|why| (line, format!("'{name}' {why}")))?),
        };
        entries.push(Entry { key: name, line, value });
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn word(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Integer(_) => Err("has to be a decimal number"),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(_) => Err("cannot hold true or false in a list"),
        DeValue::Datetime(_) => Err("cannot be a date; write it in quotes"),
        DeValue::Array(_) => Err("cannot be a list of lists"),
        DeValue::Table(_) => Err("is a section, but all settings stand at the top; remove the [ ] line"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let (line, why) = parse(text).unwrap_err();
        format!("{line}: {why}")
    }

    #[test]
    fn values_become_words_in_the_order_of_their_lines() {
        let entries = parse("z = 1_000\na_b = \"x y\"\nlist = [\"p\", 2]\non = true\nf = 0.5\n").unwrap();
        let keys: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.line)).collect();
        assert_eq!(keys, [("z", 1), ("a-b", 2), ("list", 3), ("on", 4), ("f", 5)]);
        assert!(matches!(&entries[0].value, Value::One(word) if word == "1000"));
        assert!(matches!(&entries[1].value, Value::One(word) if word == "x y"));
        assert!(matches!(&entries[2].value, Value::List(words) if *words == ["p", "2"]));
        assert!(matches!(entries[3].value, Value::Flag(true)));
    }

    #[test]
    fn errors_name_line_and_cure() {
        assert!(error("a = 1\n[section]\nb = 2\n").starts_with("2: 'section' is a section"));
        assert!(error("a = \"open\n").starts_with("1: "));
        assert!(error("a-b = 1\na_b = 2\n").contains("2: 'a-b' is there twice"));
        assert!(error("\n\nwhen = 2026-01-01\n").starts_with("3: 'when' cannot be a date"));
        assert!(error("a = [[1]]").contains("list of lists"));
    }

    #[test]
    fn secret_in_a_file_that_others_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.toml");
        std::fs::write(&path, "token = \"t\"\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(read(&path, &["token"]).unwrap_err().to_string().contains("chmod 600"));
        assert!(read(&path, &[]).is_ok());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(read(&path, &["token"]).unwrap().entries.len(), 1);
    }
}

//! How answers look: safe text, tables, one-line JSON.
//!
//! Part of what is shown was written by mediators: no control character of theirs may reach an operator's
//! terminal, nor a line's end of theirs look like the end of an answer.

use std::fmt::Write;

use serde::Serialize;

/// Begins every answer that is an error; `ctl` looks for it.
pub(super) const ERROR: &str = "error: ";

/// Most characters shown of a text that a mediator wrote.
const SHOWN_MAX: usize = 64;

/// A text of others for the end of a line: control and direction characters become `?`, a long one is cut.
pub(crate) fn phrase(text: &str) -> String {
    text.chars().take(SHOWN_MAX).map(|c| if hidden(c) { '?' } else { c }).collect()
}

/// The same for a column between others: no blanks in it, and never empty.
pub(super) fn word(text: &str) -> String {
    let word: String = phrase(text).chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
    if word.is_empty() { "-".to_owned() } else { word }
}

/// Line ends and controls, and what turns the direction of writing or cannot be seen.
pub(crate) fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Columns padded to their widest cell, two blanks apart, no blanks at a line's end.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header = header.iter().map(|&cell| cell.to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Raised when a field of any answer goes or changes its meaning; new fields may come any time.
const VERSION: u32 = 1;

/// One line of JSON, an object with the version `v`, in which every control character is escaped: serde_json leaves DEL and the C1 set as they are.
pub(super) fn json(value: &impl Serialize) -> Result<String, String> {
    let plain = serde_json::to_string(value).map_err(|error| format!("cannot write JSON: {error}"))?;
    let mut line = String::with_capacity(plain.len() + 16);
    // Every answer is an object.
    let rest = plain.strip_prefix('{').unwrap_or(&plain);
    let _ = write!(line, "{{\"v\":{VERSION}{}", if rest.starts_with('}') { "" } else { "," });
    // Nearly always there is nothing to look for: a long page is not gone through letter by letter then.
    if rest.bytes().all(|byte| byte.is_ascii() && byte != 0x7f) {
        line.push_str(rest);
    } else {
        for c in rest.chars() {
            if hidden(c) {
                let _ = write!(line, "\\u{:04x}", u32::from(c));
            } else {
                line.push(c);
            }
        }
    }
    line.push('\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &str = "a\n\nb\u{1b}[2J\u{9b}31m\u{7f}\u{202e}c d";

    #[test]
    fn texts_of_others_cannot_end_a_line_or_steer_a_terminal() {
        assert_eq!(phrase(NASTY), "a??b?[2J?31m??c d");
        assert_eq!(word(NASTY), "a??b?[2J?31m??c_d");
        assert_eq!(word(""), "-");
        assert_eq!(phrase(&"x".repeat(1000)).len(), 64);
    }

    #[test]
    fn json_is_one_line_without_controls_and_keeps_the_text() {
        for text in [NASTY, "plain"] {
            let line = json(&serde_json::json!({ "text": text })).unwrap();
            assert!(!line.trim_end_matches('\n').contains(hidden), "{line:?}");
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!((&read["text"], &read["v"]), (&text.into(), &VERSION.into()));
        }
        assert_eq!(json(&serde_json::json!({})).unwrap(), "{\"v\":1}\n");
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), String::new()]];
        assert_eq!(table(&["id", "n"], &rows), "id      n\na       1\nlonger\n");
    }
}

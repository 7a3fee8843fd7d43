//! Patterns over mediators' names.

use std::fmt;
use std::str::FromStr;

use isthmus_proto::MediatorId;
use serde::{Deserialize, Serialize};

/// A pattern: `*` matches any run of characters, the empty one too, `?` exactly one; all else itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob(Box<str>);

/// The text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pattern is 1 to {} letters, digits, '.', '_', '-', '*' or '?'", Glob::LEN_MAX)]
pub struct BadGlob;

impl Glob {
    /// Longest pattern in bytes.
    pub const LEN_MAX: usize = 128;

    /// The pattern that matches every name.
    pub fn any() -> Self {
        Self("*".into())
    }

    /// The pattern that matches this name alone: a name holds neither `*` nor `?`.
    pub fn exactly(id: &MediatorId) -> Self {
        Self(id.as_str().into())
    }

    /// Whether the whole of `id` fits.
    ///
    /// No recursion, and only the last star is ever tried again: at most pattern times name steps,
    /// whatever a token's issuer wrote.
    pub fn matches(&self, id: &MediatorId) -> bool {
        // Both are ASCII, so that a byte is a character.
        let (pattern, name) = (self.0.as_bytes(), id.as_str().as_bytes());
        let (mut at, mut read) = (0, 0);
        // After the last star: where the pattern goes on, and how much of the name that star has taken.
        let mut star: Option<(usize, usize)> = None;
        while read < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at + 1, read));
                    at += 1;
                }
                Some(&byte) if byte == b'?' || byte == name[read] => {
                    at += 1;
                    read += 1;
                }
                _ => {
                    let Some((after, taken)) = star else { return false };
                    star = Some((after, taken + 1));
                    (at, read) = (after, taken + 1);
                }
            }
        }
        pattern[at..].iter().all(|&byte| byte == b'*')
    }
}

impl FromStr for Glob {
    type Err = BadGlob;
    fn from_str(text: &str) -> Result<Self, BadGlob> {
        let good = (1..=Self::LEN_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'*' | b'?'));
        if good { Ok(Self(text.into())) } else { Err(BadGlob) }
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Glob {
    type Error = BadGlob;
    fn try_from(text: String) -> Result<Self, BadGlob> {
        text.parse()
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, name: &str) -> bool {
        pattern.parse::<Glob>().unwrap().matches(&name.parse().unwrap())
    }

    #[test]
    fn stars_and_question_marks_match_as_in_a_shell() {
        for (pattern, name, want) in [
            ("*", "a", true),
            ("cpe-*", "cpe-", true),
            ("cpe-*", "cpe", false),
            ("cpe-?", "cpe-1", true),
            ("cpe-?", "cpe-12", false),
            ("cpe-?", "cpe-", false),
            ("*-north-*", "a-north-south-north-", true),
            ("*ab", "aab", true),
            ("*ab", "aba", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1c2b", false),
            ("a**?", "ab", true),
            ("a**?", "a", false),
            ("A", "a", false),
            ("a.c", "abc", false),
        ] {
            assert_eq!(fits(pattern, name), want, "{pattern} {name}");
        }
    }

    /// The same by recursion over characters: slow, and plainly right.
    fn oracle(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) if oracle(rest, name) => true,
            (Some((b'*', _)), Some((_, tail))) => oracle(pattern, tail),
            (Some((b'?', rest)), Some((_, tail))) => oracle(rest, tail),
            (Some((a, rest)), Some((b, tail))) => a == b && oracle(rest, tail),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Every text of 1 to `len_max` characters.
    fn words(alphabet: &[u8], len_max: usize) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut last = vec![String::new()];
        for _ in 0..len_max {
            last = last.iter().flat_map(|word| alphabet.iter().map(move |&b| format!("{word}{}", b as char))).collect();
            all.extend(last.iter().cloned());
        }
        all
    }

    #[test]
    fn every_short_pattern_agrees_with_the_recursive_definition() {
        for pattern in words(b"ab*?", 5) {
            for name in words(b"ab", 5) {
                assert_eq!(fits(&pattern, &name), oracle(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn patterns_are_checked_on_both_sides_of_each_edge() {
        for good in ["*", "a", &"*".repeat(128)] {
            assert!(good.parse::<Glob>().is_ok(), "{good}");
        }
        for bad in ["", "a/b", "[a]", "a b", "ä", &"*".repeat(129)] {
            assert_eq!(bad.parse::<Glob>(), Err(BadGlob), "{bad}");
        }
    }

    #[test]
    fn a_names_own_pattern_matches_it_alone() {
        let id: MediatorId = "cpe-1.a_b".parse().unwrap();
        assert!(Glob::exactly(&id).matches(&id));
        assert!(!Glob::exactly(&id).matches(&"cpe-1.a_bc".parse().unwrap()));
    }
}

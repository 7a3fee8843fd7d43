//! The line that sets a mediator up: printed by `isthmus-relay enroll`, taken by `isthmus-agent enroll`.
//!
//! ```text
//! isthmus1:BASE64URL( TEXT | first 4 bytes of its SHA-256 )
//! TEXT     lines: relay, pin, token, then one for each allow rule
//! ```
//!
//! It holds the mediator's token as it is: whoever has the line is that mediator until the token expires or is revoked.
//! An exchange for another token was left out: the relay would have to remember which lines were used, and a line that
//! somebody else used first would be noticed as late as a stolen one.

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::policy::AllowRule;

const PREFIX: &str = "isthmus1:";
const CHECKSUM_LEN: usize = 4;

/// Longest line in bytes: a token and its rules with room to spare.
pub const LINE_LEN_MAX: usize = 16 * 1024;

/// What a line holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Enrollment {
    /// The relay's service port, `HOST:PORT`.
    pub relay: String,
    /// The relay's fingerprint.
    pub pin: String,
    /// The mediator's token.
    pub token: String,
    /// What the mediator shall allow; empty for its default.
    pub allow: Vec<AllowRule>,
}

/// The text is no such line; each text names the cure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// It begins differently.
    #[error(
        "this is no enrollment line: one begins with 'isthmus1:'; paste what `isthmus-relay enroll MEDIATOR` printed"
    )]
    Other,
    /// It begins as a later version's does.
    #[error("this enrollment line is of another version; upgrade this program, or enroll with a relay of its version")]
    Version,
    /// It is not whole.
    #[error("the enrollment line is damaged (its checksum is wrong); copy it again, whole and on one line")]
    Damaged,
    /// It is longer than one can be.
    #[error("longer than an enrollment line can be ({LINE_LEN_MAX} bytes); paste that line alone")]
    TooLong,
}

impl Enrollment {
    /// The line. None of the texts holds a line's end.
    pub fn to_line(&self) -> String {
        let rules = self.allow.iter().map(ToString::to_string);
        let lines: Vec<_> = [&self.relay, &self.pin, &self.token].into_iter().cloned().chain(rules).collect();
        let mut bytes = lines.join("\n").into_bytes();
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a line. White space around it, and where a screen has broken it, does not count.
    ///
    /// # Errors
    /// [`BadLine`].
    pub fn from_line(line: &str) -> Result<Self, BadLine> {
        if line.len() > LINE_LEN_MAX {
            return Err(BadLine::TooLong);
        }
        let line: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        let body = line.strip_prefix(PREFIX).ok_or_else(|| {
            let later = line.strip_prefix("isthmus").and_then(|rest| rest.split_once(':'));
            let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            if later.is_some_and(|(version, _)| is_number(version)) { BadLine::Version } else { BadLine::Other }
        })?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| BadLine::Damaged)?;
        let (text, sum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(BadLine::Damaged)?;
        if checksum(text) != *sum {
            return Err(BadLine::Damaged);
        }
        // From here on it is what some relay made: what is not understood is of a later one.
        let text = std::str::from_utf8(text).map_err(|_| BadLine::Version)?;
        let mut lines = text.split('\n');
        let mut field = || lines.next().filter(|line| !line.is_empty()).map(str::to_owned).ok_or(BadLine::Version);
        let (relay, pin, token) = (field()?, field()?, field()?);
        let allow = lines.map(str::parse).collect::<Result<_, _>>().map_err(|_| BadLine::Version)?;
        Ok(Self { relay, pin, token, allow })
    }
}

impl std::fmt::Debug for Enrollment {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrollment").field("relay", &self.relay).field("pin", &self.pin).finish_non_exhaustive()
    }
}

fn checksum(text: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut sum = [0; CHECKSUM_LEN];
    sum.copy_from_slice(&digest(&SHA256, text).as_ref()[..CHECKSUM_LEN]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enrollment() -> Enrollment {
        Enrollment {
            relay: "relay.test:4470".into(),
            pin: "SHA256:00".into(),
            token: "a.b.c".into(),
            allow: vec!["10.0.0.0/8:22".parse().unwrap()],
        }
    }

    #[test]
    fn line_comes_back_even_broken_by_a_screen() {
        let line = enrollment().to_line();
        assert_eq!(Enrollment::from_line(&line), Ok(enrollment()));
        let (front, back) = line.split_at(40);
        assert_eq!(Enrollment::from_line(&format!("  {front}\n  {back}\n")), Ok(enrollment()));
    }

    #[test]
    fn every_lost_or_changed_character_is_noticed() {
        let line = enrollment().to_line();
        for at in PREFIX.len()..line.len() {
            let mut lost = line.clone();
            lost.remove(at);
            assert_eq!(Enrollment::from_line(&lost), Err(BadLine::Damaged), "{at}");
            let other = if &line[at..=at] == "A" { "B" } else { "A" };
            let mut changed = line.clone();
            changed.replace_range(at..=at, other);
            assert_eq!(Enrollment::from_line(&changed), Err(BadLine::Damaged), "{at}");
        }
    }

    #[test]
    fn other_texts_are_told_apart() {
        assert_eq!(Enrollment::from_line("e30.e30.x"), Err(BadLine::Other));
        assert_eq!(Enrollment::from_line("isthmus2:abcd"), Err(BadLine::Version));
        assert_eq!(Enrollment::from_line("isthmus:abcd"), Err(BadLine::Other));
        assert_eq!(Enrollment::from_line(&" ".repeat(LINE_LEN_MAX + 1)), Err(BadLine::TooLong));
    }

    #[test]
    fn debug_form_keeps_the_token_to_itself() {
        assert!(!format!("{:?}", enrollment()).contains("a.b.c"));
    }
}

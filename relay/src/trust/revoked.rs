//! What was issued and shall not be good any more: the file `revoked` of the state directory, a JSON object a line.
//!
//! ```text
//! {"jti":"9f…","at":1800000000,"until":1900000000}     one token, or certificate by the SHA-256 of what is signed
//! {"mediator":"cpe-1","at":1800000000}                 all that was issued to that mediator until then
//! {"terminal":"desk","at":1800000000}                  all that was issued to that terminal until then
//! ```
//!
//! An entry is dropped once `until` has passed; without it, it stays.

use std::collections::{HashMap, HashSet};
use std::fmt;

use isthmus_proto::MediatorId;
use isthmus_proto::record::{Known, parse_pin};
use serde::{Deserialize, Serialize};

use super::grant::{Credential, Holder, digest64};
use super::hex;
use super::token::signed_part;

/// Most entries: 16 MiB of file, and about as much memory.
pub(super) const ENTRIES_MAX: usize = 100_000;

/// Longest identifier in bytes.
const ID_LEN_MAX: usize = 256;

/// What is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The token of this identifier, or the certificate of which this is the SHA-256 of what its authority signed (64
    /// lower-case hexadecimal digits). A whole certificate's SHA-256 counts too, but its holder can make another one of
    /// that by the signature alone.
    Jti(String),
    /// What a mediator was issued so far.
    Mediator(MediatorId),
    /// What a terminal was issued so far.
    Terminal(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jti(id) => write!(f, "token {id}"),
            Self::Mediator(id) => write!(f, "mediator {id}"),
            Self::Terminal(name) => write!(f, "terminal {name}"),
        }
    }
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What.
    #[serde(flatten)]
    pub target: Target,
    /// Since when, in seconds since 1970. What is issued to a holder later is good.
    pub at: u64,
    /// When the entry may be dropped, since what it revokes has ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

/// The file's content, to be looked up in.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    entries: Vec<Entry>,
    ids: HashSet<u64>,
    holders: HashMap<(Holder, String), u64>,
}

/// The list has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the revocation list has {ENTRIES_MAX} entries, which is the most; drop some from the file 'revoked', or change the \
     key instead: token rotate, then token retire"
)]
pub struct Full;

impl Revoked {
    /// Reads the file's text. What ended before `now_unix` is left out.
    ///
    /// # Errors
    /// The number of the line that is not an entry, and why: passing it over could let somebody in. Or too many lines.
    pub fn parse(text: &str, now_unix: u64) -> anyhow::Result<Self> {
        let mut list = Self::default();
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let entry: Entry = serde_json::from_str(line)
                .map_err(|error| anyhow::anyhow!("line {} is no entry ({error}); correct it, or take it out", n + 1))?;
            list.add(entry, now_unix)?;
        }
        Ok(list)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            // Plain data: it always serialises.
            text.push_str(&serde_json::to_string(entry).unwrap_or_default());
            text.push('\n');
        }
        text
    }

    /// Adds an entry; of two for one holder the later counts.
    ///
    /// # Errors
    /// [`Full`].
    pub fn add(&mut self, entry: Entry, now_unix: u64) -> Result<(), Full> {
        if entry.until.is_some_and(|until| until <= now_unix) {
            return Ok(());
        }
        // The tables tell at once that most are new.
        let place = match self.knows(&entry.target) {
            true => self.entries.iter().position(|known| known.target == entry.target),
            false => None,
        };
        match place {
            Some(place) => {
                let known = &mut self.entries[place];
                known.at = known.at.max(entry.at);
                known.until = known.until.zip(entry.until).map(|(a, b)| a.max(b));
            }
            None if self.entries.len() >= ENTRIES_MAX => return Err(Full),
            None => self.entries.push(entry.clone()),
        }
        match entry.target {
            Target::Jti(id) => {
                self.ids.insert(digest64(id.as_bytes()));
            }
            Target::Mediator(id) => self.add_holder(Holder::Mediator, id.to_string(), entry.at),
            Target::Terminal(name) => self.add_holder(Holder::Terminal, name, entry.at),
        }
        Ok(())
    }

    fn add_holder(&mut self, holder: Holder, name: String, at: u64) {
        let since = self.holders.entry((holder, name)).or_insert(at);
        *since = at.max(*since);
    }

    fn knows(&self, target: &Target) -> bool {
        match target {
            Target::Jti(id) => self.ids.contains(&digest64(id.as_bytes())),
            Target::Mediator(id) => self.holders.contains_key(&(Holder::Mediator, id.to_string())),
            Target::Terminal(name) => self.holders.contains_key(&(Holder::Terminal, name.clone())),
        }
    }

    /// Whether this holder's proof is revoked. What was issued by a clock that may be `ahead_s` seconds before ours could
    /// bear a later time than a revocation that came after it.
    pub fn covers(&self, holder: Holder, name: &str, credential: &Credential, ahead_s: u64) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        self.ids.contains(&credential.id)
            || self.ids.contains(&credential.print)
            || self
                .holders
                .get(&(holder, name.to_owned()))
                .is_some_and(|&at| credential.issued <= at.saturating_add(ahead_s))
    }

    /// All entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

/// An identifier as an operator gives it: a token's `jti`, or a whole token, whose own then is taken, with its end.
///
/// # Errors
/// Neither; the text says what is wanted.
pub fn token_named(text: &str) -> Result<(Target, Option<u64>), String> {
    #[derive(Deserialize)]
    struct Claims {
        jti: Option<String>,
        exp: Option<u64>,
    }
    let text = text.trim();
    if text.split('.').count() == 3 && text.len() > ID_LEN_MAX / 4 {
        let claims: Claims =
            jsonwebtoken::dangerous::insecure_decode_claims(text).map_err(|error| format!("not a token: {error}"))?;
        return Ok((Target::Jti(claims.jti.unwrap_or_else(|| signed_part(text).to_owned())), claims.exp));
    }
    if (1..=ID_LEN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        if parse_pin(text).is_ok() && text.contains(':') {
            return Err("a certificate's fingerprint covers its signature, which its holder can change; give the \
                        certificate itself, with 'isthmus-relay token revoke --certificate FILE'"
                .into());
        }
        return Ok((Target::Jti(text.to_owned()), None));
    }
    Err("give the token's identifier (its jti), or the token itself".into())
}

/// A certificate (DER), by what of it is signed, with its end; `None` for what is none.
pub fn certificate_named(der: &[u8]) -> Option<(Target, u64)> {
    let known = Known::read(der)?;
    Some((Target::Jti(hex(&known.signed)), known.expires))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn proof(jti: &str, issued: u64) -> Credential {
        Credential { id: digest64(jti.as_bytes()), print: 0, key: 1, issued, expires: NOW + 9 }
    }

    fn entry(target: Target, at: u64, until: Option<u64>) -> Entry {
        Entry { target, at, until }
    }

    #[test]
    fn one_token_is_revoked_by_its_identifier_alone() {
        let list = Revoked::parse("{\"jti\":\"a\",\"at\":1}\n\n", NOW).unwrap();
        assert!(list.covers(Holder::Terminal, "desk", &proof("a", NOW), 0));
        assert!(!list.covers(Holder::Terminal, "desk", &proof("b", 0), 0));
    }

    #[test]
    fn a_holders_older_tokens_are_revoked_and_its_newer_ones_are_not() {
        let mut list = Revoked::default();
        list.add(entry(Target::Mediator("cpe-1".parse().unwrap()), NOW, None), NOW).unwrap();
        for (holder, name, issued, ahead_s, want) in [
            (Holder::Mediator, "cpe-1", NOW, 0, true),
            (Holder::Mediator, "cpe-1", 0, 0, true),
            (Holder::Mediator, "cpe-1", NOW + 1, 0, false),
            (Holder::Mediator, "cpe-1", NOW + 30, 30, true),
            (Holder::Mediator, "cpe-1", NOW + 31, 30, false),
            (Holder::Mediator, "cpe-10", NOW, 30, false),
            (Holder::Terminal, "cpe-1", NOW, 30, false),
        ] {
            assert_eq!(list.covers(holder, name, &proof("a", issued), ahead_s), want, "{holder:?} {name} {issued}");
        }
    }

    #[test]
    fn text_comes_back_without_what_has_ended_or_is_there_twice() {
        let mut list = Revoked::default();
        list.add(entry(Target::Jti("old".into()), 1, Some(NOW)), NOW).unwrap();
        list.add(entry(Target::Jti("a".into()), 1, Some(NOW + 1)), NOW).unwrap();
        list.add(entry(Target::Terminal("the desk".into()), 1, None), NOW).unwrap();
        list.add(entry(Target::Terminal("the desk".into()), 5, None), NOW).unwrap();
        let text = list.to_text();
        assert_eq!(text.lines().count(), 2);
        let read = Revoked::parse(&text, NOW).unwrap();
        assert_eq!(read.entries(), list.entries());
        assert!(read.covers(Holder::Terminal, "the desk", &proof("x", 5), 0));
        assert_eq!(Revoked::parse(&text, NOW + 1).unwrap().entries().len(), 1);
    }

    #[test]
    fn a_damaged_line_is_an_error_that_names_it() {
        for line in ["x", "{\"jti\":\"a\"}", "{\"mediator\":\"a/b\",\"at\":1}", "{\"at\":1}"] {
            let error = Revoked::parse(&format!("{{\"jti\":\"a\",\"at\":1}}\n{line}\n"), NOW).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn list_takes_its_limit_and_not_one_more() {
        let text: String = (0..ENTRIES_MAX).map(|n| format!("{{\"jti\":\"{n}\",\"at\":1}}\n")).collect();
        let mut list = Revoked::parse(&text, NOW).unwrap();
        assert_eq!(list.add(entry(Target::Jti("more".into()), 1, None), NOW), Err(Full));
        assert_eq!(list.add(entry(Target::Jti("7".into()), 9, None), NOW), Ok(()));
    }

    #[test]
    fn tokens_are_named_by_identifier_or_whole_and_fingerprints_are_refused_with_the_cure() {
        let jti = |text: &str| token_named(text).unwrap();
        assert_eq!(jti("abc"), (Target::Jti("abc".into()), None));
        let colons = ["AB"; 32].join(":");
        for print in [format!("SHA256:{colons}"), format!("sha256:{}", "ab".repeat(32)), colons] {
            assert!(token_named(&print).unwrap_err().contains("--certificate"), "{print}");
        }
        let key = super::super::TokenKey::new(&[1; 32]);
        let token = key.issue_mediator(&"cpe-1".parse().unwrap(), std::time::Duration::from_secs(5), NOW).unwrap();
        let (Target::Jti(id), Some(end)) = jti(&token) else { panic!("{token}") };
        assert_eq!((id.len(), end), (16, NOW + 5));
        assert!(token_named("two words").is_err());
    }
}

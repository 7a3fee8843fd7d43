//! The mediator's token: where it comes from, and whom it names. What it is worth is the relay's to say.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use isthmus_proto::MediatorId;
use isthmus_proto::record::{Certified, Holder};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

/// Longest token in bytes. Token, rules, service and addresses together must fit one frame.
pub const TOKEN_LEN_MAX: usize = 4096;

/// Where the token comes from. Its debug form keeps the token to itself.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// From the command line or the environment.
    Text(String),
    /// From a file.
    File(PathBuf),
    /// None: a certificate (PEM) names the mediator instead.
    Certificate(PathBuf),
}

/// A mediator's token. Its debug form keeps the text to itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The signed text (JWT), as the relay wants it; empty where a certificate takes its place.
    pub text: String,
    /// The mediator that it names.
    pub mediator: MediatorId,
    /// For how long it was issued, if it says.
    pub lifetime: Option<Duration>,
    /// When it ends, if it says.
    pub expires: Option<SystemTime>,
}

/// Why a token cannot be used; the text names the flag and the cure.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("--token-file: cannot read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// Longer than [`TOKEN_LEN_MAX`].
    #[error("{0}: longer than {TOKEN_LEN_MAX} bytes, so no token; `isthmus-relay token --mediator ID` makes one")]
    TooLong(&'static str),
    /// Not a JWT in compact form (RFC 7515 section 7.1).
    #[error("{0}: not a token (a JWT: three parts with dots between); `isthmus-relay token --mediator ID` makes one")]
    NotJwt(&'static str),
    /// A token of another role.
    #[error("{flag}: a {role}'s token, but a mediator's is needed; `isthmus-relay token --mediator ID` makes one")]
    OtherRole {
        /// Where the token came from.
        flag: &'static str,
        /// Its role.
        role: String,
    },
    /// A mediator's token without a good mediator's name.
    #[error("{0}: the token names no mediator; `isthmus-relay token --mediator ID` makes one that does")]
    NoMediator(&'static str),
    /// A certificate that names no mediator.
    #[error("--cert: {}: {why}", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl TokenSource {
    /// The token as it is now. Its signature and time are not verified: the relay does that.
    ///
    /// # Errors
    /// If it cannot be read, or is no mediator's.
    pub fn load(&self) -> Result<Token, TokenError> {
        match self {
            Self::Text(text) => parse_token(text, "--token (or ISTHMUS_TOKEN)"),
            Self::File(path) => {
                let text = read_bounded(path).map_err(|error| TokenError::Unreadable { path: path.clone(), error })?;
                parse_token(&text, "--token-file")
            }
            Self::Certificate(path) => certified(path),
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Certificate(path) => f.debug_tuple("Certificate").field(path).finish(),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("mediator", &self.mediator).finish_non_exhaustive()
    }
}

/// The file's text, cut right after what [`parse_token`] finds too long: the path may name something endless.
fn read_bounded(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    // Room for white space at the end besides.
    File::open(path)?.take(2 * TOKEN_LEN_MAX as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The claims that a mediator needs; the relay looks at the others.
#[derive(Deserialize)]
struct Claims {
    role: Option<String>,
    /// The mediator's name, in a mediator's token.
    sub: Option<String>,
    /// The same from issuers whose `sub` is not theirs to choose. It counts instead.
    isthmus: Option<Named>,
    iat: Option<u64>,
    exp: Option<u64>,
}

#[derive(Deserialize)]
struct Named {
    role: Option<String>,
    name: Option<String>,
}

fn parse_token(text: &str, flag: &'static str) -> Result<Token, TokenError> {
    let text = text.trim();
    if text.len() > TOKEN_LEN_MAX {
        return Err(TokenError::TooLong(flag));
    }
    let Claims { role, sub, isthmus, iat, exp } = payload(text).ok_or(TokenError::NotJwt(flag))?;
    let (role, name) = match isthmus {
        Some(named) => (named.role, named.name),
        None => (role, sub),
    };
    let lifetime = exp.zip(iat).map(|(exp, iat)| Duration::from_secs(exp.saturating_sub(iat)));
    match (role.as_deref(), name.and_then(|id| id.parse().ok())) {
        (Some("mediator"), Some(mediator)) => {
            let expires = exp.and_then(|exp| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(exp)));
            Ok(Token { text: text.to_owned(), mediator, lifetime, expires })
        }
        (Some("mediator") | None, _) => Err(TokenError::NoMediator(flag)),
        (Some(role), _) => Err(TokenError::OtherRole { flag, role: printable(role) }),
    }
}

/// The mediator that a certificate names.
fn certified(path: &Path) -> Result<Token, TokenError> {
    let bad = |why: String| TokenError::BadCertificate { path: path.to_owned(), why };
    let certificate = CertificateDer::from_pem_file(path).map_err(|error| {
        bad(format!("no certificate ({error}); give a PEM file that begins with the mediator's own"))
    })?;
    match Certified::read(&certificate).map_err(|error| bad(error.to_string()))?.holder {
        Holder::Mediator(mediator) => Ok(Token { text: String::new(), mediator, lifetime: None, expires: None }),
        Holder::Terminal(_) => Err(bad("a terminal's certificate; give one with a URI isthmus:mediator:ID".into())),
    }
}

/// The claims of a JWT: the middle one of three parts, base64url of JSON (RFC 7519 section 3).
fn payload(text: &str) -> Option<Claims> {
    let mut parts = text.split('.');
    let (head, body, signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || head.is_empty() || signature.is_empty() {
        return None;
    }
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()
}

/// The start of a text that came from a token, fit for a terminal's screen.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(32).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    pub(crate) fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    pub(crate) fn good_token() -> String {
        jwt(r#"{"role":"mediator","sub":"m1","exp":1}"#)
    }

    #[test]
    fn tokens_that_are_no_mediators_say_what_they_are() {
        let error = |text: &str| TokenSource::Text(text.to_owned()).load().unwrap_err();
        for text in [
            "",
            "x",
            "a.b",
            "a.!!.c",
            "a..c",
            &format!("{}.x", good_token()),
            &jwt("7"),
            &jwt("{"),
            &jwt("{\"role\":1}"),
        ] {
            let error = error(text);
            assert!(
                matches!(error, TokenError::NotJwt(_)) && error.to_string().starts_with("--token"),
                "{text}: {error}"
            );
        }
        let terminal = error(&jwt(r#"{"role":"terminal","mediators":"*"}"#)).to_string();
        assert!(terminal.contains("a terminal's token") && terminal.contains("--mediator ID"), "{terminal}");
        for claims in [r#"{"role":"mediator"}"#, r#"{"sub":"m1"}"#, "{}", r#"{"role":"mediator","sub":"-"}"#] {
            assert!(matches!(error(&jwt(claims)), TokenError::NoMediator(_)), "{claims}");
        }
        assert!(matches!(error(&"x".repeat(TOKEN_LEN_MAX + 1)), TokenError::TooLong(_)));
        assert!(matches!(error(&"x".repeat(TOKEN_LEN_MAX)), TokenError::NotJwt(_)));
    }

    #[test]
    fn a_token_file_is_read_anew_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = TokenSource::File(file.path().to_owned());
        for id in ["m1", "m2"] {
            let token = jwt(&format!(r#"{{"role":"mediator","sub":"{id}"}}"#));
            fs::write(file.path(), format!("{token}\n")).unwrap();
            let got = source.load().unwrap();
            assert_eq!((got.mediator.as_str(), got.text), (id, token));
        }
        fs::write(file.path(), jwt(r#"{"role":"terminal"}"#)).unwrap();
        assert!(source.load().unwrap_err().to_string().starts_with("--token-file: a terminal's"));
        drop(file);
        assert!(matches!(source.load(), Err(TokenError::Unreadable { .. })));
        assert!(matches!(TokenSource::File("/dev/zero".into()).load(), Err(TokenError::TooLong(_))));
    }

    #[test]
    fn another_issuers_object_names_the_mediator() {
        let text = jwt(r#"{"sub":"248","iat":10,"exp":70,"isthmus":{"role":"mediator","name":"m3"}}"#);
        let token = TokenSource::Text(text).load().unwrap();
        assert_eq!((token.mediator.as_str(), token.lifetime), ("m3", Some(Duration::from_secs(60))));
    }

    #[test]
    fn certificates_that_cannot_be_used_are_named_with_the_cure() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = TokenSource::Certificate(file.path().to_owned()).load().unwrap_err().to_string();
        assert!(error.starts_with("--cert") && error.contains("PEM"), "{error}");
    }
}

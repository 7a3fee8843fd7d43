//! Tokens: JWT (RFC 7519), signed with HMAC-SHA-256 by a key of the state directory, or with EdDSA or ES256 by somebody
//! whose public keys are in a JWKS file. docs/tokens.md tells the claims.

use std::fmt;
use std::time::Duration;

use anyhow::Context;
use ipnet::{Ipv4Net, Ipv6Net};
use isthmus_proto::policy::AllowRule;
use isthmus_proto::{Code, MediatorId};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::grant::{Credential, Grant, Holder, digest64};
use super::{Glob, Operation, Operations, hex};

/// How far a token's issuer's clock may be ahead of ours, in seconds. An expiry has no such leeway: it is
/// ours to enforce.
pub(super) const ISSUED_AHEAD_MAX_S: u64 = 30;

/// Longest token in bytes: room for hundreds of rules.
pub(super) const TOKEN_LEN_MAX: usize = 4096;

/// The audience that a token names, if it names any.
const AUDIENCE: &str = "isthmus";

/// A key of the state directory, which signs and checks tokens.
#[derive(Clone)]
pub struct TokenKey {
    kid: Box<str>,
    encoding: EncodingKey,
    pub(super) verifier: Verifier,
}

/// The half of a key that checks, and the one algorithm that it takes.
#[derive(Clone)]
pub(super) struct Verifier {
    /// Its number in [`Credential::key`].
    pub(super) id: u64,
    pub(super) algorithm: Algorithm,
    decoding: DecodingKey,
    validation: Validation,
}

/// What a terminal's token is good for.
#[derive(Clone, Debug)]
pub struct TerminalScope {
    /// The terminal's name.
    pub name: String,
    /// The mediators that it may use.
    pub mediators: Glob,
    /// What it may do; `None` for every operation, those of later versions included.
    pub operations: Option<Vec<Operation>>,
    /// Where it may go; `None` for everywhere that the mediator allows.
    pub destinations: Option<Vec<AllowRule>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Claims {
    /// The mediator's or terminal's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(flatten)]
    rights: Rights,
    /// The same in an object of its own, for issuers whose `sub` is not theirs to choose. It counts instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    isthmus: Option<Named>,
    #[serde(default, skip_serializing)]
    aud: Option<Audience>,
    #[serde(default)]
    iat: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Rights {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<Holder>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mediators: Option<Glob>,
    /// Words, not [`Operation`]s: one that a later version knows is passed over, which grants less, never more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allow: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Vec<AllowRule>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Named {
    name: String,
    #[serde(flatten)]
    rights: Rights,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn is_ours(&self) -> bool {
        match self {
            Self::One(name) => name == AUDIENCE,
            Self::Several(names) => names.iter().any(|name| name == AUDIENCE),
        }
    }
}

impl TokenKey {
    /// The key of this secret.
    pub fn new(secret: &[u8; 32]) -> Self {
        // The name tells nothing of the secret but that two files hold the same one.
        let id = digest64(&[b"isthmus token key".as_slice(), secret].concat());
        Self {
            kid: hex(&id.to_be_bytes()).into(),
            encoding: EncodingKey::from_secret(secret),
            verifier: Verifier::new(id, Algorithm::HS256, DecodingKey::from_secret(secret)),
        }
    }

    /// Its name, 16 hexadecimal digits, which every token that it signs carries (`kid`).
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Issues a token to a mediator.
    ///
    /// # Errors
    /// The system gives no random bytes, or the signing fails.
    pub fn issue_mediator(&self, id: &MediatorId, ttl: Duration, now_unix: u64) -> anyhow::Result<String> {
        let rights = Rights { role: Some(Holder::Mediator), ..Rights::default() };
        self.issue(id.to_string(), rights, ttl, now_unix)
    }

    /// Issues a token to a terminal.
    ///
    /// # Errors
    /// The scope makes the token too long, the system gives no random bytes, or the signing fails.
    pub fn issue_terminal(&self, scope: &TerminalScope, ttl: Duration, now_unix: u64) -> anyhow::Result<String> {
        let rights = Rights {
            role: Some(Holder::Terminal),
            mediators: Some(scope.mediators.clone()),
            allow: scope.operations.as_ref().map(|ops| ops.iter().map(Operation::to_string).collect()),
            to: scope.destinations.clone(),
        };
        self.issue(scope.name.clone(), rights, ttl, now_unix)
    }

    fn issue(&self, name: String, rights: Rights, ttl: Duration, now_unix: u64) -> anyhow::Result<String> {
        let claims = Claims {
            sub: Some(name),
            rights,
            iat: now_unix,
            exp: now_unix.saturating_add(ttl.as_secs()),
            jti: Some(token_id()?),
            ..Claims::default()
        };
        // As little as will do: SOCKS5 has room for 255 bytes of password. `typ` is optional (RFC 7519 section 5.1), and
        // `nbf` would say what `iat` says.
        let header = Header { kid: Some(self.kid.to_string()), typ: None, ..Header::new(Algorithm::HS256) };
        let token = jsonwebtoken::encode(&header, &claims, &self.encoding).context("cannot sign the token")?;
        anyhow::ensure!(
            token.len() <= TOKEN_LEN_MAX,
            "the token would be {} bytes, and {TOKEN_LEN_MAX} is the limit; give fewer or wider --to rules",
            token.len()
        );
        Ok(token)
    }
}

impl Verifier {
    pub(super) fn new(id: u64, algorithm: Algorithm, decoding: DecodingKey) -> Self {
        let mut validation = Validation::new(algorithm);
        // The library would read the clock itself; `Claims::grant` compares with the time that it is given.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self { id, algorithm, decoding, validation }
    }

    /// The claims of a token, if this key signed them.
    pub(super) fn claims(&self, token: &str) -> Option<Claims> {
        jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation).ok().map(|data| data.claims)
    }
}

impl Claims {
    /// What verified claims grant now.
    ///
    /// # Errors
    /// [`Code::TokenExpired`]; [`Code::BadToken`]: issued or valid in the future, for another audience, without what a
    /// role needs.
    pub(super) fn grant(self, token: &str, key: u64, now_unix: u64) -> Result<Grant, Code> {
        if self.exp <= now_unix {
            return Err(Code::TokenExpired);
        }
        let soon = now_unix.saturating_add(ISSUED_AHEAD_MAX_S);
        if self.iat > soon || self.nbf.is_some_and(|begin| begin > soon) {
            return Err(Code::BadToken);
        }
        if self.aud.is_some_and(|audience| !audience.is_ours()) {
            return Err(Code::BadToken);
        }
        let id = digest64(self.jti.as_deref().unwrap_or_else(|| signed_part(token)).as_bytes());
        let credential = Credential { id, print: id, key, issued: self.iat, expires: self.exp };
        let (name, rights) = match self.isthmus {
            Some(named) => (named.name, named.rights),
            None => (self.sub.ok_or(Code::BadToken)?, self.rights),
        };
        rights.grant(name, credential)
    }
}

impl Rights {
    fn grant(self, name: String, credential: Credential) -> Result<Grant, Code> {
        match self.role.ok_or(Code::BadToken)? {
            Holder::Mediator => {
                let id: MediatorId = name.parse().map_err(|_| Code::BadToken)?;
                Ok(mediator_grant(&id, credential))
            }
            Holder::Terminal => Ok(Grant {
                holder: Holder::Terminal,
                name,
                operations: self.allow.map_or(Operations::ALL, |words| known_operations(&words)),
                destinations: self.to.unwrap_or_else(everywhere),
                // A terminal's token always names mediators.
                mediators: self.mediators.ok_or(Code::BadToken)?,
                credential,
            }),
        }
    }
}

/// What a mediator may: be itself.
pub(super) fn mediator_grant(id: &MediatorId, credential: Credential) -> Grant {
    Grant {
        holder: Holder::Mediator,
        name: id.to_string(),
        operations: Operations::NONE,
        destinations: Vec::new(),
        mediators: Glob::exactly(id),
        credential,
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

fn known_operations(words: &[String]) -> Operations {
    words.iter().filter_map(|word| word.parse().ok()).collect()
}

/// What names a token without an identifier of its own: all of it but the signature, of which an ECDSA token has two that
/// are good, the second made from the first by anybody.
pub(super) fn signed_part(token: &str) -> &str {
    token.rsplit_once('.').map_or(token, |(signed, _)| signed)
}

pub(super) fn everywhere() -> Vec<AllowRule> {
    vec![AllowRule::network(Ipv4Net::default().into()), AllowRule::network(Ipv6Net::default().into())]
}

/// A random name for the token, so that one of a holder's tokens can be revoked.
fn token_id() -> anyhow::Result<String> {
    // As long as what is kept of it.
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use isthmus_proto::hello::{Hello, Report, Role};

    use super::super::Trust;
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const HOUR: Duration = Duration::from_secs(3600);

    fn key() -> TokenKey {
        TokenKey::new(&[7; 32])
    }

    impl TokenKey {
        /// What a relay with this key alone says.
        fn verify(&self, hello: &Hello, now: u64) -> Result<Grant, Code> {
            Trust::of_keys(vec![self.clone()]).verify(hello, now)
        }
    }

    fn id(text: &str) -> MediatorId {
        text.parse().unwrap()
    }

    fn as_mediator(token: &str, name: &str) -> Hello {
        Hello {
            token: token.into(),
            role: Role::Mediator { id: id(name), report: Box::<Report>::default() },
            udp_channels: 0,
            instance: 0,
        }
    }

    fn as_terminal(token: &str, mediator: Option<&str>) -> Hello {
        Hello { token: token.into(), role: Role::Terminal { mediator: mediator.map(id) }, udp_channels: 0, instance: 0 }
    }

    fn scope() -> TerminalScope {
        TerminalScope { name: "desk".into(), mediators: "cpe-*".parse().unwrap(), operations: None, destinations: None }
    }

    #[test]
    fn token_without_bounds_fits_a_socks_password() {
        let scope = TerminalScope { name: "a-terminal".into(), ..scope() };
        let token = key().issue_terminal(&scope, HOUR, NOW).unwrap();
        assert!(token.len() <= 255, "{}", token.len());
    }

    /// A token with these claims, signed by the right key with `algorithm`.
    fn signed(algorithm: Algorithm, claims: serde_json::Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), &claims, &key().encoding).unwrap()
    }

    #[test]
    fn mediators_token_is_good_for_its_own_name_only() {
        let token = key().issue_mediator(&id("cpe-1"), HOUR, NOW).unwrap();
        let grant = key().verify(&as_mediator(&token, "cpe-1"), NOW).unwrap();
        assert_eq!((grant.name.as_str(), grant.credential.expires), ("cpe-1", NOW + 3600));
        assert_eq!(grant.operations, Operations::NONE);
        assert!(!grant.permits_destination("10.0.0.1:80".parse().unwrap()));
        assert_eq!(key().verify(&as_mediator(&token, "cpe-2"), NOW), Err(Code::TokenMismatch));
        assert_eq!(key().verify(&as_terminal(&token, Some("cpe-1")), NOW), Err(Code::TokenMismatch));
    }

    #[test]
    fn terminals_token_is_good_for_the_mediators_of_its_pattern() {
        let token = key().issue_terminal(&scope(), HOUR, NOW).unwrap();
        let grant = key().verify(&as_terminal(&token, Some("cpe-1")), NOW).unwrap();
        assert_eq!(grant.operations, Operations::ALL);
        for to in ["10.0.0.1:80", "[fd00::1]:1"] {
            assert!(grant.permits_destination(to.parse().unwrap()));
        }
        assert!(key().verify(&as_terminal(&token, None), NOW).is_ok());
        assert_eq!(key().verify(&as_terminal(&token, Some("hub-1")), NOW), Err(Code::TokenMismatch));
        assert_eq!(key().verify(&as_mediator(&token, "cpe-1"), NOW), Err(Code::TokenMismatch));
        // The name of the terminal is no name of a mediator either.
        assert_eq!(key().verify(&as_mediator(&token, "desk"), NOW), Err(Code::TokenMismatch));
    }

    #[test]
    fn operations_and_destinations_are_those_that_were_issued() {
        let scope = TerminalScope {
            operations: Some(vec![Operation::Open, Operation::Connect]),
            destinations: Some(vec!["10.0.0.0/8:22".parse().unwrap()]),
            ..scope()
        };
        let token = key().issue_terminal(&scope, HOUR, NOW).unwrap();
        let grant = key().verify(&as_terminal(&token, Some("cpe-1")), NOW).unwrap();
        assert!(grant.permits(Operation::Open) && grant.permits(Operation::Connect));
        assert!(!grant.permits(Operation::Listen) && !grant.permits(Operation::List));
        assert!(grant.permits_destination("10.9.9.9:22".parse().unwrap()));
        assert!(!grant.permits_destination("10.9.9.9:23".parse().unwrap()));
        assert!(!grant.permits_destination("11.0.0.1:22".parse().unwrap()));
    }

    #[test]
    fn empty_lists_permit_nothing_and_unknown_operations_are_passed_over() {
        let claims = serde_json::json!({ "sub": "desk", "role": "terminal", "mediators": "*", "allow": ["fly", "open"],
            "to": [], "iat": NOW, "exp": NOW + 9, "jti": "x" });
        let grant = key().verify(&as_terminal(&signed(Algorithm::HS256, claims), None), NOW).unwrap();
        assert_eq!(grant.operations, [Operation::Open].into_iter().collect());
        assert!(!grant.permits_destination("10.0.0.1:80".parse().unwrap()));
    }

    #[test]
    fn token_ends_at_its_expiry_to_the_second() {
        let token = key().issue_mediator(&id("cpe-1"), HOUR, NOW).unwrap();
        assert!(key().verify(&as_mediator(&token, "cpe-1"), NOW + 3599).is_ok());
        assert_eq!(key().verify(&as_mediator(&token, "cpe-1"), NOW + 3600), Err(Code::TokenExpired));
    }

    #[test]
    fn clocks_may_differ_by_the_leeway_and_no_more() {
        let token = key().issue_mediator(&id("cpe-1"), HOUR, NOW).unwrap();
        assert!(key().verify(&as_mediator(&token, "cpe-1"), NOW - 30).is_ok());
        assert_eq!(key().verify(&as_mediator(&token, "cpe-1"), NOW - 31), Err(Code::BadToken));
    }

    #[test]
    fn other_keys_and_changed_tokens_are_refused() {
        let token = TokenKey::new(&[8; 32]).issue_mediator(&id("cpe-1"), HOUR, NOW).unwrap();
        assert_eq!(key().verify(&as_mediator(&token, "cpe-1"), NOW), Err(Code::BadToken));

        let good = key().issue_mediator(&id("cpe-1"), HOUR, NOW).unwrap();
        let other = key().issue_mediator(&id("cpe-2"), HOUR, NOW).unwrap();
        let (head, signature) = good.rsplit_once('.').unwrap();
        let (other_head, _) = other.rsplit_once('.').unwrap();
        let spliced = format!("{other_head}.{signature}");
        for bad in [spliced.as_str(), head, &format!("{head}."), "", "...", "a.b.c", &"x".repeat(TOKEN_LEN_MAX + 1)] {
            assert_eq!(key().verify(&as_mediator(bad, "cpe-2"), NOW), Err(Code::BadToken), "{bad}");
        }
    }

    #[test]
    fn only_hs256_is_taken() {
        let claims = serde_json::json!({ "sub": "cpe-1", "role": "mediator", "iat": NOW, "exp": NOW + 9, "jti": "x" });
        let check = |token: &str| key().verify(&as_mediator(token, "cpe-1"), NOW).map(|grant| grant.name);
        let good = signed(Algorithm::HS256, claims.clone());
        assert_eq!(check(&good), Ok("cpe-1".into()));
        // The right secret under another algorithm is refused as well.
        assert_eq!(check(&signed(Algorithm::HS512, claims)), Err(Code::BadToken));

        // {"alg":"none","typ":"JWT"} with no signature, and with the good one's.
        let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
        let mut parts = good.split('.').skip(1);
        let (payload, signature) = (parts.next().unwrap(), parts.next().unwrap());
        assert_eq!(check(&format!("{none}.{payload}.")), Err(Code::BadToken));
        assert_eq!(check(&format!("{none}.{payload}.{signature}")), Err(Code::BadToken));
    }

    #[test]
    fn claims_that_no_version_issues_are_refused() {
        for claims in [
            serde_json::json!({ "sub": "cpe-1", "role": "root", "iat": NOW, "exp": NOW + 9, "jti": "x" }),
            serde_json::json!({ "sub": "cpe-1", "role": "terminal", "iat": NOW, "exp": NOW + 9, "jti": "x" }),
            serde_json::json!({ "sub": "cpe-1", "role": "terminal", "mediators": "a/b", "iat": NOW, "exp": NOW + 9, "jti": "x" }),
            serde_json::json!({ "sub": "cpe-1", "role": "terminal", "mediators": "*", "to": ["x"], "iat": NOW, "exp": NOW + 9, "jti": "x" }),
            serde_json::json!({ "sub": "cpe-1", "role": "terminal", "mediators": "*", "iat": NOW, "jti": "x" }),
            serde_json::json!({ "sub": "cpe-1", "role": "terminal", "mediators": "*", "nbf": NOW + 31, "exp": NOW + 99 }),
            serde_json::json!({ "sub": "cpe-1", "role": "terminal", "mediators": "*", "aud": "mail", "exp": NOW + 9 }),
            serde_json::json!({ "role": "terminal", "mediators": "*", "iat": NOW, "exp": NOW + 9 }),
        ] {
            let token = signed(Algorithm::HS256, claims);
            assert_eq!(key().verify(&as_terminal(&token, None), NOW), Err(Code::BadToken));
        }
    }

    #[test]
    fn issuers_may_put_name_and_rights_into_an_object_and_need_no_more_than_an_expiry() {
        let claims = serde_json::json!({ "sub": "248289761001", "aud": ["mail", "isthmus"], "exp": NOW + 9,
            "isthmus": { "name": "desk", "role": "terminal", "mediators": "cpe-*", "allow": ["list"] } });
        let grant = key().verify(&as_terminal(&signed(Algorithm::HS256, claims), None), NOW).unwrap();
        assert_eq!((grant.name.as_str(), grant.mediators.to_string().as_str()), ("desk", "cpe-*"));
        assert_eq!(grant.operations, [Operation::List].into_iter().collect());
    }

    #[test]
    fn tokens_name_the_key_that_signed_them() {
        let token = key().issue_mediator(&id("cpe-1"), HOUR, NOW).unwrap();
        assert_eq!(jsonwebtoken::decode_header(&token).unwrap().kid.as_deref(), Some(key().kid()));
        assert_ne!(key().kid(), TokenKey::new(&[8; 32]).kid());
    }

    #[test]
    fn two_tokens_of_one_holder_differ() {
        let issue = || key().issue_mediator(&id("cpe-1"), HOUR, NOW).unwrap();
        assert_ne!(issue(), issue());
    }

    #[test]
    fn scope_that_makes_the_token_too_long_is_refused_at_its_issue() {
        let rules = (0..2000).map(|n| format!("10.{}.{}.0/24", n / 250, n % 250).parse().unwrap()).collect();
        let error =
            key().issue_terminal(&TerminalScope { destinations: Some(rules), ..scope() }, HOUR, NOW).unwrap_err();
        assert!(error.to_string().contains("--to"), "{error}");
    }

    #[test]
    fn key_does_not_print_itself() {
        assert_eq!(format!("{:?}", key()), "TokenKey(..)");
    }
}

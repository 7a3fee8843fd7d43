//! Tokens: JWT (RFC 7519) signed with HMAC-SHA-256 by the key in the state directory.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use ipnet::{Ipv4Net, Ipv6Net};
use isthmus_proto::hello::{Hello, Role};
use isthmus_proto::policy::{self, AllowRule};
use isthmus_proto::{Code, MediatorId};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use super::{Glob, Operation, Operations};

/// How far a token's issuer's clock may be ahead of ours, in seconds. An expiry has no such leeway: it is
/// ours to enforce.
const ISSUED_AHEAD_MAX_S: u64 = 30;

/// Longest token in bytes: room for hundreds of rules.
const TOKEN_LEN_MAX: usize = 4096;

/// The key that signs and checks tokens.
#[derive(Clone)]
pub struct TokenKey {
    encoding: EncodingKey,
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

/// What the holder of a checked token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The mediator's or terminal's name.
    pub name: String,
    /// What it may ask for; a mediator asks for nothing.
    pub operations: Operations,
    /// Where it may go; a mediator goes nowhere.
    pub destinations: Vec<AllowRule>,
    /// The mediators that it may use; a mediator's own name.
    pub mediators: Glob,
    /// When the token ends, in seconds since 1970.
    pub expires: u64,
}

impl Grant {
    /// All that the mediators allow, for whoever comes where nobody is asked for a token.
    pub fn everything(name: &str, mediators: Glob) -> Self {
        let (operations, destinations) = (Operations::ALL, everywhere());
        Self { name: name.to_owned(), operations, destinations, mediators, expires: u64::MAX }
    }

    /// Whether the holder may ask for `op`.
    pub fn permits(&self, op: Operation) -> bool {
        self.operations.contains(op)
    }

    /// Whether the holder may go to `to` through a mediator.
    pub fn permits_destination(&self, to: SocketAddr) -> bool {
        policy::allows(&self.destinations, to)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Holder {
    Mediator,
    Terminal,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    /// The mediator's or terminal's name.
    sub: String,
    role: Holder,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mediators: Option<Glob>,
    /// Words, not [`Operation`]s: one that a later version knows is passed over, which grants less, never more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allow: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<Vec<AllowRule>>,
    iat: u64,
    exp: u64,
    jti: String,
}

impl TokenKey {
    /// The key of this secret.
    pub fn new(secret: &[u8; 32]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        // The library would read the clock itself; `verify` compares with the time that it is given.
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        Self { encoding: EncodingKey::from_secret(secret), decoding: DecodingKey::from_secret(secret), validation }
    }

    /// Issues a token to a mediator.
    ///
    /// # Errors
    /// The system gives no random bytes, or the signing fails.
    pub fn issue_mediator(&self, id: &MediatorId, ttl: Duration, now_unix: u64) -> anyhow::Result<String> {
        self.issue(Claims {
            sub: id.to_string(),
            role: Holder::Mediator,
            mediators: None,
            allow: None,
            to: None,
            iat: now_unix,
            exp: now_unix.saturating_add(ttl.as_secs()),
            jti: token_id()?,
        })
    }

    /// Issues a token to a terminal.
    ///
    /// # Errors
    /// The scope makes the token too long, the system gives no random bytes, or the signing fails.
    pub fn issue_terminal(&self, scope: &TerminalScope, ttl: Duration, now_unix: u64) -> anyhow::Result<String> {
        self.issue(Claims {
            sub: scope.name.clone(),
            role: Holder::Terminal,
            mediators: Some(scope.mediators.clone()),
            allow: scope.operations.as_ref().map(|ops| ops.iter().map(Operation::to_string).collect()),
            to: scope.destinations.clone(),
            iat: now_unix,
            exp: now_unix.saturating_add(ttl.as_secs()),
            jti: token_id()?,
        })
    }

    fn issue(&self, claims: Claims) -> anyhow::Result<String> {
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .context("cannot sign the token")?;
        anyhow::ensure!(
            token.len() <= TOKEN_LEN_MAX,
            "the token would be {} bytes, and {TOKEN_LEN_MAX} is the limit; give fewer or wider --to rules",
            token.len()
        );
        Ok(token)
    }

    /// Checks `hello.token`, and that it was issued for what `hello` asks.
    ///
    /// # Errors
    /// [`Code::BadToken`]: not signed by this key with HS256, not to be understood, or issued in the future;
    /// [`Code::TokenExpired`]; [`Code::TokenMismatch`]: for another role or mediator.
    pub fn verify(&self, hello: &Hello, now_unix: u64) -> Result<Grant, Code> {
        let claims = self.claims(&hello.token)?;
        if claims.exp <= now_unix {
            return Err(Code::TokenExpired);
        }
        if claims.iat > now_unix.saturating_add(ISSUED_AHEAD_MAX_S) {
            return Err(Code::BadToken);
        }
        match (claims.role, &hello.role) {
            (Holder::Mediator, Role::Mediator { id, .. }) if claims.sub == id.as_str() => Ok(Grant {
                name: claims.sub,
                operations: Operations::NONE,
                destinations: Vec::new(),
                mediators: Glob::exactly(id),
                expires: claims.exp,
            }),
            (Holder::Terminal, Role::Terminal { mediator }) => {
                // A terminal's token always names mediators; one without was not made by `issue_terminal`.
                let mediators = claims.mediators.ok_or(Code::BadToken)?;
                if mediator.as_ref().is_some_and(|id| !mediators.matches(id)) {
                    return Err(Code::TokenMismatch);
                }
                Ok(Grant {
                    name: claims.sub,
                    operations: claims.allow.map_or(Operations::ALL, |words| known_operations(&words)),
                    destinations: claims.to.unwrap_or_else(everywhere),
                    mediators,
                    expires: claims.exp,
                })
            }
            (Holder::Mediator, _) | (Holder::Terminal, _) => Err(Code::TokenMismatch),
        }
    }

    fn claims(&self, token: &str) -> Result<Claims, Code> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(Code::BadToken);
        }
        let data = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation);
        data.map(|data| data.claims).map_err(|_| Code::BadToken)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

fn known_operations(words: &[String]) -> Operations {
    words.iter().filter_map(|word| word.parse().ok()).collect()
}

fn everywhere() -> Vec<AllowRule> {
    vec![AllowRule::network(Ipv4Net::default().into()), AllowRule::network(Ipv6Net::default().into())]
}

/// A random name for the token, so that logs can tell two tokens of one holder apart.
fn token_id() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(super::hex(&bytes))
}

#[cfg(test)]
mod tests {
    use isthmus_proto::hello::Report;

    use super::*;

    const NOW: u64 = 1_800_000_000;
    const HOUR: Duration = Duration::from_secs(3600);

    fn key() -> TokenKey {
        TokenKey::new(&[7; 32])
    }

    fn id(text: &str) -> MediatorId {
        text.parse().unwrap()
    }

    fn as_mediator(token: &str, name: &str) -> Hello {
        Hello {
            token: token.into(),
            role: Role::Mediator { id: id(name), report: Box::<Report>::default() },
            udp_channels: 0,
        }
    }

    fn as_terminal(token: &str, mediator: Option<&str>) -> Hello {
        Hello { token: token.into(), role: Role::Terminal { mediator: mediator.map(id) }, udp_channels: 0 }
    }

    fn scope() -> TerminalScope {
        TerminalScope { name: "desk".into(), mediators: "cpe-*".parse().unwrap(), operations: None, destinations: None }
    }

    /// A token with these claims, signed by the right key with `algorithm`.
    fn signed(algorithm: Algorithm, claims: serde_json::Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), &claims, &key().encoding).unwrap()
    }

    #[test]
    fn mediators_token_is_good_for_its_own_name_only() {
        let token = key().issue_mediator(&id("cpe-1"), HOUR, NOW).unwrap();
        let grant = key().verify(&as_mediator(&token, "cpe-1"), NOW).unwrap();
        assert_eq!((grant.name.as_str(), grant.expires), ("cpe-1", NOW + 3600));
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
        ] {
            let token = signed(Algorithm::HS256, claims);
            assert_eq!(key().verify(&as_terminal(&token, None), NOW), Err(Code::BadToken));
        }
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

//! All that decides who may come in, as one value: shards hold it, and a reload gives them another.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use isthmus_proto::Code;
use isthmus_proto::hello::{Hello, Role};
use isthmus_proto::policy::AllowRule;
use isthmus_proto::record::{self, BadIdentity, Certified, Known, fingerprint};
use jsonwebtoken::Algorithm;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::grant::{Credential, Grant, Holder, digest64};
use super::jwks::{self, IssuerKey};
use super::token::{ISSUED_AHEAD_MAX_S, TOKEN_LEN_MAX, everywhere, mediator_grant};
use super::{Glob, Operations, Revoked, State, TokenKey, hex, tls};

/// What of the command line decides whom to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustOptions {
    /// No TLS.
    pub plaintext: bool,
    /// An issuer's public keys.
    pub jwks: Option<PathBuf>,
    /// Authorities whose certificates let callers in.
    pub client_ca: Option<PathBuf>,
}

/// Whom the relay lets in. Immutable: a change is another one.
#[derive(Debug)]
pub struct Trust {
    /// TLS for the service port; `None` in plaintext mode.
    pub tls: Option<Arc<ServerConfig>>,
    keys: Vec<TokenKey>,
    issuers: Vec<IssuerKey>,
    callers: Callers,
    revoked: Revoked,
}

/// The authorities of callers' certificates.
#[derive(Clone, Debug, Default)]
struct Callers {
    authorities: Vec<CertificateDer<'static>>,
    /// Changes when an authority is gone: a certificate does not tell which one vouched for it, so that all who came by
    /// one are sent away then, and those whose authority still stands come back.
    epoch: u64,
}

/// Which authorities a handshake's certificate was held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judges(u64);

/// A certificate (DER) that TLS has verified.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a> {
    /// The certificate.
    pub der: &'a [u8],
    /// What it was verified against.
    pub judges: Judges,
}

impl Trust {
    /// With these keys and nothing else: no TLS, no issuer, no certificates. For tests and measurements.
    pub fn of_keys(keys: Vec<TokenKey>) -> Self {
        Self { tls: None, keys, issuers: Vec::new(), callers: Callers::default(), revoked: Revoked::default() }
    }

    /// Reads all of it anew. `before` is what holds until now.
    ///
    /// # Errors
    /// Whatever cannot be used, with file and cure.
    pub fn load(state: &State, options: &TrustOptions, before: Option<&Self>) -> anyhow::Result<Self> {
        let authorities = match &options.client_ca {
            Some(path) => read_authorities(path)?,
            None => Vec::new(),
        };
        ensure!(
            authorities.is_empty() || !options.plaintext,
            "--client-ca needs TLS; leave --plaintext off, or --client-ca"
        );
        let epoch = before.map_or(0, |before| {
            let gone = before.callers.authorities.iter().any(|one| !authorities.contains(one));
            before.callers.epoch + u64::from(gone)
        });
        let tls = if options.plaintext { None } else { Some(tls::server_config_with(state, authorities.clone())?) };
        Ok(Self {
            tls,
            keys: state.token_keys().to_vec(),
            issuers: options.jwks.as_deref().map(jwks::load).transpose()?.unwrap_or_default(),
            callers: Callers { authorities, epoch },
            revoked: state.revoked().clone(),
        })
    }

    /// Who the sender of `hello` is and what he may, by its token, or, if there is none, by `certificate`.
    ///
    /// # Errors
    /// The code, and what to tell the caller.
    pub fn admit(&self, hello: &Hello, certificate: Option<Shown<'_>>, now_unix: u64) -> Result<Grant, (Code, String)> {
        let told = |code: Code| (code, code.text().to_owned());
        match certificate {
            Some(shown) if hello.token.is_empty() => {
                // TLS judged by what was trusted when the connection came, which may be long ago for a slow caller.
                if shown.judges != self.judges() || self.callers.authorities.is_empty() {
                    let text = "the authorities of certificates changed during the handshake; try again";
                    return Err((Code::Revoked, text.into()));
                }
                let grant = self.certified(shown.der, now_unix)?;
                self.matches(&grant, &hello.role).and_then(|()| self.unrevoked(&grant)).map_err(told)?;
                Ok(grant)
            }
            _ => self.verify(hello, now_unix).map_err(told),
        }
    }

    /// Checks `hello.token`, and that it was issued for what `hello` asks.
    ///
    /// # Errors
    /// [`Code::BadToken`]: signed by no key here, not to be understood, or issued in the future;
    /// [`Code::TokenExpired`]; [`Code::Revoked`]; [`Code::TokenMismatch`]: for another role or mediator.
    pub fn verify(&self, hello: &Hello, now_unix: u64) -> Result<Grant, Code> {
        let grant = self.grant(&hello.token, now_unix)?;
        self.matches(&grant, &hello.role)?;
        Ok(grant)
    }

    /// What a token grants, whatever it is shown for.
    ///
    /// # Errors
    /// See [`Trust::verify`].
    pub fn grant(&self, token: &str, now_unix: u64) -> Result<Grant, Code> {
        if token.len() > TOKEN_LEN_MAX {
            return Err(Code::BadToken);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Code::BadToken)?;
        // Its issuer demands that we understand something which we do not (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(Code::BadToken);
        }
        let kid = header.kid.as_deref();
        let claims = if header.alg == Algorithm::HS256 {
            // Tokens of earlier versions name no key: each is tried, and there are few.
            let named = |key: &&TokenKey| kid.is_none_or(|kid| kid == key.kid());
            self.keys.iter().filter(named).find_map(|key| Some((key.verifier.claims(token)?, key.verifier.id)))
        } else {
            self.issuer(header.alg, kid).and_then(|key| Some((key.verifier.claims(token)?, key.verifier.id)))
        };
        let (claims, key) = claims.ok_or(Code::BadToken)?;
        let grant = claims.grant(token, key, now_unix)?;
        self.unrevoked(&grant)?;
        Ok(grant)
    }

    /// The issuer's key of that name; the only one of its algorithm needs none.
    fn issuer(&self, algorithm: Algorithm, kid: Option<&str>) -> Option<&IssuerKey> {
        let mut fitting = self.issuers.iter().filter(|key| key.verifier.algorithm == algorithm);
        match kid {
            Some(kid) => fitting.find(|key| key.kid.as_deref() == Some(kid)),
            None => fitting.next().filter(|_| fitting.next().is_none()),
        }
    }

    /// What a verified certificate says.
    fn certified(&self, der: &[u8], now_unix: u64) -> Result<Grant, (Code, String)> {
        let bad = |why: String| (Code::BadToken, why);
        let read = Certified::read(der).map_err(|error| bad(error.to_string()))?;
        // TLS has looked; the clock may have gone on since.
        if read.expires <= now_unix {
            return Err((Code::TokenExpired, "the certificate has expired; renew it".into()));
        }
        let known = Known::read(der).ok_or_else(|| bad(BadIdentity::Unreadable.to_string()))?;
        let digest = |sha256: [u8; 32]| digest64(hex(&sha256).as_bytes());
        let credential = Credential {
            id: digest(known.signed),
            print: digest(fingerprint(&CertificateDer::from(der))),
            key: self.judges().0,
            issued: read.issued,
            expires: read.expires,
        };
        match read.holder {
            record::Holder::Mediator(id) => Ok(mediator_grant(&id, credential)),
            record::Holder::Terminal(name) => {
                let mediators = read.mediators.ok_or_else(|| {
                    bad("the certificate names no mediators; put a subjectAltName URI isthmus:mediators:GLOB into it".into())
                })?;
                let mediators: Glob = mediators.parse().map_err(|error| bad(format!("isthmus:mediators: {error}")))?;
                Ok(Grant {
                    holder: Holder::Terminal,
                    name,
                    operations: read.allow.map_or(Operations::ALL, |words| {
                        words.split(',').filter_map(|word| word.parse().ok()).collect()
                    }),
                    destinations: match read.to {
                        Some(rules) => read_rules(&rules).map_err(bad)?,
                        None => everywhere(),
                    },
                    mediators,
                    credential,
                })
            }
        }
    }

    /// What certificates are held against in a handshake that begins now; its number stands for the authorities in
    /// [`Credential::key`].
    pub fn judges(&self) -> Judges {
        let epoch = self.callers.epoch.to_be_bytes();
        Judges(digest64(&[b"isthmus client authorities".as_slice(), &epoch].concat()))
    }

    fn matches(&self, grant: &Grant, role: &Role) -> Result<(), Code> {
        let fits = match (grant.holder, role) {
            (Holder::Mediator, Role::Mediator { id, .. }) => grant.name == id.as_str(),
            (Holder::Terminal, Role::Terminal { mediator }) => {
                mediator.as_ref().is_none_or(|id| grant.mediators.matches(id))
            }
            (Holder::Mediator | Holder::Terminal, _) => false,
        };
        if fits { Ok(()) } else { Err(Code::TokenMismatch) }
    }

    fn unrevoked(&self, grant: &Grant) -> Result<(), Code> {
        if self.takes_back(grant.holder, &grant.name, &grant.credential) { Err(Code::Revoked) } else { Ok(()) }
    }

    /// Whether the revocation list covers a proof. Our own keys sign by the clock that dates revocations; others' clocks
    /// may be as far ahead as they are believed.
    fn takes_back(&self, holder: Holder, name: &str, proof: &Credential) -> bool {
        let own = self.keys.iter().any(|key| key.verifier.id == proof.key);
        self.revoked.covers(holder, name, proof, if own { 0 } else { ISSUED_AHEAD_MAX_S })
    }

    /// Whether a session that came in before would be let in now.
    ///
    /// # Errors
    /// [`Code::TokenExpired`]; [`Code::Revoked`], also when the key that it was verified with is not trusted any more.
    pub fn still(&self, holder: Holder, name: &str, proof: &Credential, now_unix: u64) -> Result<(), Code> {
        if proof.expires <= now_unix {
            return Err(Code::TokenExpired);
        }
        let known = self.keys.iter().any(|key| key.verifier.id == proof.key)
            || self.issuers.iter().any(|key| key.verifier.id == proof.key)
            || !self.callers.authorities.is_empty() && proof.key == self.judges().0;
        if !known || self.takes_back(holder, name, proof) { Err(Code::Revoked) } else { Ok(()) }
    }

    /// The names of the own keys; the first one's signs.
    pub fn kids(&self) -> Vec<&str> {
        self.keys.iter().map(TokenKey::kid).collect()
    }

    /// What is revoked.
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// What is trusted, in numbers: own keys, issuers' keys, authorities, revocations.
    pub fn sizes(&self) -> [usize; 4] {
        [self.keys.len(), self.issuers.len(), self.callers.authorities.len(), self.revoked.entries().len()]
    }
}

/// Reads [`Trust`] anew when it is told to.
#[derive(Debug)]
pub struct TrustSource {
    state: PathBuf,
    current: Mutex<(TrustOptions, Arc<Trust>)>,
}

impl TrustSource {
    /// Of this state directory, with what was loaded at the start.
    pub fn new(state: PathBuf, options: TrustOptions, current: Arc<Trust>) -> Self {
        Self { state, current: Mutex::new((options, current)) }
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What holds now. Only the management plane asks.
    pub fn current(&self) -> Arc<Trust> {
        self.locked().1.clone()
    }

    /// Reads everything; what holds stays if that fails.
    ///
    /// # Errors
    /// See [`Trust::load`] and [`State::open`].
    pub fn load(&self) -> anyhow::Result<Arc<Trust>> {
        let state = State::open(&self.state)?;
        let (options, current) = self.locked().clone();
        Ok(Arc::new(Trust::load(&state, &options, Some(&current))?))
    }

    /// Makes `trust` the one that holds.
    pub fn set(&self, trust: Arc<Trust>) {
        self.locked().1 = trust;
    }

    /// [`TrustSource::set`], read by other options, which count from now on.
    pub fn set_with(&self, options: TrustOptions, trust: Arc<Trust>) {
        *self.locked() = (options, trust);
    }

    fn locked(&self) -> MutexGuard<'_, (TrustOptions, Arc<Trust>)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_authorities(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let shown = path.display();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.with_context(|| format!("--client-ca: cannot read {shown}; give a PEM file of certificates"))?;
    ensure!(!found.is_empty(), "--client-ca: {shown} has no certificate; give a PEM file of the authorities");
    Ok(found)
}

fn read_rules(text: &str) -> Result<Vec<AllowRule>, String> {
    text.split(',').map(|rule| rule.parse().map_err(|error| format!("isthmus:to:{rule}: {error}"))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_proto::hello::Report;

    use super::super::revoked::{Entry, Target};
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const HOUR: Duration = Duration::from_secs(3600);

    fn hello(token: String) -> Hello {
        let role = Role::Mediator { id: "cpe-1".parse().unwrap(), report: Box::<Report>::default() };
        Hello { token, role, udp_channels: 0, instance: 0 }
    }

    fn token(key: &TokenKey) -> String {
        key.issue_mediator(&"cpe-1".parse().unwrap(), HOUR, NOW).unwrap()
    }

    fn revoking(keys: Vec<TokenKey>, target: Target) -> Trust {
        let mut trust = Trust::of_keys(keys);
        trust.revoked.add(Entry { target, at: NOW, until: None }, NOW).unwrap();
        trust
    }

    #[test]
    fn every_kept_key_verifies_and_a_retired_one_ends_its_sessions() {
        let (new, old) = (TokenKey::new(&[1; 32]), TokenKey::new(&[2; 32]));
        let both = Trust::of_keys(vec![new.clone(), old.clone()]);
        let by_old = both.verify(&hello(token(&old)), NOW).unwrap();
        let by_new = both.verify(&hello(token(&new)), NOW).unwrap();
        let still = |trust: &Trust, grant: &Grant| trust.still(grant.holder, &grant.name, &grant.credential, NOW);
        assert_eq!((still(&both, &by_old), still(&both, &by_new)), (Ok(()), Ok(())));
        let after = Trust::of_keys(vec![new]);
        assert_eq!(after.verify(&hello(token(&old)), NOW), Err(Code::BadToken));
        assert_eq!((still(&after, &by_old), still(&after, &by_new)), (Err(Code::Revoked), Ok(())));
    }

    #[test]
    fn revoked_tokens_get_in_no_more_and_their_sessions_end() {
        let key = TokenKey::new(&[1; 32]);
        let token = token(&key);
        let before = Trust::of_keys(vec![key.clone()]);
        let grant = before.verify(&hello(token.clone()), NOW).unwrap();
        let (target, _) = super::super::revoked::token_named(&token).unwrap();
        for target in [target, Target::Mediator("cpe-1".parse().unwrap())] {
            let after = revoking(vec![key.clone()], target);
            assert_eq!(after.verify(&hello(token.clone()), NOW), Err(Code::Revoked));
            assert_eq!(after.still(grant.holder, &grant.name, &grant.credential, NOW), Err(Code::Revoked));
        }
        let other = revoking(vec![key], Target::Mediator("cpe-2".parse().unwrap()));
        assert!(other.verify(&hello(token), NOW).is_ok());
    }

    #[test]
    fn session_ends_with_its_token_to_the_second() {
        let key = TokenKey::new(&[1; 32]);
        let trust = Trust::of_keys(vec![key.clone()]);
        let grant = trust.verify(&hello(token(&key)), NOW).unwrap();
        let still = |now| trust.still(grant.holder, &grant.name, &grant.credential, now);
        assert_eq!((still(NOW + 3599), still(NOW + 3600)), (Ok(()), Err(Code::TokenExpired)));
    }

    #[test]
    fn a_certificate_does_not_stand_in_for_a_bad_token() {
        let trust = Trust::of_keys(vec![TokenKey::new(&[1; 32])]);
        let shown = Shown { der: b"never read", judges: trust.judges() };
        let (code, _) = trust.admit(&hello("x".into()), Some(shown), NOW).unwrap_err();
        assert_eq!(code, Code::BadToken);
        assert_eq!(trust.admit(&hello(String::new()), None, NOW).unwrap_err().0, Code::BadToken);
    }
}

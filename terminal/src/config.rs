//! How to reach a relay.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::limits::{CHANNELS_MAX, CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT};
use isthmus_proto::record::{Identity, parse_pin};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::Error;

/// How long a request waits for a lost connection to come back, unless the configuration says otherwise.
const LINK_TIMEOUT: Duration = Duration::from_secs(10);

/// By what the relay is known to be the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trust {
    /// SHA-256 of its certificate, as `isthmus-relay fingerprint` prints it.
    Pin([u8; 32]),
    /// The authorities of which one must have signed its certificate.
    Ca(Vec<CertificateDer<'static>>),
    /// Nothing: no encryption at all. For benchmarks and closed networks; the relay must want it too.
    Plaintext,
}

impl Trust {
    /// A pin as `isthmus-relay fingerprint` prints it: `SHA256:` and 64 hex digits, with or without colons.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn pin(text: &str) -> Result<Self, Error> {
        parse_pin(text).map(Self::Pin).map_err(|error| Error::Config(error.to_string()))
    }

    /// The certificates of a PEM file.
    ///
    /// # Errors
    /// [`Error::Config`] when the file cannot be read or has none.
    pub fn ca_file(path: &Path) -> Result<Self, Error> {
        let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(Self::Ca(certificates)),
            Ok(_) => Err(Error::Config(format!("{} has no certificate; give the relay's ca.pem", path.display()))),
            Err(error) => Err(Error::Config(format!("cannot read the CA file {}: {error}", path.display()))),
        }
    }
}

/// Whether exactly the asked port number will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Importance {
    /// The first free number from the asked one on.
    #[default]
    Desired,
    /// That number, or an error.
    Obligatory,
}

/// The waits between tries to come back to a relay that was lost: random, from nothing up to a bound that
/// begins at `base` and doubles with each try up to `cap` (full jitter), so that many terminals that lost
/// the same relay at the same moment do not return all at once. A wait that the relay told counts more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub(crate) base: Duration,
    pub(crate) cap: Duration,
}

impl Backoff {
    /// A `base` above `cap` counts as `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap }
    }
}

impl Default for Backoff {
    /// 500 ms, doubling up to 30 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_secs(30))
    }
}

/// How to reach a relay, and as whom.
///
/// ```
/// use std::time::Duration;
/// use isthmus_terminal::{Backoff, Config, Trust};
///
/// # fn main() -> Result<(), isthmus_terminal::Error> {
/// let pin = "SHA256:0000000000000000000000000000000000000000000000000000000000000000";
/// let config = Config::new("relay.example.net:4470", Trust::pin(pin)?, "the token")
///     .udp_channels(2)
///     .connect_timeout(Duration::from_secs(3))
///     .link_timeout(Duration::from_secs(20))
///     .reconnect(Backoff::new(Duration::from_millis(200), Duration::from_secs(10)));
/// assert!(!format!("{config:?}").contains("the token"));
/// # Ok(())
/// # }
/// ```
///
/// The token's memory is overwritten when a configuration is dropped, and its `Debug` form leaves it out.
#[derive(Clone)]
pub struct Config {
    pub(crate) relay: String,
    pub(crate) trust: Trust,
    pub(crate) token: Zeroizing<String>,
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) udp_channels: u8,
    pub(crate) connect_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) link_timeout: Duration,
    pub(crate) reconnect: Option<Backoff>,
}

impl Config {
    /// UDP channels that are asked for unless [`Config::udp_channels`] says otherwise.
    pub const UDP_CHANNELS: u8 = 1;

    /// `relay` is `HOST:PORT` of the service port; `token` is what `isthmus-relay token --terminal` gave.
    pub fn new(relay: impl Into<String>, trust: Trust, token: impl Into<String>) -> Self {
        let mut given = token.into();
        let token = Zeroizing::new(given.trim().to_owned());
        given.zeroize();
        Self {
            relay: relay.into(),
            trust,
            token,
            identity: None,
            udp_channels: Self::UDP_CHANNELS,
            connect_timeout: CONNECT_TIMEOUT,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            link_timeout: LINK_TIMEOUT,
            reconnect: Some(Backoff::default()),
        }
    }

    /// Proves who this is by a certificate instead of a token: `cert` is a PEM file of it and of what leads to an authority
    /// of the relay's, `key` one of its private key. The token given to [`Config::new`] must be empty then.
    ///
    /// # Errors
    /// [`Error::Config`] when a file cannot be read.
    pub fn certificate(self, cert: &Path, key: &Path) -> Result<Self, Error> {
        let unread = |path: &Path, error: &dyn fmt::Display| {
            Error::Config(format!("cannot read {}: {error}; give a PEM file", path.display()))
        };
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unread(cert, &error))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unread(key, &error))?;
        Ok(Self { identity: Some(Arc::new(Identity { chain, key })), ..self })
    }

    /// How many UDP channels to ask for, 0 to 16; the relay may grant fewer. Several spread the ports
    /// over several paths of a network that balances by flow.
    #[must_use]
    pub fn udp_channels(self, count: u8) -> Self {
        Self { udp_channels: count.min(CHANNELS_MAX), ..self }
    }

    /// How long a destination in the private network may take to answer a connect; 10 s at first.
    #[must_use]
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        Self { connect_timeout: timeout, ..self }
    }

    /// How long the relay may take for connection, TLS and greeting together; 10 s at first.
    #[must_use]
    pub fn handshake_timeout(self, timeout: Duration) -> Self {
        Self { handshake_timeout: timeout, ..self }
    }

    /// How long a request waits for a lost connection to come back before it fails with
    /// [`Error::NotConnected`]; 10 s at first, and zero lets it fail at once.
    #[must_use]
    pub fn link_timeout(self, timeout: Duration) -> Self {
        Self { link_timeout: timeout, ..self }
    }

    /// The waits between tries to come back after a connection was lost; see [`Backoff`].
    #[must_use]
    pub fn reconnect(self, waits: Backoff) -> Self {
        Self { reconnect: Some(waits), ..self }
    }

    /// A lost connection stays lost: everything on it fails with its end, requests and listeners too.
    #[must_use]
    pub fn without_reconnect(self) -> Self {
        Self { reconnect: None, ..self }
    }
}

impl fmt::Debug for Config {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { relay, trust, reconnect, .. } = self;
        f.debug_struct("Config")
            .field("relay", relay)
            .field("trust", trust)
            .field("reconnect", reconnect)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_pin_or_ca_file_is_a_config_error_that_names_it() {
        let error = Trust::pin("SHA256:12").unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains("12")), "{error}");
        let error = Trust::ca_file(Path::new("/nonexistent/ca.pem")).unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains("/nonexistent/ca.pem")), "{error}");
    }

    #[test]
    fn a_bad_certificate_file_is_a_config_error_that_names_it() {
        let config = Config::new("relay:4470", Trust::Plaintext, "");
        let missing = Path::new("/nonexistent/cert.pem");
        let error = config.certificate(missing, missing).unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains("/nonexistent/cert.pem")), "{error}");
    }

    #[test]
    fn debug_form_keeps_the_token_to_itself() {
        let config = Config::new("relay:4470", Trust::Plaintext, "secret\n");
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(config.token.as_str(), "secret");
        assert_eq!(config.udp_channels(200).udp_channels, CHANNELS_MAX);
    }
}

//! How to reach a relay.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::limits::{CHANNELS_MAX, CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT};
use isthmus_proto::record::{Identity, parse_pin};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Error;

/// By what the relay is known to be the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// How to reach a relay, and as whom.
#[derive(Clone)]
pub struct Config {
    pub(crate) relay: String,
    pub(crate) trust: Trust,
    pub(crate) token: String,
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) udp_channels: u8,
    pub(crate) connect_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
}

impl Config {
    /// UDP channels that are asked for unless [`Config::udp_channels`] says otherwise.
    pub const UDP_CHANNELS: u8 = 1;

    /// `relay` is `HOST:PORT` of the service port; `token` is what `isthmus-relay token --terminal` gave.
    pub fn new(relay: impl Into<String>, trust: Trust, token: impl Into<String>) -> Self {
        Self {
            relay: relay.into(),
            trust,
            token: token.into().trim().to_owned(),
            identity: None,
            udp_channels: Self::UDP_CHANNELS,
            connect_timeout: CONNECT_TIMEOUT,
            handshake_timeout: HANDSHAKE_TIMEOUT,
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
}

impl fmt::Debug for Config {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("relay", &self.relay).field("trust", &self.trust).finish_non_exhaustive()
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
        assert_eq!(config.token, "secret");
        assert_eq!(config.udp_channels(200).udp_channels, CHANNELS_MAX);
    }
}

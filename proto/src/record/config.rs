//! What both ends agree on: TLS 1.3 only, three suites, two key exchanges, one ALPN name.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ConfigBuilder, Error, RootCertStore, ServerConfig, WantsVerifier};

use super::suites::cipher_suites;
use super::verify::{CaVerifier, PinVerifier};

/// The ALPN name of this protocol.
pub const ALPN: &[u8] = b"isthmus/1";

/// By what a caller knows its relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The [`fingerprint`](super::fingerprint) of its certificate. Names and dates in it do not matter then.
    Pin([u8; 32]),
    /// Certification authorities, of which one must have signed it; it must name the relay's host.
    Ca(Vec<CertificateDer<'static>>),
}

/// A caller's own certificate, where that proves who it is.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, then what leads to an authority of the relay's.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

/// The relay's side. Callers prove who they are by token, not by certificate, and get no tickets.
///
/// # Errors
/// rustls's, when key and certificate do not fit together.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, Error> {
    Ok(Arc::new(server(server_builder()?.with_no_client_auth().with_single_cert(chain, key)?)))
}

/// [`server_config`], but each caller gets a ticket, with which its next handshake needs neither the relay's signature nor
/// its check (RFC 8446 2.2; the keys are still agreed anew). `tickets` seals and opens them.
///
/// # Errors
/// rustls's, when key and certificate do not fit together.
pub fn server_config_with_tickets(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    tickets: Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = server(server_builder()?.with_no_client_auth().with_single_cert(chain, key)?);
    config.ticketer = tickets;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// [`server_config`], but a caller may show a certificate that one of `authorities` signed. It need not: without any
/// it goes on as if none had been asked for. Without authorities none is asked for. There are no tickets: what they
/// would spare is the check of that certificate.
///
/// # Errors
/// rustls's, when key and certificate do not fit together, or an authority's certificate cannot be read.
pub fn server_config_with_callers(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authorities: Vec<CertificateDer<'static>>,
) -> Result<Arc<ServerConfig>, Error> {
    if authorities.is_empty() {
        return server_config(chain, key);
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authorities)?), provider())
        .allow_unauthenticated()
        // Names of authorities would be sent to each caller, and a caller has one certificate anyway.
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    Ok(Arc::new(server(server_builder()?.with_client_cert_verifier(verifier).with_single_cert(chain, key)?)))
}

fn server_builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, Error> {
    ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])
}

fn server(mut config: ServerConfig) -> ServerConfig {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ignore_client_order = true;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.enable_secret_extraction = true;
    config
}

/// The side of mediators and terminals. A ticket is kept and shown only by a handshake that is given [`super::Tickets`].
///
/// # Errors
/// rustls's, when a CA certificate cannot be read or there is none.
pub fn client_config(trust: Trust) -> Result<Arc<ClientConfig>, Error> {
    client_config_with_identity(trust, None)
}

/// [`client_config`] of a caller that shows a certificate where the relay asks for one.
///
/// # Errors
/// Also when the caller's key and certificate do not fit together.
pub fn client_config_with_identity(trust: Trust, identity: Option<Identity>) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13])?;
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Pin(pin) => Arc::new(PinVerifier { pin, provider }),
        Trust::Ca(certificates) => {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(certificates)?), provider)
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
            Arc::new(CaVerifier(verifier))
        }
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(Identity { chain, key }) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

fn roots(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// No post-quantum key exchange: it would add two kilobytes and a third more CPU to each handshake of a reconnect storm.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: cipher_suites(),
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1],
        ..default_provider()
    })
}

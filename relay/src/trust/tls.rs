//! TLS on the service port: 1.3 only, and the traffic secrets are handed out after the handshake.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use isthmus_proto::record::{self, Known};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::State;
use super::tickets::Tickets;

/// The name in the server's certificate. A caller that trusts the relay's own CA (`--ca`) verifies this
/// name, whatever address it dials: the CA signs nothing else.
pub use isthmus_proto::hello::SERVER_NAME;

/// The service port's TLS configuration.
///
/// Callers authenticate with tokens inside, so no client certificate is asked for, and a ticket proves nothing but that its
/// holder has met this relay.
///
/// # Errors
/// The server's key does not fit its certificate.
pub fn server_config(state: &State) -> anyhow::Result<Arc<ServerConfig>> {
    server_config_with(state, Vec::new())
}

/// [`server_config`], but callers may show a certificate of one of these authorities. If there are any, nobody gets a ticket:
/// a certificate is to be checked each time.
pub(super) fn server_config_with(
    state: &State,
    authorities: Vec<CertificateDer<'static>>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let (chain, key) = (vec![state.certificate().clone()], state.private_key());
    let config = match authorities.is_empty() {
        true => record::server_config_with_tickets(chain, key, Arc::new(Tickets::of(state))),
        false => record::server_config_with_callers(chain, key, authorities),
    };
    config.with_context(|| format!("server.pem and server.key in {} do not fit together", state.path().display()))
}

/// When the first of a file's certificates (PEM) expires, in seconds since 1970; `None` where none can be read.
pub fn first_expiry(path: &Path) -> Option<u64> {
    let certificates = CertificateDer::pem_file_iter(path).ok()?;
    certificates.filter_map(|der| Some(Known::read(&der.ok()?)?.expires)).min()
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, ServerConnection};

    use super::*;

    fn handshake(server: &Arc<ServerConfig>, ca: &[u8], name: &'static str) -> Result<ClientConnection, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca).unwrap()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap())?;
        let mut server = ServerConnection::new(server.clone())?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(client)
    }

    #[test]
    fn caller_that_trusts_the_ca_gets_tls_13_under_the_fixed_name_only() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap();
        let config = server_config(&state).unwrap();
        let ca = std::fs::read(dir.path().join("state/ca.pem")).unwrap();
        let client = handshake(&config, &ca, SERVER_NAME).unwrap();
        assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(client.peer_certificates().unwrap(), [state.certificate().clone()]);
        assert!(matches!(handshake(&config, &ca, "elsewhere"), Err(rustls::Error::InvalidCertificate(_))));
    }

    #[test]
    fn caller_that_trusts_another_ca_refuses_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let config = server_config(&State::open(&dir.path().join("a")).unwrap()).unwrap();
        State::open(&dir.path().join("b")).unwrap();
        let other_ca = std::fs::read(dir.path().join("b/ca.pem")).unwrap();
        assert!(matches!(handshake(&config, &other_ca, SERVER_NAME), Err(rustls::Error::InvalidCertificate(_))));
    }

    #[test]
    fn tickets_are_given_unless_certificates_of_callers_are_to_be_checked() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(&dir.path().join("state")).unwrap();
        let tickets = |config: Arc<ServerConfig>| (config.send_tls13_tickets, config.ticketer.enabled());
        assert_eq!(tickets(server_config(&state).unwrap()), (1, true));
        let ca = CertificateDer::from_pem_file(dir.path().join("state/ca.pem")).unwrap();
        assert_eq!(tickets(server_config_with(&state, vec![ca]).unwrap()), (0, false));
    }

    #[test]
    fn key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        State::open(&a).unwrap();
        State::open(&b).unwrap();
        std::fs::copy(b.join("server.key"), a.join("server.key")).unwrap();
        let error = server_config(&State::open(&a).unwrap()).unwrap_err().to_string();
        assert!(error.contains("server.key"), "{error}");
    }
}

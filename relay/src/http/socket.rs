//! The bound port, and what guards it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context;

use super::gate::Gate;

/// A port that listens, before it is served.
#[derive(Debug)]
pub struct HttpSocket {
    pub(super) listener: TcpListener,
    pub(super) gate: Gate,
    address: SocketAddr,
}

impl HttpSocket {
    /// Binds the port, and reads the token that guards it.
    ///
    /// # Errors
    /// The token cannot be had, or the port; both name their flags.
    pub fn bind(listen: SocketAddr, token_file: Option<&Path>) -> anyhow::Result<Self> {
        let gate = Gate::new(token_file)?;
        let cannot = || format!("--http: cannot listen on {listen}");
        let listener = TcpListener::bind(listen).with_context(cannot)?;
        listener.set_nonblocking(true).with_context(cannot)?;
        let address = listener.local_addr().with_context(cannot)?;
        Ok(Self { listener, gate, address })
    }

    /// Where it listens, with the real port number.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

//! The far end of both loads: a TCP source and sink, and a UDP echo, on one port number.

pub mod datagram;
mod opening;
pub mod stream;

use std::net::SocketAddr;

/// Serves both protocols at `listen`, whose number may be 0, until the process ends. `ready` is told the address.
///
/// # Errors
/// The number is taken, or there is no io_uring.
pub fn serve(listen: SocketAddr, ready: impl FnOnce(SocketAddr)) -> anyhow::Result<()> {
    let listen = stream::spawn(listen)?;
    datagram::Echo::bind(listen)?.serve(|| ready(listen))
}

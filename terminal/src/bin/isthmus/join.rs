//! One local connection and one in the private network become one.

use std::io;

use isthmus_terminal::TcpStream as Remote;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream as Local;

/// Several frames at once: the cost of a read and a lock is shared.
const BUFFER: usize = 64 * 1024;

/// Copies both ways until both directions have ended. An end travels as an end, a reset as a reset.
///
/// # Errors
/// What cut one of the two; the other one is cut as well.
pub(crate) async fn join(mut local: Local, mut remote: Remote) -> io::Result<()> {
    // Interactive protocols would wait for Nagle's algorithm; a socket that is gone shows itself below.
    let _ = local.set_nodelay(true);
    let joined = {
        let (local_read, local_write) = local.split();
        let (remote_read, remote_write) = remote.split();
        tokio::try_join!(copy(local_read, remote_write), copy(remote_read, local_write)).map(|_| ())
    };
    if joined.is_err() {
        // The local program must not take it for an orderly end; dropping `remote` resets that one.
        cut(local);
    }
    joined
}

/// Closes with a reset.
pub(crate) fn cut(local: Local) {
    // Where that cannot be had, it is an orderly end.
    let _ = local.set_zero_linger();
}

async fn copy(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    tokio::io::copy_buf(&mut BufReader::with_capacity(BUFFER, from), &mut to).await?;
    to.shutdown().await
}

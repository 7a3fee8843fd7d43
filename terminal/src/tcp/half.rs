//! The two directions of a stream.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Core;

/// The reading direction, borrowed.
pub struct ReadHalf<'a>(&'a Core);

/// The writing direction, borrowed. Dropping it changes nothing.
pub struct WriteHalf<'a>(&'a Core);

/// The reading direction, owned.
pub struct OwnedReadHalf(Arc<Core>);

/// The writing direction, owned. Dropping it ends the direction (FIN), as tokio's does.
pub struct OwnedWriteHalf(Arc<Core>);

pub(super) fn split(core: &Core) -> (ReadHalf<'_>, WriteHalf<'_>) {
    (ReadHalf(core), WriteHalf(core))
}

pub(super) fn into_split(core: Arc<Core>) -> (OwnedReadHalf, OwnedWriteHalf) {
    (OwnedReadHalf(core.clone()), OwnedWriteHalf(core))
}

impl OwnedReadHalf {
    /// The host's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.0.peer
    }
}

impl OwnedWriteHalf {
    /// The host's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.0.peer
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        // A stream that is gone has no direction to end.
        let _ = self.0.shutdown();
    }
}

impl AsyncRead for ReadHalf<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncRead for OwnedReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteHalf<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.shutdown())
    }
}

impl AsyncWrite for OwnedWriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.shutdown())
    }
}

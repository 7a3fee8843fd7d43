//! The two directions of a stream.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Core;

/// The reading direction of [`TcpStream::split`](crate::TcpStream::split), borrowed.
#[derive(Debug)]
pub struct ReadHalf<'a>(&'a Core);

/// The writing direction of [`TcpStream::split`](crate::TcpStream::split), borrowed. Dropping it changes nothing.
#[derive(Debug)]
pub struct WriteHalf<'a>(&'a Core);

/// The reading direction of [`TcpStream::into_split`](crate::TcpStream::into_split), owned. Dropping it only
/// gives up reading; the stream is reset when the writing half is dropped too before the host's end came, and
/// unread bytes lie here.
#[derive(Debug)]
pub struct OwnedReadHalf(Arc<Core>);

/// The writing direction of [`TcpStream::into_split`](crate::TcpStream::into_split), owned. Dropping it ends the
/// direction (FIN) behind all bytes that were written, as tokio's does: the host reads them and then the end,
/// even if a `write_all` was dropped half-way. Where a part must not look like the whole, give it to
/// [`OwnedWriteHalf::forget`] instead.
#[derive(Debug)]
pub struct OwnedWriteHalf {
    core: Arc<Core>,
    /// Whether its drop ends the direction.
    ends: bool,
}

pub(super) fn split(core: &Core) -> (ReadHalf<'_>, WriteHalf<'_>) {
    (ReadHalf(core), WriteHalf(core))
}

pub(super) fn into_split(core: Arc<Core>) -> (OwnedReadHalf, OwnedWriteHalf) {
    (OwnedReadHalf(core.clone()), OwnedWriteHalf { core, ends: true })
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
        self.core.peer
    }

    /// Drops this half without ending its direction: when the reading half is dropped too, the stream is
    /// reset, unless it was shut down before.
    pub fn forget(mut self) {
        self.ends = false;
    }
}

impl Drop for OwnedWriteHalf {
    fn drop(&mut self) {
        if self.ends {
            // A stream that is gone has no direction to end.
            let _ = self.core.shutdown();
        }
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
        self.core.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.core.shutdown())
    }
}

//! A connection with a host of the private network.

mod half;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use isthmus_proto::Code;
use isthmus_proto::link::UNSPECIFIED;
use isthmus_proto::wire::{HEADER_LEN, write_data_header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;

use crate::Error;
use crate::error::kind_of;
use crate::handle::Held;
use crate::port::local_addr;
use crate::state::{Body, Entry, ReadEnd, State, Stream};

pub use half::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};

/// A connection with a host of the private network, by way of the mediator.
///
/// [`tokio::io::AsyncWriteExt::shutdown`] ends the writing direction (FIN); the other one stays usable.
/// A reset is told from an end: reading gives [`io::ErrorKind::ConnectionReset`], or
/// [`io::ErrorKind::ConnectionAborted`] with an [`Error`] within when the connection to the relay is gone,
/// with which all its streams go. **Dropping a stream whose writing direction was not shut down resets
/// it**, and bytes on their way may be lost.
///
/// ```no_run
/// use isthmus_terminal::TcpStream;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// async fn ask(mut stream: TcpStream) -> std::io::Result<String> {
///     stream.write_all(b"a question").await?;
///     stream.shutdown().await?;
///     let mut answer = String::new();
///     stream.read_to_string(&mut answer).await?;
///     Ok(answer)
/// }
/// ```
///
/// # Cancel safety
/// As with tokio's own streams: a dropped `read` took nothing and a dropped `write` sent nothing, but a dropped
/// `write_all`, `read_exact` or `read_to_end` may have moved a part. Bytes that a `write` took are sent even if
/// nothing is flushed.
pub struct TcpStream {
    core: Arc<Core>,
}

/// Reads and writes take `&self`: the two directions share it. One reader and one writer at a time, which
/// the types that wrap it see to.
struct Core {
    held: Held,
    peer: SocketAddr,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl TcpStream {
    pub(crate) fn new(held: Held) -> Self {
        let peer = held.with(|state, key| match state.entries.get(key).map(|entry| &entry.body) {
            Some(Body::Stream(stream)) => stream.peer,
            _ => UNSPECIFIED,
        });
        Self { core: Arc::new(Core { held, peer }) }
    }

    /// The host's address.
    pub fn peer_addr(&self) -> SocketAddr {
        self.core.peer
    }

    /// The mediator's address of this connection, where it is known; else unspecified.
    pub fn local_addr(&self) -> SocketAddr {
        local_addr(&self.core.held)
    }

    /// Both directions, borrowed.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        half::split(&self.core)
    }

    /// Both directions, each to be owned by another task. Dropping the writing half ends its direction.
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        half::into_split(self.core)
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream").field("peer_addr", &self.core.peer).finish_non_exhaustive()
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.core.poll_read(cx, buf)
    }
}

impl AsyncWrite for TcpStream {
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

impl Core {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // A stream that always has bytes must not keep the task from yielding.
        let budget = ready!(poll_proceed(cx));
        let now = self.held.shared().now();
        let polled = self.held.with(|state, key| {
            let State { entries, link, ended, .. } = state;
            let Some(Entry { slot, live, body: Body::Stream(stream), .. }) = entries.get_mut(key) else {
                return Poll::Ready(Err(gone()));
            };
            let taken = stream.take(buf);
            if taken > 0 {
                link.consumed(*slot, taken, now);
                return Poll::Ready(Ok(()));
            }
            match (stream.read_end, ended) {
                (Some(ReadEnd::Fin), _) => Poll::Ready(Ok(())),
                (Some(ReadEnd::Reset(code)), _) => Poll::Ready(Err(reset(code))),
                (None, Some(error)) => Poll::Ready(Err(error.clone().into())),
                (None, None) if !*live => Poll::Ready(Err(gone())),
                (None, None) => {
                    set_waker(&mut stream.reader, cx);
                    Poll::Pending
                }
            }
        });
        if polled.is_ready() {
            budget.made_progress();
        }
        polled
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let budget = ready!(poll_proceed(cx));
        let now = self.held.shared().now();
        let polled = self.held.with(|state, key| {
            let State { entries, link, ended, .. } = state;
            let Some(Entry { slot, live, unsent, body: Body::Stream(stream), .. }) = entries.get_mut(key) else {
                return Poll::Ready(Err(gone()));
            };
            if let Some(error) = ended {
                return Poll::Ready(Err(error.clone().into()));
            }
            if stream.finished {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::BrokenPipe,
                    "the writing direction was shut down",
                )));
            }
            if !*live {
                return Poll::Ready(Err(match stream.read_end {
                    Some(ReadEnd::Reset(code)) => reset(code),
                    _ => reset(Code::Reset),
                }));
            }
            if bytes.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let room = Stream::writable(link.room(*slot), *unsent, link.is_congested());
            if room == 0 {
                set_waker(&mut stream.writer, cx);
                return Poll::Pending;
            }
            let taken = bytes.get(..room).unwrap_or(bytes);
            let mut frame = Vec::with_capacity(HEADER_LEN + taken.len());
            let mut header = [0; HEADER_LEN];
            write_data_header(&mut header, slot.id(), taken.len() as u16);
            frame.extend_from_slice(&header);
            frame.extend_from_slice(taken);
            *unsent += frame.len();
            link.enqueue(*slot, frame, now);
            Poll::Ready(Ok(taken.len()))
        });
        if polled.is_ready() {
            budget.made_progress();
        }
        polled
    }

    fn shutdown(&self) -> io::Result<()> {
        self.held.with(|state, key| {
            let State { entries, link, ended, .. } = state;
            let Some(Entry { slot, live, body: Body::Stream(stream), .. }) = entries.get_mut(key) else {
                return Err(gone());
            };
            if stream.finished {
                return Ok(());
            }
            if let Some(error) = ended {
                return Err(error.clone().into());
            }
            if !*live {
                return Err(reset(Code::Reset));
            }
            stream.finished = true;
            link.finish(*slot);
            // Nothing waited and the other direction had ended: the port is gone in order.
            *live = link.owner(*slot).is_some();
            Ok(())
        })
    }
}

fn set_waker(place: &mut Option<std::task::Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

/// The other end, or its relay, cut the stream.
fn reset(code: Code) -> io::Error {
    let kind = match kind_of(code) {
        io::ErrorKind::Other | io::ErrorKind::NotConnected => io::ErrorKind::ConnectionReset,
        kind => kind,
    };
    io::Error::new(kind, Error::Refused(code))
}

fn gone() -> io::Error {
    Error::Refused(Code::UnknownPort).into()
}

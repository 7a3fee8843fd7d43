//! What an answer consists of: all of it at once, or what comes.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

/// Pieces of a stream that may wait for their reader. Whoever makes them decides what to do when the queue is full: to
/// wait, or, where the next piece says all anyway, to leave one out.
pub const STREAM_QUEUE_MAX: usize = 8;

/// An answer's body.
#[derive(Debug)]
pub struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Whole(Option<Bytes>),
    /// The seat is given when the server lets the stream in.
    Stream(mpsc::Receiver<Bytes>, Option<Seat>),
}

/// A stream's place among those that may be there at once.
#[derive(Debug)]
pub(super) struct Seat(Rc<Cell<usize>>);

impl Seat {
    /// Takes a place, if there is one.
    pub(super) fn take(taken: &Rc<Cell<usize>>, max: usize) -> Option<Self> {
        (taken.get() < max).then(|| {
            taken.set(taken.get() + 1);
            Self(taken.clone())
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Body {
    /// A body that goes on until the sender is dropped. The sender learns by [`mpsc::Sender::closed`] that nobody reads any
    /// more; a peer that has vanished is noticed only by writing, so something should be sent from time to time.
    pub fn stream() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE_MAX);
        (sender, Self(Kind::Stream(receiver, None)))
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self.0, Kind::Stream(..))
    }

    /// Gives a stream its place, which it keeps until it ends.
    pub(super) fn seat(&mut self, given: Seat) {
        if let Kind::Stream(_, seat) = &mut self.0 {
            *seat = Some(given);
        }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        let bytes = bytes.into();
        Self(Kind::Whole((!bytes.is_empty()).then_some(bytes)))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Stream(receiver, _) => receiver.poll_recv(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Kind::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Stream(..) => SizeHint::default(),
        }
    }
}

//! A small HTTP/1 server for pages about the relay, on the management plane's thread.
//!
//! It knows nothing of the relay: [`Router`] maps paths to handlers, which [`crate::admin`] writes. A handler may answer at
//! once or with a body that goes on ([`Body::stream`]), as server-sent events do.
//!
//! **Invariant:** it only reads. There are no methods but GET and HEAD, a request's body is refused unread, and every wait
//! and every number is bounded by [`Limits`] and counted when its bound is hit ([`Tally`]).

mod body;
mod gate;
mod router;
mod server;
mod socket;
mod tally;
mod timed;

use std::time::Duration;

pub use body::{Body, STREAM_QUEUE_MAX};
pub use gate::check_exposure;
pub use router::{Access, Asked, Reply, Router, html, json, text};
pub use server::serve;
pub use socket::HttpSocket;
pub use tally::Tally;

/// The bounds of what HTTP clients can take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; one more is told so and closed.
    pub connections_max: usize,
    /// Of them, answers that go on; one more is told so.
    pub streams_max: usize,
    /// Bytes of a request's head: line and headers.
    pub head_max: usize,
    /// Headers of a request.
    pub headers_max: usize,
    /// A request's head must be there within this, and the next request on the same connection too.
    pub head: Duration,
    /// A handler must have its answer within this.
    pub answer: Duration,
    /// What is to be written must be taken within this.
    pub write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            streams_max: 32,
            head_max: 16 * 1024,
            headers_max: 64,
            head: Duration::from_secs(10),
            answer: Duration::from_secs(10),
            write: Duration::from_secs(10),
        }
    }
}

//! Sockets in a private network, by way of an Isthmus relay and the mediator that lives there.
//!
//! [`Mediator::attach`] attaches to one mediator; what comes of it looks like `tokio::net`:
//!
//! ```no_run
//! use isthmus_terminal::{Config, Mediator, Trust};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let trust = Trust::pin("SHA256:0000000000000000000000000000000000000000000000000000000000000000")?;
//! let config = Config::new("relay.example.net:4470", trust, "the token");
//! let mediator = Mediator::attach(&config, "cpe-17".parse()?).await?;
//! let mut stream = mediator.connect("10.0.0.5:80".parse()?).await?;
//! stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
//! stream.shutdown().await?;
//! let mut answer = Vec::new();
//! stream.read_to_end(&mut answer).await?;
//! # Ok(())
//! # }
//! ```
//!
//! | request | socket |
//! |---|---|
//! | open and connect | [`Mediator::connect`], a [`TcpStream`] |
//! | open and make server | [`Mediator::listen`], a [`TcpListener`] |
//! | open UDP, redirect | [`Mediator::udp_bind`], [`Mediator::udp_redirect`], a [`UdpSocket`] |
//! | each by itself | [`Mediator::open`], a [`Port`] |
//! | what the relay knows | [`Mediator::info`], [`Relay::list`] |
//!
//! # A mediator, asked
//!
//! ```no_run
//! # async fn example(mediator: isthmus_terminal::Mediator) -> Result<(), isthmus_terminal::Error> {
//! let info = mediator.info().await?;
//! println!("{} at {}, {} ports", info.summary.id, info.summary.observed, info.ports);
//! for interface in &info.report.interfaces {
//!     println!("{}: {:?}", interface.name, interface.addresses);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # When the connection to the relay is lost
//!
//! It comes back by itself, and listeners and UDP sockets with it; streams end with a typed error. The text
//! of [`Mediator`] has the whole of it.
//!
//! # Tasks and futures
//!
//! Two background tasks serve a handle: one drives its connection, one brings that back; each UDP channel
//! adds one. They end when the last handle and the last socket are dropped. Everything is
//! `Send + Sync + 'static`, needs a tokio runtime with time and I/O, and every future may be dropped at any
//! time: each method's text says what that means.
//!
//! # Features
//!
//! - `cli` (default): the program `isthmus`. A library user does without it: `default-features = false`.
#![cfg_attr(feature = "hyper", doc = "- `hyper`: [`MediatorConnector`], HTTP clients through a mediator.")]
#![cfg_attr(not(feature = "hyper"), doc = "- `hyper`: `MediatorConnector`, HTTP clients through a mediator.")]
//!
//! # Versions
//!
//! Enumerations and records that may grow are `#[non_exhaustive]`. The public surface is written down in
//! `api.txt` beside this crate's manifest, and a test compares it, so that no change of it goes unseen.
#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Nothing that a relay sends or a caller passes may panic.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable, clippy::indexing_slicing)
)]

/// Its examples are compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod channel;
mod config;
mod dial;
mod driver;
mod error;
mod handle;
#[cfg(feature = "hyper")]
mod hyper;
mod line;
mod listener;
mod mediator;
mod port;
mod shared;
mod state;
mod tcp;
mod transmit;
mod udp;

pub use config::{Backoff, Config, Importance, Trust};
pub use error::{Error, Unreachable};
#[cfg(feature = "hyper")]
#[cfg_attr(docsrs, doc(cfg(feature = "hyper")))]
pub use hyper::{Connecting, MediatorConnector};
pub use isthmus_proto::hello::{Interface, MediatorInfo, MediatorSummary, Report};
pub use isthmus_proto::policy::AllowRule;
pub use isthmus_proto::record::HandshakeError;
pub use isthmus_proto::{Code, MediatorId, PortId};
pub use listener::TcpListener;
pub use mediator::{Mediator, Relay, Stats};
pub use port::{OpenOptions, Port};
pub use rustls::pki_types::CertificateDer;
pub use tcp::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, TcpStream, WriteHalf};
pub use udp::UdpSocket;

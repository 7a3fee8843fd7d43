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
//!
//! One background task drives a connection to the relay; it ends when the last handle and the last
//! socket are dropped. Every future may be dropped at any time without losing bytes or ports.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod channel;
mod config;
mod dial;
mod driver;
mod error;
mod handle;
mod listener;
mod mediator;
mod port;
mod shared;
mod state;
mod tcp;
mod transmit;
mod udp;

pub use config::{Config, Importance, Trust};
pub use error::{Error, Unreachable};
pub use isthmus_proto::hello::{MediatorInfo, MediatorSummary, Report};
pub use isthmus_proto::{Code, MediatorId, PortId};
pub use listener::TcpListener;
pub use mediator::{Mediator, Relay, Stats};
pub use port::{OpenOptions, Port};
pub use tcp::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, TcpStream, WriteHalf};
pub use udp::UdpSocket;

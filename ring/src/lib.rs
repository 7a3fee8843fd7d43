//! The io_uring event loop as a safe facade: push operations, take completions.
//!
//! One [`Ring`] belongs to one thread. The data path is `recv_*` (the kernel picks buffers from a pool's ring and they
//! come back as [`Piece`]s), and `send*` (pieces go in as a batch and come back with the completion). A buffer is
//! therefore never copied, and every byte has one owner at any time: a piece, an operation in flight, or a pool.
//!
//! **Invariant:** this is the only crate with `unsafe`; nothing that a caller does with safe code can make the kernel
//! write to memory that a piece can read, or leave the kernel with a pointer to freed memory.
//!
//! **Invariant:** what the kernel may still touch lives in the ring's table of operations, in its provided rings, or has
//! been leaked on purpose (see [`Ring`]'s drop).
#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn, missing_docs)]

mod batch;
mod block;
mod control;
mod datagram;
mod direct;
mod error;
mod op;
mod piece;
mod pool;
mod probe;
mod provided;
mod ring;
mod shelf;
mod socket;
mod sqe;
mod thread;
mod udp;
mod uring;
mod wake;

pub use batch::{BATCH_PIECES_MAX, DatagramBatch, SendBatch};
pub use datagram::Datagrams;
pub use direct::{Connection, Name, Target, raise_descriptor_limit};
pub use error::RingError;
pub use op::{Completion, OpId, PollEvents, SendMode};
pub use piece::Piece;
pub use pool::{PoolConfig, PoolStats};
pub use probe::{Finding, probe};
pub use ring::{BUSY_POLL_MAX, Ring, RingConfig};
pub use socket::{BindOptions, ConnectionOption, Family, Socket};
pub use thread::pin_thread_to_core;
pub use udp::{UdpError, UdpOptions, udp_gso_supported};
pub use wake::Waker;

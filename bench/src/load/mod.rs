//! The loads: bulk TCP, new connections, ping-pong, and datagrams with their echoes.

mod own;
pub mod pingpong;
pub mod search;
pub mod setup;
pub mod tcp;
pub mod udp;

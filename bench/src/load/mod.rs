//! The loads: bulk TCP, new connections, ping-pong, and datagrams with their echoes. The first two go through any door of
//! the relay ([`preface`]).

pub mod client_hello;
mod own;
pub mod pingpong;
pub mod preface;
pub mod search;
pub mod setup;
pub mod tcp;
pub mod udp;

//! The loads: bulk TCP, and datagrams with their echoes.

pub mod search;
pub mod tcp;
pub mod udp;

//! Front doors as machines: what public clients say before their bytes belong to a port of a mediator.

mod connect;
pub mod proxy;
pub mod socks5;
pub mod target;

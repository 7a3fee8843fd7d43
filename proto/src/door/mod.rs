//! Front doors as machines: what public clients say before their bytes belong to a port of a mediator.

mod client_hello;
mod connect;
mod http_host;
pub mod name;
pub mod proxy;
pub mod proxy_protocol;
pub mod socks5;
pub mod target;

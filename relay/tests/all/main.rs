//! The relay's management plane, with shards that only answer commands, and its start and end. One binary, since each one is
//! linked anew.

mod admin;
mod commands;
mod common;
mod http;
mod lifecycle;
mod manager;
mod metrics;
mod publish;
mod reload;

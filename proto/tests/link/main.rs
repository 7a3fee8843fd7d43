//! The two ends of a link against each other, one named behaviour at a time. What random scripts find over a
//! faulty path is in `tests/sim`.

mod bounds;
mod credit;
mod order;
mod pair;
mod ports;
mod pulse;
mod requests;
mod windows;

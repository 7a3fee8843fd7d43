//! What the end-to-end tests stand on: a world of network namespaces with a gateway between public and
//! private side, the real binaries in it, and guards that take all of it down again.
//!
//! The shape of a test:
//!
//! ```no_run
//! use isthmus_e2e::{Agent, Keys, Ns, Relay, World};
//! let Some(world) = World::new() else { return };
//! let keys = Keys::new();
//! let relay = Relay::start(&world, &keys, &["--publish", "tcp:0.0.0.0:8080=cpe/10.77.0.3:80"]);
//! let agent = Agent::start(&world, &keys, "cpe", &[]);
//! ```
//!
//! **Invariant:** nothing here sleeps in the hope that something is ready by then. What is awaited is an
//! event: a line of output, a listening socket, the end of a process; each with a bound, and a failure
//! shows what the processes said. Failing is by panic, since the callers are tests.

mod loopback;
mod parties;
mod process;
mod program;
mod schema;
mod world;

pub use loopback::{Loopback, word_after};
pub use parties::{Agent, Keys, Relay, SERVICE, Terminal};
pub use process::{Finished, Process};
pub use program::{have, program};
pub use schema::Schema;
pub use world::{Counter, Counters, Ns, Proto, World};

use std::time::Duration;

/// How long an event may take that is expected at once. Long, because the machine may be busy: it is spent only by
/// a test that fails.
pub const SOON: Duration = Duration::from_secs(20);

/// Lets time pass in which nothing is sent, where silence itself is what a test is about (a binding's lifetime, a
/// blackout). It is not for waiting until something is ready.
pub fn silence(span: Duration) {
    std::thread::sleep(span);
}

/// `len` bytes that look random and are the same for the same `seed` (splitmix64).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_repeats_for_a_seed_and_differs_between_seeds() {
        assert_eq!(noise(1, 13), noise(1, 16)[..13]);
        assert_ne!(noise(1, 16), noise(2, 16));
        assert!(noise(1, 0).is_empty());
    }
}

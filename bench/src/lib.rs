//! The load harness: what it takes to see how fast the relay and the mediator are, and what an idle
//! tunnel costs, from outside.
//!
//! | command | what it is | module |
//! |---|---|---|
//! | `mediators` | many mediators in one process, each a real tunnel | [`simulate`] |
//! | `operate` | a terminal's operation through each of many mediators | [`operate`] |
//! | `tcp`, `udp`, `setup`, `pingpong` | loads: bulk streams, datagrams, new connections, small messages | [`load`] |
//! | `sink` | the other end of all loads | [`peer`] |
//! | `idle`, `storm`, `mixed`, `share`, `flows`, `doors` | what Isthmus alone is asked | [`works`] |
//! | `compare` | the same work on Isthmus, its peers and the ceilings | [`compare`], [`systems`], [`world`] |
//! | `report`, `diff` | results as a page, and two of them compared | [`html`], [`mod@diff`] |
//!
//! Every load's result is one line of `key=value` words, see [`report::Line`], so that scripts need no parser.
//!
//! **Invariant:** every load ends by itself: seconds, counts and rates are bounded by the command line.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod compare;
pub mod console;
pub mod diff;
pub mod file;
pub mod html;
pub mod load;
pub mod names;
pub mod operate;
pub mod peer;
pub mod report;
pub mod results;
pub mod simulate;
pub mod systems;
pub mod usage;
pub mod values;
pub mod works;
pub mod world;

//! Instructions of the hot code, counted by callgrind: a count hardly differs from run to run or from machine to
//! machine, so a change that adds a tenth to one fails, however busy the machine is. `scripts/bench-micro` runs them.
//!
//! Beside each benchmark stands what it took when that was last looked at (x86-64, the pinned compiler). After a change
//! that is meant, put the new count there.

// What the framework makes of its attributes is public and names everything in full.
#![allow(unreachable_pub, unused_qualifications)]

mod codec;
mod link;
mod record;
mod timer;

use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, main};

use codec::frames;
use link::links;
use record::records;
use timer::timers;

/// Operations in one benchmark, so that a tenth more of a short one is more than one instruction.
const REPEAT: usize = 100;

/// Fails when the count is more than a tenth above `instructions`.
fn about(instructions: u64) -> LibraryBenchmarkConfig {
    at_most(instructions + instructions / 10)
}

/// Fails when the count is more than twice `instructions`: for what picks its code by the CPU, as cryptography does.
fn roughly(instructions: u64) -> LibraryBenchmarkConfig {
    at_most(2 * instructions)
}

fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut config = LibraryBenchmarkConfig::default();
    // Its model of a cache is no machine's, and takes time.
    let mut callgrind = Callgrind::with_args(["--cache-sim=no"]);
    config.tool(callgrind.hard_limits([(EventKind::Ir, instructions)]));
    config
}

main!(library_benchmark_groups = [frames, records, links, timers]);

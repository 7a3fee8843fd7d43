//! Whole runs of two ends over a path with faults, each made of one seed. A failure prints the command that
//! repeats it; `ISTHMUS_SEEDS` sets how many are run, from the one of `ISTHMUS_SEED` on.

mod end;
mod oracle;
mod packets;
mod path;
mod plan;
mod rng;
mod stream;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use oracle::Tally;
use world::World;

/// Runs many seeds, or the one that the environment names. Many together must have met everything a few times.
fn for_each_seed(test: &str, default: u64, run: impl Fn(u64) -> Tally) {
    let mut tally = Tally::default();
    let setting = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let first = setting("ISTHMUS_SEED");
    let count = setting("ISTHMUS_SEEDS").unwrap_or(if first.is_some() { 1 } else { default });
    for seed in (first.unwrap_or(0)..).take(count as usize) {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(one) => tally.add(one),
            Err(panic) => {
                eprintln!("to repeat it: ISTHMUS_SEED={seed} cargo nextest run -p isthmus-proto --test sim {test}");
                resume_unwind(panic);
            }
        }
    }
    eprintln!("{count} seeds: {tally:?}");
    assert!(count < default || tally.least() >= 10, "these seeds do not reach everything: {tally:?}");
}

#[test]
fn all_converges_once_a_faulty_path_heals() {
    for_each_seed("all_converges_once_a_faulty_path_heals", 300, |seed| World::new(seed, false).run_and_heal());
}

#[test]
fn both_ends_notice_a_cut_in_time_and_nothing_false_is_delivered() {
    for_each_seed("both_ends_notice_a_cut_in_time_and_nothing_false_is_delivered", 200, |seed| {
        World::new(seed, true).run_and_cut()
    });
}

//! The timer wheel of a shard with many tunnels.

use std::time::Duration;

use gungraun::{library_benchmark, library_benchmark_group};
use isthmus_proto::Instant;
use isthmus_proto::timer::TimerWheel;

use crate::about;

const TIMERS: u32 = 1_000;

/// Spread over 40 seconds, which is all levels that maintain packets see.
fn deadline(key: u32) -> Instant {
    Instant::ZERO + Duration::from_millis(u64::from(key * 7919 % 40_000))
}

fn set_all(wheel: &mut TimerWheel) {
    (0..TIMERS).for_each(|key| wheel.set(key, deadline(key)));
}

/// One that knows all keys; no timer is set.
fn known() -> TimerWheel {
    let mut wheel = full();
    (0..TIMERS).for_each(|key| wheel.cancel(key));
    wheel
}

fn full() -> TimerWheel {
    let mut wheel = TimerWheel::new();
    set_all(&mut wheel);
    wheel
}

#[library_benchmark]
#[bench::first(args = (known()), config = about(124_909))]
#[bench::again(args = (shifted()), config = about(139_261))]
fn set(mut wheel: TimerWheel) -> TimerWheel {
    set_all(&mut wheel);
    wheel
}

/// One whose timers are all set to another time.
fn shifted() -> TimerWheel {
    let mut wheel = TimerWheel::new();
    (0..TIMERS).for_each(|key| wheel.set(key, deadline(key + 1)));
    wheel
}

// From deadline to deadline, as a shard does.
#[library_benchmark(config = about(285_500))]
#[bench::all((full(), Vec::with_capacity(TIMERS as usize)))]
fn expire((mut wheel, mut due): (TimerWheel, Vec<u32>)) -> (TimerWheel, Vec<u32>) {
    while let Some(now) = wheel.next_deadline() {
        wheel.expire(now, &mut due);
    }
    (wheel, due)
}

library_benchmark_group!(name = timers, benchmarks = [set, expire]);

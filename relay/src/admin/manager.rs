//! Word to the service manager: how the relay is, and signs of life for as long as every shard turns.
//!
//! **Invariant:** a sign of life follows an answer of each shard. A shard that is stuck in its loop, or a management plane
//! that is stuck itself, ends them, and the service manager then ends the relay.

use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::command::{Command, NotSent};
use super::counters::Counter;
use super::serve::Plane;

/// How often the status is told where no sign of life is wanted.
const STATUS_EVERY: Duration = Duration::from_secs(15);

/// After a round without an answer the next one comes so much sooner: one full queue is no reason to end a relay.
const HASTE: u32 = 8;

/// A shard whose queue is full has emptied it a moment later.
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// Tells the service manager how the relay is, without end; at once where there is none.
pub(super) async fn run(plane: Rc<Plane>) {
    if !plane.manager.is_heard() {
        return;
    }
    let period = plane.manager.beat().unwrap_or(STATUS_EVERY);
    let mut well = true;
    let mut next = Instant::now();
    loop {
        next += if well { period } else { period / HASTE };
        sleep_until(next).await;
        let deadline = Instant::now() + period / 2;
        match all_turn(&plane, deadline).await {
            Ok(()) => {
                if !well {
                    tracing::info!("every shard turns again");
                }
                well = true;
                plane.manager.alive();
                plane.manager.status(&status(&plane));
            }
            Err(why) => {
                if well {
                    tracing::error!("no sign of life to the service manager: {why}");
                }
                well = false;
                plane.manager.status(&why);
            }
        }
        // A round that took long is not made up for.
        next = next.max(Instant::now());
    }
}

/// The relay in one line.
pub(super) fn status(plane: &Plane) -> String {
    let sum = |counter| plane.shards.iter().map(|shard| shard.counters.get(counter)).sum::<u64>();
    let (tunnels, terminals, visitors) =
        (sum(Counter::TunnelsLive), sum(Counter::TerminalsLive), sum(Counter::VisitorsLive));
    format!("{tunnels} tunnels, {terminals} terminals, {visitors} visitors")
}

/// Waits until each shard has turned once more.
async fn all_turn(plane: &Plane, deadline: Instant) -> Result<(), String> {
    let mut answers = Vec::with_capacity(plane.shards.len());
    for (shard, handle) in plane.shards.iter().enumerate() {
        let answer = loop {
            let (reply, answer) = oneshot::channel();
            match handle.send(Command::Turn { reply }) {
                Ok(()) => break answer,
                Err(NotSent::Busy) if Instant::now() < deadline => tokio::time::sleep(BUSY_WAIT).await,
                Err(error) => return Err(format!("shard {shard}: {error}")),
            }
        };
        answers.push(answer);
    }
    for (shard, answer) in answers.into_iter().enumerate() {
        if !matches!(timeout_at(deadline, answer).await, Ok(Ok(()))) {
            return Err(format!("shard {shard} does not turn"));
        }
    }
    Ok(())
}

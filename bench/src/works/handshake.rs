//! What a handshake costs in pure CPU: both ends in one thread, no sockets, the same machines as relay and mediator use.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use isthmus_proto::hello::SERVER_NAME;
use isthmus_proto::record::{ClientHandshake, ServerHandshake, Step, Trust, client_config};
use isthmus_relay::trust::{State, server_config};
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

/// CPU time of one handshake at each end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pure {
    /// Of the relay, in seconds.
    pub server_s: f64,
    /// Of the mediator, in seconds.
    pub client_s: f64,
}

/// Flights that a handshake may take.
const FLIGHTS_MAX: usize = 10;

/// The mean over `count` handshakes, from 1, after some that are not counted.
///
/// # Errors
/// The keys of `state` are no good, or a handshake fails.
pub fn pure(state: &State, count: u32) -> anyhow::Result<Pure> {
    let server = server_config(state)?;
    let client = client_config(Trust::Pin(state.fingerprint().0))?;
    for _ in 0..count.div_ceil(10) {
        one(&server, &client)?;
    }
    let mut sum = Pure::default();
    for _ in 0..count.max(1) {
        let one = one(&server, &client)?;
        sum.server_s += one.server_s;
        sum.client_s += one.client_s;
    }
    let count = f64::from(count.max(1));
    Ok(Pure { server_s: sum.server_s / count, client_s: sum.client_s / count })
}

fn one(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> anyhow::Result<Pure> {
    let mut pure = Pure::default();
    let name = ServerName::try_from(SERVER_NAME).context("a relay's name is not valid")?;
    let mut callee = spend(&mut pure.server_s, || ServerHandshake::new(server.clone()))?;
    let mut caller = spend(&mut pure.client_s, || ClientHandshake::new(client.clone(), name))?;
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut done = [Step::NeedMore; 2];
    for _ in 0..FLIGHTS_MAX {
        done[0] = spend(&mut pure.client_s, || caller.feed(&mut down, &mut up))?;
        done[1] = spend(&mut pure.server_s, || callee.feed(&mut up, &mut down))?;
        if done == [Step::Done; 2] {
            spend(&mut pure.client_s, || caller.into_session())?;
            spend(&mut pure.server_s, || callee.into_session())?;
            return Ok(pure);
        }
    }
    ensure!(done == [Step::Done; 2], "the handshake does not end");
    Ok(pure)
}

/// Adds the CPU time of a call, its result's drop left out.
fn spend<T>(sum: &mut f64, call: impl FnOnce() -> T) -> T {
    let before = thread_time();
    let result = call();
    *sum += (thread_time() - before).as_secs_f64();
    result
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_handshake_cost_something() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("state")).unwrap();
        let pure = pure(&state, 3).unwrap();
        assert!(pure.server_s > 0.0 && pure.client_s > 0.0, "{pure:?}");
    }
}

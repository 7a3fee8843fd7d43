//! What a handshake costs in pure CPU: both ends in one thread, with the same machines as relay and mediator use, first
//! without sockets, then over a connection between their machines of the world.
//!
//! As many threads as there are processors do so at the same time: what a storm keeps busy are all of them, and on a machine
//! whose processors share a core, its caches or its power, each is slower then than alone.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use isthmus_proto::hello::SERVER_NAME;
use isthmus_proto::record::{ClientHandshake, Established, ServerHandshake, Step, Tickets, Trust, client_config};
use isthmus_proto::time::Instant;
use isthmus_relay::trust::{State, server_config};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
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

/// Which handshakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whole ones, of mediators that come for the first time or have no ticket.
    Whole,
    /// With a ticket of the one before.
    Resumed,
}

/// Both ends' configurations, and the mediator's ticket.
struct Ends {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    tickets: Option<Arc<Tickets>>,
}

impl Ends {
    fn new(state: &State, kind: Kind) -> anyhow::Result<Self> {
        let (server, client) = (server_config(state)?, client_config(Trust::Pin(state.fingerprint().0))?);
        Ok(Self { server, client, tickets: (kind == Kind::Resumed).then(Arc::default) })
    }

    fn callee(&self) -> anyhow::Result<ServerHandshake> {
        Ok(ServerHandshake::new(self.server.clone())?)
    }

    fn caller(&self) -> anyhow::Result<ClientHandshake> {
        let name = ServerName::try_from(SERVER_NAME).context("a relay's name is not valid")?;
        Ok(match &self.tickets {
            Some(tickets) => ClientHandshake::resuming(self.client.clone(), name, tickets.clone(), Instant::ZERO),
            None => ClientHandshake::new(self.client.clone(), name)?,
        })
    }
}

/// The caller's session, and what it makes of the ticket.
fn established(caller: ClientHandshake, ticket: &mut [u8]) -> anyhow::Result<Established> {
    let mut near = caller.into_session()?;
    near.session.open(ticket)?;
    Ok(near)
}

/// Flights that a handshake may take.
const FLIGHTS_MAX: usize = 10;

/// The mean over `count` handshakes, from 1, in each of so many threads, after some that are not counted.
///
/// # Errors
/// The keys of `state` are no good, or a handshake fails.
pub fn pure(state: &State, kind: Kind, count: u32, threads: usize) -> anyhow::Result<Pure> {
    let measure = || -> anyhow::Result<Pure> {
        let ends = Ends::new(state, kind)?;
        for _ in 0..count.div_ceil(10) {
            one(&ends)?;
        }
        let mut sum = Pure::default();
        for _ in 0..count.max(1) {
            let one = one(&ends)?;
            sum.server_s += one.server_s;
            sum.client_s += one.client_s;
        }
        Ok(sum)
    };
    let sums = at_once(threads, measure)?;
    let all = f64::from(count.max(1)) * sums.len() as f64;
    let mean = |of: fn(&Pure) -> f64| sums.iter().map(of).sum::<f64>() / all;
    Ok(Pure { server_s: mean(|pure| pure.server_s), client_s: mean(|pure| pure.client_s) })
}

/// What so many threads, at least one, find at the same time.
fn at_once<T: Send>(threads: usize, measure: impl Fn() -> anyhow::Result<T> + Send + Sync) -> anyhow::Result<Vec<T>> {
    thread::scope(|scope| {
        let begun: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&measure)).collect();
        let ended = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().map_err(|_| anyhow::anyhow!("a thread that measures panicked"))?
        };
        // All have ended before the first error is looked at.
        let found: Vec<_> = begun.into_iter().map(ended).collect();
        found.into_iter().collect()
    })
}

/// Where the two ends of a connection are.
#[derive(Clone, Debug)]
pub struct Path {
    /// The network namespaces of relay and mediator, as files.
    pub namespaces: [PathBuf; 2],
    /// The relay's address, with any port number.
    pub relay: IpAddr,
}

/// How long one end may wait for the other, which is the same thread: it waits only where the path loses something.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of one read: more than a flight has.
const FLIGHT: usize = 16 * 1024;

/// The mean CPU time of both ends of `count` handshakes, from 1, with sockets, connect and accept, in each of so many threads;
/// one after the other there, so that nothing waits for a processor and nothing is gathered. In seconds.
///
/// # Errors
/// As [`pure`], or the namespaces are not there or not ours to enter.
pub fn connected(state: &State, kind: Kind, count: u32, threads: usize, path: &Path) -> anyhow::Result<f64> {
    // A thread that has entered another namespace is good for nothing else.
    let measure = || -> anyhow::Result<f64> {
        let [relay, mediator] = &path.namespaces;
        enter(relay)?;
        let listener = TcpListener::bind((path.relay, 0)).context("cannot listen on the relay's machine")?;
        let to = listener.local_addr()?;
        enter(mediator)?;
        let ends = Ends::new(state, kind)?;
        for _ in 0..count.div_ceil(10) {
            one_connected(&ends, &listener, to)?;
        }
        let mut sum = 0.0;
        for _ in 0..count.max(1) {
            sum += one_connected(&ends, &listener, to)?;
        }
        Ok(sum / f64::from(count.max(1)))
    };
    let means = at_once(threads, measure)?;
    Ok(means.iter().sum::<f64>() / means.len() as f64)
}

fn enter(namespace: &std::path::Path) -> anyhow::Result<()> {
    let words = || format!("cannot enter the network namespace {}", namespace.display());
    let file = File::open(namespace).with_context(words)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).with_context(words)
}

/// CPU time of one, without that of its end.
fn one_connected(ends: &Ends, listener: &TcpListener, to: SocketAddr) -> anyhow::Result<f64> {
    let before = thread_time();
    let mut near = TcpStream::connect_timeout(&to, PATIENCE)?;
    let (mut far, _) = listener.accept()?;
    for socket in [&near, &far] {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    let (mut callee, mut caller) = (ends.callee()?, ends.caller()?);
    let (mut up, mut down, mut out) = (Vec::new(), Vec::new(), Vec::new());
    let mut done = [Step::NeedMore; 2];
    for _ in 0..FLIGHTS_MAX {
        done[0] = caller.feed(&mut down, &mut out)?;
        pass(&mut out, &mut near, &mut far, &mut up)?;
        done[1] = callee.feed(&mut up, &mut out)?;
        if done == [Step::Done; 2] {
            // The ticket goes with the welcome: it costs no send of its own.
            let ends = (established(caller, &mut out)?, callee.into_session()?);
            let spent = (thread_time() - before).as_secs_f64();
            drop(ends);
            return Ok(spent);
        }
        pass(&mut out, &mut far, &mut near, &mut down)?;
    }
    anyhow::bail!("the handshake does not end");
}

/// What one end has to say, through the sockets.
fn pass(out: &mut Vec<u8>, from: &mut TcpStream, to: &mut TcpStream, input: &mut Vec<u8>) -> anyhow::Result<()> {
    let (mut left, mut flight) = (out.len(), [0; FLIGHT]);
    from.write_all(out)?;
    out.clear();
    while left > 0 {
        let read = to.read(&mut flight)?;
        ensure!(read > 0, "the connection ended");
        input.extend_from_slice(&flight[..read]);
        left = left.saturating_sub(read);
    }
    Ok(())
}

fn one(ends: &Ends) -> anyhow::Result<Pure> {
    let mut pure = Pure::default();
    let mut callee = spend(&mut pure.server_s, || ends.callee())?;
    let mut caller = spend(&mut pure.client_s, || ends.caller())?;
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut done = [Step::NeedMore; 2];
    for _ in 0..FLIGHTS_MAX {
        done[0] = spend(&mut pure.client_s, || caller.feed(&mut down, &mut up))?;
        done[1] = spend(&mut pure.server_s, || callee.feed(&mut up, &mut down))?;
        if done == [Step::Done; 2] {
            spend(&mut pure.client_s, || established(caller, &mut down))?;
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
        for kind in [Kind::Whole, Kind::Resumed] {
            let pure = pure(&state, kind, 3, 2).unwrap();
            assert!(pure.server_s > 0.0 && pure.client_s > 0.0, "{pure:?}");
        }
        let ends = Ends::new(&state, Kind::Resumed).unwrap();
        one(&ends).unwrap();
        assert!(ends.tickets.unwrap().any(), "the next one would be whole");
    }

    #[test]
    fn handshake_over_sockets_costs_something_or_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(&folder.path().join("state")).unwrap();
        let own = PathBuf::from("/proc/self/ns/net");
        let path = Path { namespaces: [own.clone(), own], relay: "127.0.0.1".parse().unwrap() };
        if rustix::process::geteuid().is_root() {
            assert!(connected(&state, Kind::Resumed, 3, 2, &path).unwrap() > 0.0);
        }
        let nowhere = Path { namespaces: ["/nowhere/a", "/nowhere/b"].map(PathBuf::from), ..path };
        assert!(connected(&state, Kind::Whole, 1, 1, &nowhere).unwrap_err().to_string().contains("/nowhere/a"));
    }
}

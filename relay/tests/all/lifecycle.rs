//! A relay's start and stop, with shards that only answer commands. Signals reach the whole process, so the
//! scenarios run one after the other in one test.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::common::{Client, PATIENCE, fake_shard};
use isthmus_relay::config::{Config, Invocation, parse};
use isthmus_relay::run::{RunningShard, ShardSeat, Shards, Shared, run_with};
use rustix::process::{Signal, getpid, kill_process};

fn config(state: &Path) -> Config {
    let words = ["isthmus-relay", "--state", state.to_str().unwrap(), "--shards", "3", "--listen", "127.0.0.1:0"];
    match parse(words) {
        Ok(Invocation::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}

/// Shards that run until they are told to stop; shard 1 fails at once if `failing`.
fn spawn(failing: bool) -> impl FnOnce(Arc<Shared>, Vec<ShardSeat>) -> anyhow::Result<Shards> + Send {
    move |shared, seats| {
        assert!(shared.trust.tls.is_some());
        let start = |seat: ShardSeat| {
            let work = move || {
                let ShardSeat { id, commands, counters: _, asking: _, recorder: _, records: _, ended: _ended } = seat;
                if failing && id.0 == 1 {
                    anyhow::bail!("shard 1 broke");
                }
                fake_shard(id, Vec::new(), commands).join().map_err(|_| anyhow::anyhow!("panicked"))
            };
            RunningShard { wake: Arc::new(|| {}), thread: thread::spawn(work) }
        };
        Ok(Shards { listen: "127.0.0.1:9".parse()?, running: seats.into_iter().map(start).collect() })
    }
}

/// A client as soon as the relay listens.
fn connect(socket: &Path) -> Client {
    let deadline = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "the relay never listened");
        thread::yield_now();
    }
    Client::connect(socket)
}

#[test]
fn relay_stops_in_order_by_signals_and_by_a_shards_failure() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let socket = state.join("stats.sock");

    for signal in [Signal::TERM, Signal::INT] {
        let (own, relay) = (config(&state), spawn(false));
        let relay = thread::spawn(move || run_with(own, relay));
        let mut client = connect(&socket);
        assert_eq!(client.ask_json("show info json")["listen"], "127.0.0.1:9");
        assert_eq!(client.figure("shards"), 3);
        // A second relay on the same state is told so, and harms nothing.
        let error = run_with(config(&state), spawn(false)).unwrap_err().to_string();
        assert!(error.contains("another relay"), "{error}");
        client.ask("show tunnels");
        kill_process(getpid(), signal).unwrap();
        relay.join().unwrap().unwrap();
        assert_eq!(client.answer(), None);
        assert!(!socket.exists());
    }

    let error = run_with(config(&state), spawn(true)).unwrap_err().to_string();
    assert_eq!(error, "shard 1 broke");
    assert!(!socket.exists());

    let error = run_with(config(&state), |_, _| anyhow::bail!("no io_uring here")).unwrap_err().to_string();
    assert_eq!(error, "no io_uring here");
    assert!(!socket.exists());
}

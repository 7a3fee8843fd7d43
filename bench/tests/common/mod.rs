//! A relay for the tests.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use isthmus_relay::config::{Invocation, parse};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a relay, with `more` arguments, on a thread that lasts as long as the test's process, and tells its service port.
pub(crate) fn relay(state: &Path, more: &str) -> SocketAddr {
    let line = format!("isthmus-relay --listen 127.0.0.1:0 --shards 2 --state {} {more}", state.display());
    let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    let Ok(Invocation::Run(config)) = parse(words) else { panic!("the relay's command line has changed") };
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let spawned = isthmus_relay::run::run_with(*config, |shared, seats| {
            let shards = isthmus_relay::shard::spawn(shared, seats)?;
            tell.send(shards.listen)?;
            Ok(shards)
        });
        spawned.unwrap();
    });
    told.recv_timeout(PATIENCE).unwrap()
}

//! What the service manager hears of a relay, with shards that only answer commands.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, Plane};
use isthmus_relay::admin::{Command, ShardHandle};
use isthmus_service::Notifier;
use tempfile::TempDir;

/// As a service manager listens.
struct Manager {
    socket: UnixDatagram,
    dir: TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, dir }
    }

    /// A way to it for a relay of which it wants a sign of life every `watchdog`.
    fn notifier(&self, watchdog: Duration) -> Notifier {
        Notifier::to(self.dir.path().join("notify").as_os_str(), Some(watchdog)).unwrap()
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).expect("the relay says something");
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    /// The next message that begins like this.
    fn await_state(&self, state: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.next();
            if text.starts_with(state) {
                return text;
            }
            assert!(Instant::now() < deadline, "no {state}");
        }
    }
}

#[test]
fn reload_is_told_from_its_beginning_to_its_end_even_if_it_is_refused() {
    let manager = Manager::new();
    let plane = Plane::start_managed(manager.notifier(PATIENCE), Vec::new());
    assert_eq!(manager.next(), "READY=1\nSTATUS=0 tunnels, 0 terminals, 0 visitors");
    plane.client().ask("reload");
    assert!(manager.next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert!(manager.next().starts_with("READY=1\nSTATUS="));
    plane.stop();
    manager.await_state("STOPPING=1");
}

#[test]
fn signs_of_life_end_while_one_shard_does_not_turn() {
    let manager = Manager::new();
    let (commands, queue) = crossbeam_channel::bounded(16);
    let third = ShardHandle { commands, wake: Arc::new(|| {}), counters: Arc::default() };
    let plane = Plane::start_managed(manager.notifier(Duration::from_millis(400)), vec![third]);
    manager.await_state("READY=1");
    let answer_one = || loop {
        match queue.recv_timeout(PATIENCE).expect("the shard is asked") {
            Command::Turn { reply } => return reply,
            Command::Asks { reply } => drop(reply.send((Vec::new(), false))),
            other => panic!("{other:?}"),
        }
    };
    answer_one().send(()).unwrap();
    manager.await_state("WATCHDOG=1");

    // The other two go on answering, and the plane's timer goes on running.
    let held: Vec<_> = (0..3).map(|_| answer_one()).collect();
    manager.await_state("STATUS=shard 2 does not turn");
    manager.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match manager.socket.recv(&mut buffer) {
            Ok(len) => assert!(!buffer[..len].starts_with(b"WATCHDOG=1"), "a sign of life without the third shard"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    drop(held);
    manager.socket.set_read_timeout(Some(PATIENCE)).unwrap();

    let reply = answer_one();
    // The answer to a question of a round that is over counts for nothing.
    let _ = reply.send(());
    let next = answer_one();
    let _ = next.send(());
    manager.await_state("WATCHDOG=1");
    plane.stop();
}

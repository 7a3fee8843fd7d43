//! The real programs under a service manager that is one socket: what they say of start, reload, life and end.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use isthmus_e2e::{Keys, Loopback, Process, SOON, program, word_after};
use rustix::process::Signal;
use tempfile::TempDir;

/// As a service manager listens.
struct Manager {
    socket: UnixDatagram,
    dir: TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self { socket, dir }
    }

    /// Starts a program as the manager's unit would, with a sign of life due every second.
    fn start(&self, name: &str, mut command: Command) -> Process {
        command.env("NOTIFY_SOCKET", self.dir.path().join("notify")).env("WATCHDOG_USEC", "1000000");
        Process::spawn(name, command)
    }

    /// The next message that has this in it.
    fn hears(&self, part: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let mut buffer = [0; 4096];
            let len = self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {part}: {error}"));
            let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
            if text.contains(part) {
                return text;
            }
            assert!(Instant::now() < deadline, "no {part}");
        }
    }
}

fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

fn reload_is_told(manager: &Manager, process: &Process) {
    let before = monotonic_usec();
    process.signal(Signal::HUP);
    let text = manager.hears("RELOADING=1");
    // A manager takes no end of a reload for its own that began before it asked.
    let (_, usec) = text.split_once("MONOTONIC_USEC=").expect("the time of the reload's beginning");
    assert!(usec.trim().parse::<u64>().unwrap() >= before, "{text}");
    manager.hears("READY=1");
}

#[test]
fn relay_and_mediator_tell_the_service_manager_how_they_are() {
    let keys = Keys::new();
    let over_relay = Manager::new();
    let mut command = Command::new(program("isthmus-relay"));
    command.arg("--state").arg(keys.path()).args(["--listen", "127.0.0.1:0", "--shards", "2"]);
    let mut relay = over_relay.start("relay", command);
    over_relay.hears("READY=1");
    let service = word_after(&relay.wait_for_line("relay runs", SOON), "listen=").to_owned();

    let over_agent = Manager::new();
    let mut agent = over_agent.start("agent", Loopback::agent_command(&keys, &service, "cpe", &[]));
    // Before there is a tunnel: a relay that is away does not fail the mediator's start.
    assert!(over_agent.hears("READY=1").contains("STATUS=no tunnel yet"));
    over_agent.hears("STATUS=tunnel up");
    over_relay.hears("STATUS=1 tunnels");

    for (manager, process) in [(&over_relay, &relay), (&over_agent, &agent)] {
        manager.hears("WATCHDOG=1");
        manager.hears("WATCHDOG=1");
        reload_is_told(manager, process);
        manager.hears("WATCHDOG=1");
    }

    relay.terminate();
    over_relay.hears("STOPPING=1");
    assert!(relay.wait_exit(SOON).success());
    over_agent.hears("STATUS=no tunnel: ");
    agent.terminate();
    over_agent.hears("STOPPING=1");
    assert!(agent.wait_exit(SOON).success());
}

#[test]
fn stopped_mediator_gives_no_sign_of_life_until_it_turns_again() {
    let keys = Keys::new();
    let manager = Manager::new();
    // Nothing listens there: the loop turns without a tunnel as well.
    let agent = manager.start("agent", Loopback::agent_command(&keys, "127.0.0.1:9", "cpe", &[]));
    manager.hears("WATCHDOG=1");
    agent.signal(Signal::STOP);
    manager.socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut buffer = [0; 4096];
    // What was said before it stopped, then nothing for longer than a beat.
    while manager.socket.recv(&mut buffer).is_ok() {}
    agent.signal(Signal::CONT);
    manager.socket.set_read_timeout(Some(SOON)).unwrap();
    manager.hears("WATCHDOG=1");
}

//! Simulated mediators at a real relay, and operations through each of them.

mod common;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{PATIENCE, relay};
use isthmus_bench::names::{Names, numbered};
use isthmus_bench::simulate::{self, Answer, Settings};
use isthmus_bench::{operate, usage};
use isthmus_proto::record::{Trust, client_config};
use isthmus_relay::trust::{State, TerminalScope};

const COUNT: usize = 20;

struct World {
    relay: SocketAddr,
    state: State,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = State::open(&path).unwrap();
        Self { relay: relay(&path, ""), state, _folder: folder }
    }

    fn settings(&self, answer: Answer) -> Settings {
        Settings {
            relay: self.relay,
            tls: Some(client_config(Trust::Pin(self.state.fingerprint().0)).unwrap()),
            tokens: self.state.tokens().clone(),
            names: numbered("m", 0, COUNT).unwrap(),
            sources: None,
            rings: 1,
            udp_channels: 1,
            learned: false,
            tickets: true,
            at_once: 4,
            answer,
            patience: PATIENCE,
            hold: None,
        }
    }

    fn terminal(&self, mediators: Names) -> operate::Settings {
        let scope = TerminalScope {
            name: "bench".into(),
            mediators: "m*".parse().unwrap(),
            operations: None,
            destinations: None,
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let token = self.state.tokens().issue_terminal(&scope, Duration::from_secs(3600), now).unwrap();
        let trust = isthmus_terminal::Trust::Pin(self.state.fingerprint().0);
        operate::Settings {
            config: isthmus_terminal::Config::new(self.relay.to_string(), trust, token).udp_channels(0),
            mediators,
            at_once: 7,
            to: "10.0.0.1:7".parse().unwrap(),
            bytes: 100_000,
            patience: PATIENCE,
        }
    }
}

/// Mediators that stay for as long as the test's process does.
fn mediators(settings: Settings) {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || simulate::run(settings, |figures| tell.send(figures.line().to_string()).unwrap()));
    let line = told.recv_timeout(PATIENCE).unwrap();
    assert!(line.starts_with(&format!("up={COUNT} came_up={COUNT} all_up_s=")), "{line}");
    assert!(!line.contains("ended_"), "{line}");
}

fn operations(settings: &operate::Settings) -> operate::Outcome {
    tokio::runtime::Runtime::new().unwrap().block_on(operate::run(settings)).unwrap()
}

#[test]
fn every_simulated_mediator_echoes_for_a_terminal() {
    let world = World::new();
    mediators(world.settings(Answer::Echo));
    for names in [Names::All, Names::Given(numbered("m", 0, COUNT).unwrap())] {
        let outcome = operations(&world.terminal(names));
        assert_eq!((outcome.asked, outcome.answered), (COUNT, COUNT), "{:?}", outcome.failed);
        assert_eq!(outcome.echo.count(), COUNT as u64);
    }
    let outcome = operations(&world.terminal(Names::Given(numbered("m", COUNT - 1, 2).unwrap())));
    assert_eq!((outcome.asked, outcome.answered), (2, 1), "one of them does not exist");
}

#[test]
fn refusing_mediators_are_counted_as_unanswered_with_the_reason() {
    let world = World::new();
    mediators(world.settings(Answer::Refuse));
    let outcome = operations(&world.terminal(Names::All));
    assert_eq!((outcome.asked, outcome.answered), (COUNT, 0));
    assert_eq!(outcome.failed.values().sum::<usize>(), COUNT);
    assert!(outcome.failed.keys().all(|why| why.contains("refused the connection")), "{:?}", outcome.failed);
}

/// One command over the relay's stats socket.
fn ask(world: &World, command: &str) -> String {
    let mut stream = UnixStream::connect(world._folder.path().join("state/stats.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{command}; quit\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The sum over the shards of a counter.
fn counter(world: &World, word: &str) -> u64 {
    let stat = ask(world, "show stat json");
    let stat: serde_json::Value = serde_json::from_str(stat.trim()).unwrap();
    stat["total"][word].as_u64().unwrap_or_else(|| panic!("no {word} in {stat}"))
}

#[test]
fn every_tunnel_answers_a_check_whatever_it_says_to_terminals() {
    let world = World::new();
    mediators(Settings { rings: 3, sources: Some("127.0.1.0/24".parse().unwrap()), ..world.settings(Answer::Refuse) });
    for round in 1..=2 {
        assert!(ask(&world, "check tunnels").starts_with(&format!("{COUNT} tunnels are asked")));
        let deadline = Instant::now() + PATIENCE;
        while counter(&world, "checks_answered") < round * COUNT as u64 {
            assert!(Instant::now() < deadline, "not all of them answer");
            thread::yield_now();
        }
        assert_eq!((counter(&world, "checks_asked"), counter(&world, "checks_failed")), (round * COUNT as u64, 0));
    }
}

/// Also those whose connection is given to another shard with the ticket still to be sent.
#[test]
fn each_mediator_that_comes_back_shows_its_ticket() {
    for (tickets, resumed) in [(true, COUNT as u64), (false, 0)] {
        let world = World::new();
        mediators(Settings { tickets, ..world.settings(Answer::Echo) });
        assert_eq!(counter(&world, "handshakes_resumed_total"), 0);
        for name in numbered("m", 0, COUNT).unwrap() {
            ask(&world, &format!("kill tunnel {name}"));
        }
        let deadline = Instant::now() + PATIENCE;
        while counter(&world, "tunnels_total") < 2 * COUNT as u64 || counter(&world, "tunnels_live") < COUNT as u64 {
            assert!(Instant::now() < deadline, "not all of them come back");
            thread::yield_now();
        }
        assert_eq!(counter(&world, "handshakes_resumed_total"), resumed);
        let outcome = operations(&world.terminal(Names::All));
        assert_eq!((outcome.asked, outcome.answered), (COUNT, COUNT), "{:?}", outcome.failed);
    }
}

#[test]
fn sinks_behind_simulated_mediators_serve_the_loads() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new();
    mediators(world.settings(Answer::Sink));
    let settings = world.terminal(Names::All);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mediator = isthmus_terminal::Mediator::attach(&settings.config, "m1".parse().unwrap()).await.unwrap();
        let mut stream = mediator.connect(settings.to).await.unwrap();
        stream.write_all(b"Epingpong").await.unwrap();
        let mut echo = [0; 8];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"pingpong");
    });
}

#[test]
fn mediators_end_their_hold_with_all_tunnels_up() {
    let world = World::new();
    let settings = Settings { hold: Some(Duration::from_millis(100)), ..world.settings(Answer::Echo) };
    let figures = simulate::run(settings, |_| {}).unwrap();
    assert_eq!((figures.up, figures.came_up), (COUNT, COUNT as u64));
    assert!(figures.ended.is_empty(), "{:?}", figures.ended);
}

#[test]
fn mediators_that_cannot_reach_the_relay_say_why() {
    let world = World::new();
    // A number that was free a moment ago, and that nobody listens on.
    let relay = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings { relay, patience: Duration::from_millis(300), ..world.settings(Answer::Echo) };
    let error = simulate::run(settings, |_| {}).unwrap_err().to_string();
    assert!(error.contains("up=0") && error.contains("ended_connection-lost="), "{error}");
}

#[test]
fn descriptors_are_refused_beyond_the_limit_and_granted_below_it() {
    usage::raise_descriptors(100).unwrap();
    let error = usage::raise_descriptors(1 << 60).unwrap_err().to_string();
    assert!(error.contains("ulimit -Hn"), "{error}");
}

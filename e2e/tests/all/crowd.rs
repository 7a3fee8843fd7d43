//! Mediators that come while very many come: what can wait, waits.

use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use isthmus_e2e::{Agent, Keys, Loopback, Process, Relay, SOON, Terminal, World, program, word_after};
use isthmus_terminal::{Config, Mediator, OpenOptions, Trust};

/// Connections that begin no handshake: for the relay, callers on their way.
const CALLERS: usize = 20;

/// From the welcome until its line in the log is seen, at the most.
const SLACK: Duration = Duration::from_secs(2);

struct Crowd {
    _relay: Process,
    keys: Keys,
    service: String,
    _callers: Vec<TcpStream>,
}

impl Crowd {
    fn gather() -> Self {
        let keys = Keys::new();
        let mut command = Command::new(program("isthmus-relay"));
        command.arg("--state").arg(keys.path()).args(["--listen", "127.0.0.1:0", "--shards", "1"]);
        command.args(["--handshake-timeout", "1m"]);
        let relay = Process::spawn("relay", command);
        let service = word_after(&relay.wait_for_line("relay runs", SOON), "listen=").to_owned();
        let callers = (0..CALLERS).map(|_| TcpStream::connect(&service).unwrap()).collect();
        let crowd = Self { _relay: relay, keys, service, _callers: callers };
        let deadline = Instant::now() + SOON;
        while crowd.ask("show stat json")["total"]["half_open"] != CALLERS {
            assert!(Instant::now() < deadline, "not all callers are seen");
            std::thread::sleep(Duration::from_millis(10));
        }
        crowd
    }

    fn ask(&self, command: &str) -> serde_json::Value {
        let mut ctl = Command::new(program("isthmus-relay"));
        ctl.args(["ctl", "--state"]).arg(self.keys.path()).arg(command);
        serde_json::from_slice(&ctl.output().unwrap().stdout).unwrap()
    }

    /// A mediator, and the milliseconds for which it was asked to leave its UDP channels unopened.
    fn mediator(&self, id: &str) -> (Process, u64) {
        self.mediator_by(&self.service, id)
    }

    fn mediator_by(&self, way: &str, id: &str) -> (Process, u64) {
        let command = Loopback::agent_command(&self.keys, way, id, &["--allow", "127.0.0.0/8"]);
        let agent = Process::spawn(id, command);
        let line = agent.wait_for_line("tunnel up", SOON);
        let after = word_after(&line, "channels_after_ms=").parse().unwrap();
        (agent, after)
    }

    /// The channels of the only mediator that work.
    fn live(&self) -> u64 {
        self.ask("show tunnels json")["tunnels"][0]["udp_channels_live"].as_u64().unwrap()
    }

    async fn attach(&self, id: &str) -> Mediator {
        let token = self.keys.terminal_token("*", &[]);
        let config = Config::new(&*self.service, Trust::pin(self.keys.pin()).unwrap(), token);
        Mediator::attach(&config, id.parse().unwrap()).await.unwrap()
    }
}

#[tokio::test]
async fn udp_channels_of_a_crowd_wait_until_something_needs_them() {
    let crowd = Crowd::gather();
    let (agent, after) = crowd.mediator("cpe");
    assert!((5000..10_000).contains(&after), "{after}");
    let mediator = crowd.attach("cpe").await;
    assert!(!agent.said_after(0, "UDP channels live="), "they were opened, which nothing needed");
    // It allows nothing but UDP, and so waits for the channel that it has opened.
    let options = OpenOptions::udp().local("127.0.0.1:0".parse().unwrap()).redirect(false);
    let socket = mediator.open(&options).await.unwrap().udp_socket().unwrap();
    agent.wait_for_line("UDP channels live=", SOON);
    assert!(crowd.live() > 0);
    let host = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"there", host.local_addr().unwrap()).await.unwrap();
    let mut buffer = [0; 16];
    let (len, from) = tokio::time::timeout(SOON, host.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer[..len], b"there");
    host.send_to(b"back", from).await.unwrap();
    let (bytes, _) = tokio::time::timeout(SOON, socket.recv_datagram()).await.unwrap().unwrap();
    assert_eq!(&bytes[..], b"back");
}

/// A way to the relay's TCP port alone, by a number at which no UDP datagram is answered.
fn way_without_udp(service: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let way = listener.local_addr().unwrap().to_string();
    let service = service.to_owned();
    std::thread::spawn(move || {
        for inner in listener.incoming() {
            let (inner, outer) = (inner.unwrap(), TcpStream::connect(&service).unwrap());
            for (mut from, mut to) in [(inner.try_clone().unwrap(), outer.try_clone().unwrap()), (outer, inner)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    way
}

#[tokio::test]
async fn requests_of_one_port_keep_their_order_while_one_waits_for_a_channel() {
    let crowd = Crowd::gather();
    let (_agent, _) = crowd.mediator_by(&way_without_udp(&crowd.service), "cpe");
    let mediator = crowd.attach("cpe").await;
    let port = mediator.open(&OpenOptions::udp().local("127.0.0.1:0".parse().unwrap())).await.unwrap();
    // Waits for the mediator's channels, in vain; the next one of that port goes behind it.
    let done = Mutex::new(Vec::new());
    let tell = |what, good| done.lock().unwrap().push((what, good));
    let there = async { tell("there", port.switch(true, false).await.is_ok()) };
    let back = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        tell("asked", true);
        let good = port.switch(false, true).await.is_ok();
        // Both answers may come at once, and be heard in either order; out of turn, this one would be seconds ahead.
        tokio::time::sleep(Duration::from_millis(500)).await;
        tell("back", good);
    };
    tokio::time::timeout(SOON, async { tokio::join!(there, back) }).await.unwrap();
    assert_eq!(*done.lock().unwrap(), [("asked", true), ("there", false), ("back", true)]);
}

#[test]
fn udp_channels_of_a_crowd_are_opened_when_their_time_comes() {
    let crowd = Crowd::gather();
    let (agent, after) = crowd.mediator("cpe");
    // The log's line comes after the welcome.
    let (told, after) = (Instant::now(), Duration::from_millis(after));
    agent.wait_for_line("UDP channels live=", SOON + after);
    assert!(told.elapsed() + SLACK >= after, "opened {:?} after the tunnel, not {after:?}", told.elapsed());
}

#[test]
fn mediator_that_comes_alone_has_its_channels_at_once() {
    let world = Loopback::start(&[], &[]);
    let line = world.agent.wait_for_line("tunnel up", SOON);
    assert_eq!(word_after(&line, "channels_after_ms="), "0");
}

#[test]
fn request_that_allows_udp_alone_is_refused_where_no_channel_answers() {
    let Some(world) = World::new() else { return };
    world.drop_udp(true);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &[]);
    let agent = Agent::start(&world, &keys, "cpe", &[]);
    let terminal = Terminal::new(&keys);
    // The first one comes while the channels may still answer, the second one when they have not.
    for _ in 0..2 {
        let asked = terminal.run(&world, &["nc", "cpe", "10.77.0.3", "5001", "-u", "--redirect"]).failed();
        assert!(asked.all().contains("no UDP channel"), "{}", asked.all());
    }
    agent.process.wait_for_line("no UDP channel answers", SOON);
    assert!(!agent.process.said_after(0, "UDP channels live="));
}

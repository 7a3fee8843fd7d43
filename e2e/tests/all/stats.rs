//! The stats socket, as an operator uses it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use isthmus_e2e::{Agent, Keys, Loopback, Ns, Process, Relay, SOON, World, program};
use serde_json::Value;

use crate::common::{counter, ctl, echo_hosts, published, until};

struct Operated {
    agent: Agent,
    relay: Relay,
    _services: [Process; 2],
    keys: Keys,
    world: World,
}

impl Operated {
    fn new() -> Option<Self> {
        let world = World::new()?;
        let services = [
            world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]),
            world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]),
        ];
        let keys = Keys::new();
        let args = "--publish tcp:0.0.0.0:5001=cpe/10.77.0.3:5001 --publish udp:0.0.0.0:5300=cpe/10.77.0.3:5300";
        let relay = Relay::start(&world, &keys, &args.split_whitespace().collect::<Vec<_>>());
        let agent = Agent::start(&world, &keys, "cpe", &["--service", "meter reading"]);
        relay.process.wait_for_line("tunnel attached mediator=cpe", SOON);
        Some(Self { agent, relay, _services: services, keys, world })
    }

    #[track_caller]
    fn text(&self, command: &str) -> String {
        self.relay.ctl(&self.world, &self.keys, &command.split(' ').collect::<Vec<_>>()).ok().text()
    }

    #[track_caller]
    fn json(&self, command: &str) -> Value {
        let text = self.text(&format!("{command} json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error} in {text}"))
    }
}

#[test]
fn info_tunnels_and_publishes_show_what_is_there() {
    let Some(it) = Operated::new() else { return };
    let info = it.json("show info");
    assert_eq!((&info["tunnels_live"], &info["shards"]), (&Value::from(1), &Value::from(2)), "{info}");
    assert_eq!(info["fingerprint"], Value::from(it.keys.pin()));
    assert!(it.text("show info").contains("tunnels_live: 1"));

    let tunnels = it.json("show tunnels");
    let tunnel = &tunnels["tunnels"][0];
    assert_eq!((&tunnel["id"], &tunnels["more"]), (&Value::from("cpe"), &Value::from(false)), "{tunnels}");
    assert!(tunnel["observed"].as_str().is_some_and(|address| address.contains("198.51.100.10")), "{tunnel}");
    let table = it.text("show tunnels");
    assert!(table.contains("cpe") && table.contains("meter reading"), "{table}");
    assert_eq!(it.json("show tunnels id=hub-*")["tunnels"], Value::Array(Vec::new()));

    let publishes = it.text("show publishes");
    assert!(
        publishes.contains("tcp:0.0.0.0:5001=cpe/10.77.0.3:5001") && publishes.contains("connected"),
        "{publishes}"
    );
}

#[test]
fn figures_follow_the_traffic_and_live_ones_go_back_to_zero() {
    let Some(it) = Operated::new() else { return };
    let bytes = |it: &Operated| {
        let tunnels = it.json("show tunnels");
        let tunnel = &tunnels["tunnels"][0];
        ["bytes_in", "bytes_out", "datagrams_in", "datagrams_out"].map(|name| tunnel[name].as_u64().expect("a figure"))
    };
    let before = bytes(&it);
    it.world.run_tool(Ns::Public, &["tcp-ping", "--bytes", "500000", "198.51.100.1:5001"]).ok();
    it.world.run_tool(Ns::Public, &["udp-ping", "--count", "50", "198.51.100.1:5300"]).ok();
    let mut visitor = it.world.tool(Ns::Public, &["pipe", "198.51.100.1:5001"]);
    visitor.write(b"here\n");
    visitor.wait_for_line("here", SOON);
    let after = bytes(&it);
    let grown: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(grown[0] >= 500_000 && grown[1] >= 500_000, "bytes: {grown:?}");
    assert!(grown[2] >= 50 && grown[3] >= 50, "datagrams: {grown:?}");
    assert_eq!(it.json("show info")["visitors_live"], 1);

    visitor.close_input();
    visitor.wait_exit(SOON);
    let deadline = std::time::Instant::now() + SOON;
    while it.json("show info")["visitors_live"] != 0 {
        assert!(std::time::Instant::now() < deadline, "a visitor that is gone still counts");
    }
    let stat = it.json("show stat");
    let shards = stat["shards"].as_array().expect("a list of shards");
    assert_eq!(shards.len(), 2);
    for (name, total) in stat["total"].as_object().expect("counters") {
        if let Some(total) = total.as_u64() {
            let sum: u64 = shards.iter().filter_map(|shard| shard[name].as_u64()).sum();
            assert_eq!(sum, total, "{name}");
        }
    }
}

#[test]
fn killed_tunnel_ends_for_that_reason_and_may_come_back() {
    let Some(it) = Operated::new() else { return };
    let (agent, relay) = (it.agent.process.mark(), it.relay.process.mark());
    assert!(it.text("kill tunnel cpe").contains("killed"));
    it.agent.process.wait_for_line_after(agent, "tunnel down .. reason=killed", SOON);
    it.relay.process.wait_for_line_after(relay, "tunnel ended mediator=cpe .. reason=killed", SOON);
    it.agent.process.wait_for_line_after(agent, "tunnel up", SOON * 3);
    it.world.run_tool(Ns::Public, &["tcp-ping", "198.51.100.1:5001"]).ok();
    let nobody = it.relay.ctl(&it.world, &it.keys, &["kill", "tunnel", "nobody"]).failed().all();
    assert!(nobody.contains("error: no tunnel of nobody"), "{nobody}");
}

#[test]
fn commands_can_be_joined_and_bad_ones_say_what_to_write() {
    let Some(it) = Operated::new() else { return };
    let both = it.text("show info ; show tunnels");
    assert!(both.contains("uptime_s") && both.contains("meter reading"), "{both}");
    let bad = it.relay.ctl(&it.world, &it.keys, &["shwo", "info"]).failed().all();
    assert!(bad.contains("error:") && bad.contains("help"), "{bad}");
    assert!(it.text("help").contains("kill tunnel ID"));
}

#[test]
fn events_come_to_a_watching_ctl_as_they_happen() {
    let world = Loopback::start(&[], &[]);
    let mut watching = Command::new(program("isthmus-relay"));
    watching.arg("ctl").arg("--state").arg(world.keys.path()).args(["show", "events", "limit=0", "-w"]);
    let watching = Process::spawn("ctl", watching);
    // It may not have asked yet.
    until(SOON, || {
        ctl(&world, "set log info");
        watching.lines().iter().any(|line| line.ends_with(" operator - set log info"))
    });
    ctl(&world, "kill tunnel cpe");
    watching.wait_for_line("tunnel-down cpe killed", SOON);
    watching.wait_for_line("tunnel-up cpe", SOON);
}

#[test]
fn log_for_programs_is_an_object_a_line_with_shard_mediator_and_reason() {
    let keys = Keys::new();
    let mut command = Command::new(program("isthmus-relay"));
    command.arg("--state").arg(keys.path()).args(["--listen", "127.0.0.1:0", "--log-format", "json"]);
    let relay = Process::spawn("relay", command);
    let line: Value = serde_json::from_str(&relay.wait_for_line("relay runs", SOON)).unwrap();
    let service = line["listen"].as_str().unwrap();
    let agent = Process::spawn("agent", Loopback::agent_command(&keys, service, "cpe", &["--log-format", "json"]));
    agent.wait_for_line("tunnel up", SOON);
    relay.wait_for_line("tunnel attached", SOON);
    relay.terminate();
    relay.wait_for_line("tunnel ended", SOON);
    for process in [&relay, &agent] {
        for line in process.lines().iter().filter(|line| !line.is_empty()) {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(
                line["level"].is_string() && line["message"].is_string() && line["timestamp"].is_string(),
                "{line}"
            );
        }
    }
    let ended = relay.lines().iter().find(|line| line.contains("tunnel ended")).cloned().unwrap();
    let ended: Value = serde_json::from_str(&ended).unwrap();
    assert_eq!((&ended["mediator"], &ended["reason"]), (&"cpe".into(), &"draining".into()), "{ended}");
    assert!(ended["threadName"].as_str().is_some_and(|name| name.starts_with("shard-")), "{ended}");
}

#[test]
fn drained_relay_lets_mediators_in_again_when_it_is_told_to() {
    let world = Loopback::start(&[], &[]);
    assert!(ctl(&world, "undrain").contains("not drained"));
    assert!(ctl(&world, "drain over=1s").starts_with("1 tunnels go within 1s"));
    world.agent.wait_for_line("tunnel down", SOON);
    until(SOON, || counter(&world, "tunnels_live") == 0);
    assert_eq!(counter(&world, "draining"), 2);
    // It comes again at once, is told to wait, and waits.
    world.relay.wait_for_line("caller refused", SOON);
    assert!(ctl(&world, "undrain").starts_with("mediators are let in again"));
    let other = Loopback::start_agent(&world.keys, &world.service, "other", &[]);
    assert_eq!((counter(&world, "tunnels_live"), counter(&world, "draining")), (1, 0));
    drop(other);
}

#[test]
fn tunnels_are_sorted_by_their_bits_a_second() {
    let (tcp, _) = echo_hosts();
    let world = Loopback::start(&["--publish", &format!("tcp:127.0.0.1:0=cpe/{tcp}")], &[]);
    let other = Loopback::start_agent(&world.keys, &world.service, "other", &[]);
    let mut visitor = TcpStream::connect(published(&world, "tcp")).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let pumping = std::thread::spawn(move || {
        let mut bytes = [7; 10_000];
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            visitor.write_all(&bytes).unwrap();
            visitor.read_exact(&mut bytes).unwrap();
        }
    });
    let answer = ctl(&world, "show tunnels sort=bps desc columns=id,bps");
    let rows: Vec<Vec<&str>> = answer.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows[0][0], rows[1][0], rows.len()), ("cpe", "other", 2), "{answer}");
    assert!(rows[0][1].parse::<u64>().unwrap() > 80_000 && rows[1][1] == "0", "{answer}");
    assert_eq!(ctl(&world, "show tunnels bps>80000 columns=id").trim(), "id\ncpe");
    drop(stop);
    pumping.join().unwrap();
    drop(other);
}

#[test]
fn journal_gets_each_line_with_its_priority_and_without_a_time() {
    let keys = Keys::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = std::fs::File::create(&path).unwrap();
    let stat = journal.metadata().unwrap();
    let mut command = Command::new(program("isthmus-relay"));
    command.arg("--state").arg(keys.path()).args(["--listen", "127.0.0.1:0"]);
    command.env("JOURNAL_STREAM", format!("{}:{}", stat.dev(), stat.ino())).stderr(journal);
    let mut relay = command.spawn().unwrap();
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    until(SOON, || read().contains("relay runs"));
    relay.kill().unwrap();
    relay.wait().unwrap();
    let text = read();
    assert!(text.lines().all(|line| line.starts_with("<6> INFO ") || line.starts_with("<4> WARN ")), "{text}");
    assert!(text.contains(" main isthmus_relay::run: relay runs"), "{text}");
}

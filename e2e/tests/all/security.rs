//! Who gets in, who does not, and what both sides say about it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use isthmus_e2e::{Agent, Keys, Ns, Process, Proto, Relay, SOON, Terminal, World, program, silence};

/// Waits until `process` has said one of `words`.
#[track_caller]
fn says(process: &Process, words: &[&str]) {
    process.wait_for_any_after(0, words, SOON);
}

/// What strangers do wrong before they have shown a token is logged at this level only: anybody could fill the log.
const LOUD: [&str; 2] = ["--log", "debug"];

/// A relay with one mediator's published echo service, to show that the turned-away harm nobody.
struct Guarded {
    relay: Relay,
    _echo: Process,
    keys: Keys,
    world: World,
}

impl Guarded {
    fn new(args: &[&str]) -> Option<Self> {
        let world = World::new()?;
        let echo = world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]);
        let keys = Keys::new();
        let publish = ["--publish", "tcp:0.0.0.0:5001=cpe/10.77.0.3:5001"];
        let relay = Relay::start(&world, &keys, &[&publish, args].concat());
        Some(Self { relay, _echo: echo, keys, world })
    }

    /// Nobody was let in so far.
    #[track_caller]
    fn assert_nobody_attached(&self) {
        let info = self.relay.ctl(&self.world, &self.keys, &["show", "tunnels", "json"]).ok().text();
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        assert_eq!(info["tunnels"].as_array().map(Vec::len), Some(0), "{info}");
    }

    /// And the rightful one still is.
    #[track_caller]
    fn assert_the_rightful_one_gets_in(&self) {
        let _agent = Agent::start(&self.world, &self.keys, "cpe", &[]);
        self.world.run_tool(Ns::Public, &["tcp-ping", "198.51.100.1:5001"]).ok();
    }
}

#[test]
fn wrong_pin_keeps_the_mediator_from_giving_its_token_away() {
    let Some(it) = Guarded::new(&LOUD) else { return };
    let token = it.keys.mediator_token("cpe", &[]);
    let other = Keys::new();
    let agent = Agent::launch(&it.world, &["--pin", other.pin(), "--token", &token]);
    says(&agent.process, &["pin", "fingerprint"]);
    it.relay.process.wait_for_any_after(0, &["tls-failed", "TLS handshake failed"], SOON);
    assert!(!agent.process.said_after(0, "tunnel up"));
    it.assert_nobody_attached();

    let terminal = Terminal::with_token(other.pin(), it.keys.terminal_token("*", &[]));
    let said = terminal.run(&it.world, &["list"]).failed().all().to_lowercase();
    assert!(said.contains("pin") || said.contains("fingerprint"), "{said}");
    drop(agent);
    it.assert_the_rightful_one_gets_in();
}

#[test]
fn token_of_another_relay_is_refused_and_both_sides_say_so() {
    let Some(it) = Guarded::new(&[]) else { return };
    let foreign = Keys::new();
    let agent = Agent::launch(&it.world, &["--pin", it.keys.pin(), "--token", &foreign.mediator_token("cpe", &[])]);
    says(&agent.process, &["bad-token", "token's signature is wrong"]);
    says(&it.relay.process, &["bad-token", "token's signature is wrong"]);
    it.assert_nobody_attached();
    let terminal = Terminal::with_token(it.keys.pin(), foreign.terminal_token("*", &[]));
    let said = terminal.run(&it.world, &["list"]).failed().all();
    assert!(said.contains("token's signature is wrong") || said.contains("bad-token"), "{said}");
    drop(agent);
    it.assert_the_rightful_one_gets_in();
}

#[test]
fn expired_token_is_refused_and_both_sides_say_so() {
    let Some(it) = Guarded::new(&[]) else { return };
    let token = it.keys.mediator_token("cpe", &["--ttl", "1s"]);
    let terminal = Terminal::with_token(it.keys.pin(), it.keys.terminal_token("*", &["--ttl", "1s"]));
    silence(Duration::from_millis(2100));
    let agent = Agent::launch(&it.world, &["--pin", it.keys.pin(), "--token", &token]);
    says(&agent.process, &["token-expired", "token has expired"]);
    says(&it.relay.process, &["token-expired", "token has expired"]);
    it.assert_nobody_attached();
    let said = terminal.run(&it.world, &["list"]).failed().all();
    assert!(said.contains("token has expired") || said.contains("token-expired"), "{said}");
    drop(agent);
    it.assert_the_rightful_one_gets_in();
}

#[test]
fn tokens_do_not_serve_in_another_role_or_for_other_mediators() {
    let Some(it) = Guarded::new(&[]) else { return };
    let _agent = Agent::start(&it.world, &it.keys, "cpe", &[]);
    // A terminal's token in a mediator's hand.
    let mut agent = Agent::launch(&it.world, &["--pin", it.keys.pin(), "--token", &it.keys.terminal_token("*", &[])]);
    says(&agent.process, &["token"]);
    assert!(!agent.process.wait_exit(SOON).success());
    // A mediator's token in a terminal's hand.
    let terminal = Terminal::with_token(it.keys.pin(), it.keys.mediator_token("cpe", &[]));
    let said = terminal.run(&it.world, &["info", "cpe"]).failed().all();
    assert!(said.contains("token"), "{said}");
    // A terminal's token for other mediators.
    let terminal = Terminal::with_token(it.keys.pin(), it.keys.terminal_token("hub-*", &[]));
    let said = terminal.run(&it.world, &["info", "cpe"]).failed().all();
    assert!(said.contains("does not name that mediator") || said.contains("token-mismatch"), "{said}");
}

#[test]
fn tokens_limits_of_operations_and_destinations_hold() {
    let Some(it) = Guarded::new(&[]) else { return };
    let _agent = Agent::start(&it.world, &it.keys, "cpe", &[]);
    let _other = it.world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5002"]);
    let refused = |token: String, args: &[&str]| {
        let said = Terminal::with_token(it.keys.pin(), token).run(&it.world, args).failed().all();
        assert!(said.contains("does not permit") || said.contains("not-permitted"), "{args:?}: {said}");
    };
    refused(it.keys.terminal_token("*", &["--allow", "info,list"]), &["nc", "cpe", "10.77.0.3", "5001"]);
    refused(it.keys.terminal_token("*", &["--allow", "open,connect"]), &["info", "cpe"]);
    // To connect is enough: it is no use without a port, nor the port without it.
    let connects = it.keys.terminal_token("*", &["--allow", "connect"]);
    let mut nc =
        Terminal::with_token(it.keys.pin(), connects.clone()).spawn(&it.world, &["nc", "cpe", "10.77.0.3", "5001"]);
    nc.write(b"connects\n");
    nc.wait_for_line("connects", SOON);
    refused(connects, &["listen", "cpe", "0.0.0.0:5004", "--to", "127.0.0.1:1"]);
    let narrow = it.keys.terminal_token("*", &["--to", "10.77.0.3:5001"]);
    refused(narrow.clone(), &["nc", "cpe", "10.77.0.3", "5002"]);
    let mut nc = Terminal::with_token(it.keys.pin(), narrow).spawn(&it.world, &["nc", "cpe", "10.77.0.3", "5001"]);
    nc.write(b"allowed\n");
    nc.wait_for_line("allowed", SOON);
}

#[test]
fn mediators_own_policy_stands_above_the_relays_wishes() {
    let Some(world) = World::new() else { return };
    let _host = world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]);
    let _own = world.serve(Ns::Private, &["tcp-echo", "127.0.0.1:5002"]);
    let _outside = world.serve(Ns::Public, &["tcp-echo", "198.51.100.2:5003"]);
    let keys = Keys::new();
    let args = "--publish tcp:0.0.0.0:5001=cpe/10.77.0.3:5001 --publish tcp:0.0.0.0:5002=cpe/127.0.0.1:5002 \
                --publish tcp:0.0.0.0:5003=cpe/198.51.100.2:5003";
    let _relay = Relay::start(&world, &keys, &args.split_whitespace().collect::<Vec<_>>());
    let passes = |port: u16| {
        let call = ["end-call", "--how", "watch", &format!("198.51.100.1:{port}")];
        if world.run_tool(Ns::Public, &["tcp-ping", &format!("198.51.100.1:{port}")]).status.success() {
            return true;
        }
        let end = world.run_tool(Ns::Public, &call).ok().text();
        assert!(end.starts_with("end reset"), "port {port}: {end}");
        false
    };
    {
        // By default: the attached subnets, and neither loopback nor anything beyond.
        let _agent = Agent::start(&world, &keys, "cpe", &[]);
        assert_eq!([5001, 5002, 5003].map(passes), [true, false, false]);
        let said = Terminal::new(&keys).run(&world, &["nc", "cpe", "127.0.0.1", "5002"]).failed().all();
        assert!(said.contains("allow-list") || said.contains("denied"), "{said}");
    }
    let _agent = Agent::start(&world, &keys, "cpe", &["--allow", "127.0.0.1:5002"]);
    assert_eq!([5001, 5002, 5003].map(passes), [false, true, false]);
}

#[test]
fn plaintext_is_refused_unless_both_sides_ask_for_it() {
    let Some(it) = Guarded::new(&LOUD) else { return };
    let token = it.keys.mediator_token("cpe", &[]);
    let agent = Agent::launch(&it.world, &["--plaintext", "--token", &token]);
    says(&agent.process, &["plaintext"]);
    says(&it.relay.process, &["plaintext"]);
    it.assert_nobody_attached();
    drop(agent);
    it.assert_the_rightful_one_gets_in();
}

#[test]
fn plaintext_relay_refuses_those_that_expect_tls_and_serves_those_that_do_not() {
    let Some(it) = Guarded::new(&["--plaintext", "--log", "debug"]) else { return };
    let token = it.keys.mediator_token("cpe", &[]);
    let agent = Agent::launch(&it.world, &["--pin", it.keys.pin(), "--token", &token]);
    says(&agent.process, &["plaintext"]);
    says(&it.relay.process, &["plaintext-refused", "asked for plaintext"]);
    it.assert_nobody_attached();
    drop(agent);
    let agent = Agent::launch(&it.world, &["--plaintext", "--token", &token]);
    agent.process.wait_for_line("tunnel up", SOON);
    it.world.run_tool(Ns::Public, &["tcp-ping", "--bytes", "1000000", "198.51.100.1:5001"]).ok();
}

#[test]
fn strangers_on_the_service_port_disturb_nobody() {
    let Some(it) = Guarded::new(&["--handshake-timeout", "1s"]) else { return };
    let agent = Agent::start(&it.world, &it.keys, "cpe", &[]);
    let silent = it.world.tool(Ns::Public, &["pipe", isthmus_e2e::SERVICE]);
    silent.wait_for_line("connected", SOON);
    for first in [&b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n"[..], &[0x16, 3, 1, 255, 255], &[0; 4000], &[255; 4000]] {
        let mut stranger = it.world.tool(Ns::Public, &["pipe", isthmus_e2e::SERVICE]);
        stranger.wait_for_line("connected", SOON);
        stranger.write(first);
        // It is turned away, with or without a word, and not kept.
        stranger.wait_for_line("end", SOON);
    }
    silent.wait_for_line("end", SOON);
    // Datagrams of strangers get no answer at all.
    let ping = ["udp-ping", "--timeout-ms", "300", "--sizes"];
    for size in ["1", "40", "1200"] {
        it.world.run_tool(Ns::Public, &[&ping[..], &[size, isthmus_e2e::SERVICE]].concat()).failed();
    }
    it.world.run_tool(Ns::Public, &["tcp-ping", "198.51.100.1:5001"]).ok();
    assert!(!agent.process.said_after(0, "tunnel down"));
}

#[test]
fn state_directory_is_made_once_and_is_the_owners_only() {
    let Some(world) = World::new() else { return };
    let keys = Keys::new();
    let content = |keys: &Keys| -> BTreeMap<_, _> {
        let entries = std::fs::read_dir(keys.path()).expect("the state directory");
        let files = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
        files.map(|path| (path.clone(), std::fs::read(path).expect("a file"))).collect()
    };
    let first = content(&keys);
    assert!(first.len() >= 3, "{:?}", first.keys());
    for path in first.keys().filter(|path| path.extension().is_some_and(|extension| extension == "key")) {
        let mode = std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
    {
        let relay = Relay::start(&world, &keys, &[]);
        let socket = std::fs::metadata(keys.path().join("stats.sock")).expect("the stats socket");
        assert_eq!(socket.permissions().mode() & 0o777, 0o660);
        relay.process.terminate();
    }
    keys.mediator_token("cpe", &[]);
    assert_eq!(content(&keys).keys().collect::<Vec<_>>(), first.keys().collect::<Vec<_>>());
    assert!(content(&keys) == first, "the keys were overwritten");

    // A key that others can read is not used.
    let (key, _) = first.iter().find(|(path, _)| path.extension().is_some_and(|e| e == "key")).expect("a key");
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o644)).expect("a changed mode");
    let state = keys.path().to_str().expect("a plain path");
    let said = world.run(Ns::Relay, program("isthmus-relay"), &["--state", state]).failed().all();
    assert!(said.contains("chmod 600"), "{said}");
    assert!(!world.listens(Ns::Relay, Proto::Tcp, 4470));
}

//! Published TCP ports: visitors without any software of ours.

use std::time::Duration;

use isthmus_e2e::{Agent, Keys, Ns, Proto, Relay, SOON, World, have, noise};

const FILE_LEN: usize = 24 << 20;

#[test]
fn file_arrives_whole_over_both_address_families() {
    let Some(world) = World::new() else { return };
    if !have("curl") {
        return;
    }
    let files = tempfile::tempdir().expect("a temporary directory");
    let content = noise(7, FILE_LEN);
    std::fs::write(files.path().join("file"), &content).expect("a file");
    let dir = files.path().to_str().expect("a plain path");
    let _http4 = world.serve(Ns::Host, &["http", "10.77.0.3:80", "--dir", dir]);
    let _http6 = world.serve(Ns::Host, &["http", "[fd77::3]:80", "--dir", dir]);

    let keys = Keys::new();
    let publishes = ["tcp:0.0.0.0:8080=cpe/10.77.0.3:80", "tcp:[2001:db8:1::1]:8081=cpe/[fd77::3]:80"];
    let _relay = Relay::start(&world, &keys, &["--publish", publishes[0], "--publish", publishes[1]]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    for url in ["http://198.51.100.1:8080/file", "http://[2001:db8:1::1]:8081/file"] {
        let got = world.run(Ns::Public, "curl", &["-sS", "-f", "-g", "-m", "50", url]).ok().stdout;
        assert!(got == content, "{url}: {} bytes, and not those that were sent", got.len());
    }
    // What the host itself answers with an error is no failure of the tunnel.
    let missing = world.run(Ns::Public, "curl", &["-sS", "-f", "http://198.51.100.1:8080/none"]).failed();
    assert!(missing.stderr.contains("404"), "{}", missing.stderr);
}

#[test]
fn half_close_keeps_the_other_direction_open_both_ways() {
    let Some(world) = World::new() else { return };
    let first = "2000000";
    let host_reads = world.serve(Ns::Host, &["half-close-serve", "10.77.0.3:5001"]);
    let host_ends = world.serve(Ns::Host, &["half-close-serve", "--first", first, "10.77.0.3:5002"]);
    let keys = Keys::new();
    let publishes = ["tcp:0.0.0.0:5001=cpe/10.77.0.3:5001", "tcp:0.0.0.0:5002=cpe/10.77.0.3:5002"];
    let _relay = Relay::start(&world, &keys, &["--publish", publishes[0], "--publish", publishes[1]]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);

    for bytes in ["0", "1", "3000000"] {
        // The visitor ends first, and the host's answer comes after that end.
        world.run_tool(Ns::Public, &["half-close-call", "--bytes", bytes, "198.51.100.1:5001"]).ok();
        host_reads.wait_for_line(&format!("received {bytes} bytes"), SOON);
        // The host ends first, and the visitor's bytes come after that end.
        let call = ["half-close-call", "--first", first, "--bytes", bytes, "198.51.100.1:5002"];
        let sent = world.run_tool(Ns::Public, &call).ok().text();
        host_ends.wait_for_line(sent.trim().trim_start_matches("sent "), SOON);
    }
}

#[test]
fn reset_and_orderly_end_are_told_apart_both_ways() {
    let Some(world) = World::new() else { return };
    let _resets = world.serve(Ns::Host, &["end-serve", "--how", "reset", "10.77.0.3:5001"]);
    let _ends = world.serve(Ns::Host, &["end-serve", "--how", "fin", "10.77.0.3:5002"]);
    let watches = world.serve(Ns::Host, &["end-serve", "--how", "watch", "10.77.0.3:5003"]);
    let keys = Keys::new();
    let publishes: Vec<String> = (5001..=5003).map(|port| format!("tcp:0.0.0.0:{port}=cpe/10.77.0.3:{port}")).collect();
    let args: Vec<&str> = publishes.iter().flat_map(|publish| ["--publish", publish]).collect();
    let _relay = Relay::start(&world, &keys, &args);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);

    for (port, end) in [("5001", "end reset"), ("5002", "end fin")] {
        let seen = world.run_tool(Ns::Public, &["end-call", "--how", "watch", &format!("198.51.100.1:{port}")]).ok();
        assert!(seen.text().starts_with(end), "port {port}: {}", seen.text());
    }
    for how in ["reset", "fin"] {
        let mark = watches.mark();
        world.run_tool(Ns::Public, &["end-call", "--how", how, "198.51.100.1:5003"]).ok();
        watches.wait_for_line_after(mark, &format!("end {how}"), SOON);
    }
}

#[test]
fn refused_target_resets_its_visitor_and_nobody_else() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]);
    let keys = Keys::new();
    let publishes = ["tcp:0.0.0.0:5001=cpe/10.77.0.3:5001", "tcp:0.0.0.0:5009=cpe/10.77.0.3:9"];
    let _relay = Relay::start(&world, &keys, &["--publish", publishes[0], "--publish", publishes[1]]);
    let agent = Agent::start(&world, &keys, "cpe", &[]);

    let mut neighbour = world.tool(Ns::Public, &["pipe", "198.51.100.1:5001"]);
    neighbour.write(b"before\n");
    neighbour.wait_for_line("before", SOON);
    for _ in 0..20 {
        let seen = world.run_tool(Ns::Public, &["end-call", "--how", "watch", "198.51.100.1:5009"]).ok();
        assert!(seen.text().starts_with("end reset"), "{}", seen.text());
    }
    neighbour.write(b"after\n");
    neighbour.wait_for_line("after", SOON);
    neighbour.close_input();
    assert!(neighbour.wait_exit(SOON).success());
    assert!(!agent.process.said_after(0, "tunnel down"));
}

#[test]
fn mediator_goes_and_comes_back_to_the_same_published_port() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]);
    let keys = Keys::new();
    let relay = Relay::start(&world, &keys, &["--publish", "tcp:0.0.0.0:5001=cpe/10.77.0.3:5001"]);
    let visit = |world: &World| world.run_tool(Ns::Public, &["tcp-ping", "198.51.100.1:5001"]);
    let turned_away = |world: &World| {
        let seen = world.run_tool(Ns::Public, &["end-call", "--how", "watch", "198.51.100.1:5001"]).ok();
        assert!(seen.text().starts_with("end reset"), "{}", seen.text());
    };

    turned_away(&world);
    for _ in 0..3 {
        let mark = relay.process.mark();
        let mut agent = Agent::start(&world, &keys, "cpe", &[]);
        relay.process.wait_for_line_after(mark, "tunnel attached mediator=cpe", SOON);
        visit(&world).ok();
        // A visitor whose mediator dies under it must be told, and not left waiting.
        let mut witness = world.tool(Ns::Public, &["pipe", "198.51.100.1:5001"]);
        witness.write(b"there\n");
        witness.wait_for_line("there", SOON);
        agent.process.kill();
        relay.process.wait_for_line_after(mark, "tunnel ended mediator=cpe", SOON);
        witness.wait_for_line("end reset", SOON);
        turned_away(&world);
    }
}

#[test]
fn stopped_mediator_ends_its_tunnel_at_once() {
    let Some(world) = World::new() else { return };
    let keys = Keys::new();
    let relay = Relay::start(&world, &keys, &["--dead-after", "10m"]);
    let mut agent = Agent::start(&world, &keys, "cpe", &[]);
    agent.process.terminate();
    agent.process.wait_exit(SOON);
    relay.process.wait_for_line("tunnel ended mediator=cpe", SOON);
}

#[test]
fn many_streams_at_once_are_verified_and_stalled_ones_stop_nobody() {
    let Some(world) = World::new() else { return };
    let _streams = world.serve(Ns::Host, &["streams-serve", "10.77.0.3:5001"]);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &["--publish", "tcp:0.0.0.0:5001=cpe/10.77.0.3:5001"]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    for shape in [["--n", "1", "--bytes", "64M", "--stall", "0"], ["--n", "64", "--bytes", "256M", "--stall", "2"]] {
        world.run_tool(Ns::Public, &[&["streams-call"], &shape[..], &["198.51.100.1:5001"]].concat()).ok();
    }
    // As many short ones, one burst after another: connections come and go.
    for _ in 0..5 {
        world.run_tool(Ns::Public, &["streams-call", "--n", "200", "--bytes", "2M", "198.51.100.1:5001"]).ok();
    }
}

#[test]
fn newer_session_of_a_mediator_replaces_the_older_at_once() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]);
    let keys = Keys::new();
    let args = ["--publish", "tcp:0.0.0.0:5001=cpe/10.77.0.3:5001", "--dead-after", "10m"];
    let relay = Relay::start(&world, &keys, &args);
    let ghost = Agent::start(&world, &keys, "cpe", &[]);
    // A ghost: stopped in mid-life, it says no farewell and its socket stays open.
    ghost.process.signal(rustix::process::Signal::STOP);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    relay.process.wait_for_line("tunnel ended mediator=cpe .. reason=replaced", SOON);
    world.run_tool(Ns::Public, &["tcp-ping", "--bytes", "1000000", "198.51.100.1:5001"]).ok();
}

#[test]
fn relay_that_restarts_with_its_keys_is_found_again() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]);
    let keys = Keys::new();
    let args = ["--publish", "tcp:0.0.0.0:5001=cpe/10.77.0.3:5001"];
    let mut relay = Relay::start(&world, &keys, &args);
    let agent = Agent::start(&world, &keys, "cpe", &[]);
    for hard in [true, false] {
        let mark = agent.process.mark();
        if hard {
            relay.process.kill();
        } else {
            relay.process.terminate();
            assert!(relay.process.wait_exit(SOON).success());
        }
        agent.process.wait_for_line_after(mark, "tunnel down", SOON);
        // The kernel takes the sockets of a killed ring away a moment after the process.
        world.wait_free(Ns::Relay, Proto::Tcp, 5001);
        relay = Relay::start(&world, &keys, &args);
        // The back-off may have grown meanwhile.
        agent.process.wait_for_line_after(mark, "tunnel up", Duration::from_secs(60));
        world.run_tool(Ns::Public, &["tcp-ping", "198.51.100.1:5001"]).ok();
        // The mediator showed the ticket of the relay that has gone.
        let stat = relay.ctl(&world, &keys, &["show", "stat", "json"]).ok().text();
        let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
        assert_eq!(stat["total"]["handshakes_resumed_total"], 1, "{stat:#}");
    }
}

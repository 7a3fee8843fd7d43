//! The world itself: a test that passes in a world without a real gateway would say nothing.

use std::time::Duration;

use isthmus_e2e::{Ns, World, silence};

const ECHO: &str = "198.51.100.1:7000";

#[test]
fn private_side_reaches_out_and_nothing_reaches_in() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Relay, &["tcp-echo", ECHO]);
    let _echo6 = world.serve(Ns::Relay, &["tcp-echo", "[2001:db8:1::1]:7000"]);
    let _inside = world.serve(Ns::Private, &["tcp-echo", "10.77.0.2:7000"]);
    for (from, to) in [(Ns::Private, ECHO), (Ns::Host, "[2001:db8:1::1]:7000"), (Ns::Host, "10.77.0.2:7000")] {
        world.run_tool(from, &["tcp-ping", to]).ok();
    }
    // Towards the private address there is no route; at the gateway's public one nothing listens or answers.
    for to in ["10.77.0.2:7000", "198.51.100.10:7000"] {
        world.run(Ns::Relay, "curl", &["-sS", "-m", "1", &format!("http://{to}/")]).failed();
    }
}

#[test]
fn a_quiet_udp_binding_expires_and_then_the_private_side_is_out_of_reach() {
    let Some(world) = World::with(&["--udp-timeout", "1"]) else { return };
    let _echo = world.serve(Ns::Relay, &["udp-echo", ECHO]);
    world.run_tool(Ns::Private, &["udp-ping", ECHO]).ok();
    let bound = |world: &World| world.bindings().iter().any(|line| line.contains("dport=7000"));
    assert!(bound(&world));
    silence(Duration::from_millis(2500));
    assert!(!bound(&world), "the gateway still has it: {:?}", world.bindings());
}

#[test]
fn counters_see_the_service_port_only_and_tell_protocols_and_directions_apart() {
    let Some(world) = World::new() else { return };
    let _other = world.serve(Ns::Relay, &["udp-echo", ECHO]);
    world.run_tool(Ns::Private, &["udp-ping", ECHO]).ok();
    assert_eq!(world.counters(), isthmus_e2e::Counters::default());

    let _service = world.serve(Ns::Relay, &["udp-echo", isthmus_e2e::SERVICE]);
    world.run_tool(Ns::Private, &["udp-ping", "--count", "10", "--sizes", "1000", isthmus_e2e::SERVICE]).ok();
    let counters = world.counters();
    assert_eq!((counters.udp_out.packets, counters.udp_in.packets), (10, 10));
    assert_eq!(counters.udp_out.bytes, 10 * 1028);
    assert_eq!((counters.tcp_out.packets, counters.tcp_in.packets), (0, 0));
}

#[test]
fn troubles_come_and_go() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Relay, &["udp-echo", ECHO]);
    let ping = ["udp-ping", "--timeout-ms", "300", ECHO];
    world.run_tool(Ns::Private, &ping).ok();
    world.drop_udp(true);
    world.run_tool(Ns::Private, &ping).failed();
    world.drop_udp(false);
    world.run_tool(Ns::Private, &ping).ok();
    world.drop_everything(true);
    world.run_tool(Ns::Private, &ping).failed();
    world.drop_everything(false);
    world.change_public_address("198.51.100.10", "198.51.100.77");
    world.run_tool(Ns::Private, &ping).ok();
    assert!(world.bindings().iter().any(|line| line.contains("dst=198.51.100.77")));
}

#[test]
fn a_rebinding_gives_other_port_numbers_and_spares_tcp() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Relay, &["udp-echo", ECHO]);
    let _streams = world.serve(Ns::Relay, &["tcp-echo", ECHO]);
    let mut stream = world.tool(Ns::Private, &["pipe", ECHO]);
    stream.write(b"one\n");
    stream.wait_for_line("one", isthmus_e2e::SOON);
    for first in ["2", "3"] {
        world.rebind_udp();
        world.run_tool(Ns::Private, &["udp-ping", ECHO]).ok();
        let bindings = world.bindings();
        let udp: Vec<_> = bindings.iter().filter(|line| line.starts_with("udp")).collect();
        let [binding] = udp[..] else { panic!("one binding, not {udp:?}") };
        let public = binding.rsplit("dport=").next().unwrap_or_default();
        assert!(public.starts_with(first), "{binding}");
    }
    stream.write(b"two\n");
    stream.wait_for_line("two", isthmus_e2e::SOON);
}

#[test]
fn a_flushed_gateway_does_not_adopt_streams_in_their_middle() {
    let Some(world) = World::new() else { return };
    let _streams = world.serve(Ns::Relay, &["tcp-echo", ECHO]);
    let mut stream = world.tool(Ns::Private, &["pipe", ECHO]);
    stream.write(b"one\n");
    stream.wait_for_line("one", isthmus_e2e::SOON);
    world.flush_conntrack();
    stream.write(b"two\n");
    silence(Duration::from_secs(2));
    assert!(!stream.said_after(0, "two") && stream.runs());
}

/// The load programs against each other, without a tunnel between: what they report later is then the tunnel's doing.
#[test]
fn load_programs_agree_with_each_other_over_a_plain_network() {
    let Some(world) = World::new() else { return };
    let _streams = world.serve(Ns::Relay, &["streams-serve", ECHO]);
    world.run_tool(Ns::Private, &["streams-call", "--n", "8", "--bytes", "8M", "--stall", "2", ECHO]).ok();
    let _echo = world.serve(Ns::Relay, &["udp-echo", ECHO]);
    world.run_tool(Ns::Private, &["udp-ping", "--visitors", "20", "--count", "5", "--sizes", "0,1,1400", ECHO]).ok();
    // One visitor only: a few of the largest datagrams at once overflow a socket's buffer, tunnel or not.
    world.run_tool(Ns::Private, &["udp-ping", "--sizes", "65507", ECHO]).ok();

    let half = world.serve(Ns::Relay, &["half-close-serve", "198.51.100.1:7001"]);
    let sent = world.run_tool(Ns::Private, &["half-close-call", "198.51.100.1:7001"]).ok().text();
    half.wait_for_line(sent.trim().trim_start_matches("sent "), isthmus_e2e::SOON);
    let first = world.serve(Ns::Relay, &["half-close-serve", "--first", "500000", "198.51.100.1:7002"]);
    let sent = world.run_tool(Ns::Private, &["half-close-call", "--first", "500000", "198.51.100.1:7002"]).ok().text();
    first.wait_for_line(sent.trim().trim_start_matches("sent "), isthmus_e2e::SOON);

    for (port, how) in [("7003", "fin"), ("7004", "reset")] {
        let address = format!("198.51.100.1:{port}");
        let _server = world.serve(Ns::Relay, &["end-serve", "--how", how, &address]);
        let seen = world.run_tool(Ns::Private, &["end-call", "--how", "watch", &address]).ok().text();
        assert!(seen.starts_with(&format!("end {how}")), "{seen}");
    }
}

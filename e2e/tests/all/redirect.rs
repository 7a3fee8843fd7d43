//! Which way datagrams cross the gateway: redirected ones as UDP, as its own counters tell.

use isthmus_e2e::{Agent, Counters, Keys, Ns, Proto, Relay, Terminal, World};

const COUNT: u64 = 200;
const SIZE: u64 = 1000;
const PAYLOAD: u64 = COUNT * SIZE;

/// Sends [`COUNT`] datagrams of [`SIZE`] bytes to an echo server, and returns what crossed the gateway meanwhile.
fn crossing(world: &World, to: &str) -> [u64; 4] {
    let before = world.counters();
    let (count, size) = (COUNT.to_string(), SIZE.to_string());
    world.run_tool(Ns::Public, &["udp-ping", "--count", &count, "--sizes", &size, to]).ok();
    let after = world.counters();
    let crossed = |of: fn(&Counters) -> u64| of(&after) - of(&before);
    [
        crossed(|c| c.udp_out.bytes),
        crossed(|c| c.udp_in.bytes),
        crossed(|c| c.tcp_out.bytes),
        crossed(|c| c.tcp_in.bytes),
    ]
}

fn assert_crossed_as_udp([udp_out, udp_in, tcp_out, tcp_in]: [u64; 4]) {
    assert!(udp_out >= PAYLOAD && udp_in >= PAYLOAD, "UDP: {udp_out} bytes out, {udp_in} in");
    // Some maintain packets and grants may pass on the TCP channel, but no payload.
    assert!(tcp_out < PAYLOAD / 10 && tcp_in < PAYLOAD / 10, "TCP: {tcp_out} bytes out, {tcp_in} in");
}

#[test]
fn published_datagrams_cross_the_gateway_as_udp_both_ways() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &["--publish", "udp:0.0.0.0:5300=cpe/10.77.0.3:5300"]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    assert_crossed_as_udp(crossing(&world, "198.51.100.1:5300"));
}

#[test]
fn forwarded_datagrams_of_a_terminal_cross_the_gateway_as_udp_both_ways() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &[]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    let terminal = Terminal::new(&keys);
    let _forward = terminal.spawn(&world, &["forward", "cpe", "-L", "127.0.0.1:5300:10.77.0.3:5300", "-U"]);
    world.wait_listening(Ns::Public, Proto::Udp, 5300);
    assert_crossed_as_udp(crossing(&world, "127.0.0.1:5300"));
}

/// The other side of the same measure: without UDP channels all of it has to be seen as TCP.
#[test]
fn without_udp_channels_the_same_datagrams_cross_as_tcp() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &["--publish", "udp:0.0.0.0:5300=cpe/10.77.0.3:5300"]);
    let _agent = Agent::start(&world, &keys, "cpe", &["--udp-channels", "0"]);
    let [udp_out, udp_in, tcp_out, tcp_in] = crossing(&world, "198.51.100.1:5300");
    assert_eq!((udp_out, udp_in), (0, 0));
    assert!(tcp_out >= PAYLOAD && tcp_in >= PAYLOAD, "TCP: {tcp_out} bytes out, {tcp_in} in");
}

#[test]
fn published_streams_cross_the_gateway_as_tcp() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &["--publish", "tcp:0.0.0.0:5001=cpe/10.77.0.3:5001"]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    let before = world.counters();
    world.run_tool(Ns::Public, &["tcp-ping", "--bytes", &PAYLOAD.to_string(), "198.51.100.1:5001"]).ok();
    let after = world.counters();
    assert!(after.tcp_out.bytes - before.tcp_out.bytes >= PAYLOAD);
    assert!(after.tcp_in.bytes - before.tcp_in.bytes >= PAYLOAD);
    assert!(after.udp_out.bytes - before.udp_out.bytes < PAYLOAD / 10);
}

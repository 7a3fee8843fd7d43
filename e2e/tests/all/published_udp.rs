//! Published UDP ports: each datagram is one datagram at the other end, with its own size and its own visitor.

use isthmus_e2e::{Agent, Keys, Ns, Proto, Relay, World, have, silence};
use std::time::Duration;

const PUBLISH: &str = "udp:0.0.0.0:5300=cpe/10.77.0.3:5300";
const PUBLISH6: &str = "udp:[2001:db8:1::1]:5306=cpe/[fd77::3]:5300";

#[test]
fn every_size_comes_back_as_it_was_sent() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]);
    let _echo6 = world.serve(Ns::Host, &["udp-echo", "[fd77::3]:5300"]);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &["--publish", PUBLISH, "--publish", PUBLISH6]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    let sizes = "0,1,2,63,64,511,512,1000,1100,1199,1200,1201,1300,1350,1400,1431,1432,1452,1472,1473,1500,2000,4096,\
                 9000,16383,16384,16385,32768,60000,65506,65507";
    for to in ["198.51.100.1:5300", "[2001:db8:1::1]:5306"] {
        world.run_tool(Ns::Public, &["udp-ping", "--count", "3", "--sizes", sizes, to]).ok();
    }
}

#[test]
fn many_visitors_get_each_their_own_answers() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &["--publish", PUBLISH]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    let ping = ["udp-ping", "--visitors", "300", "--count", "10", "--sizes", "16,900", "--retries", "2"];
    world.run_tool(Ns::Public, &[&ping[..], &["198.51.100.1:5300"]].concat()).ok();
}

#[test]
fn names_are_resolved_by_the_private_networks_own_server() {
    let Some(world) = World::new() else { return };
    if !have("dnsmasq") || !have("dig") {
        return;
    }
    let args = [
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--bind-interfaces",
        "--listen-address=10.77.0.3",
        "--except-interface=lo",
        "--port=5300",
        "--user=root",
        "--pid-file",
        "--address=/printer.lan/10.77.0.99",
        "--txt-record=long.lan,a-text-that-is-a-little-longer-than-an-address",
    ];
    let _dns = world.spawn(Ns::Host, "dnsmasq", &args);
    world.wait_listening(Ns::Host, Proto::Udp, 5300);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &["--publish", PUBLISH]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    for (kind, name, answer) in [("A", "printer.lan", "10.77.0.99"), ("TXT", "long.lan", "a-text-that")] {
        let dig = ["@198.51.100.1", "-p", "5300", "+short", "+tries=1", "+time=5", "-t", kind, name];
        let got = world.run(Ns::Public, "dig", &dig).ok().text();
        assert!(got.contains(answer), "{name}: {got}");
    }
}

#[test]
fn flow_that_was_quiet_beyond_its_idle_time_begins_anew() {
    let Some(world) = World::new() else { return };
    let _echo = world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]);
    let keys = Keys::new();
    let relay = Relay::start(&world, &keys, &["--publish", PUBLISH, "--udp-idle", "1s"]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    for _ in 0..2 {
        world.run_tool(Ns::Public, &["udp-ping", "--visitors", "20", "198.51.100.1:5300"]).ok();
        silence(Duration::from_secs(3));
        let info = relay.ctl(&world, &keys, &["show", "info", "json"]).ok().text();
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        assert_eq!(info["flows_live"], 0, "{info}");
    }
}

#[test]
fn where_the_gateway_blocks_udp_datagrams_still_pass_over_the_tcp_channel() {
    let Some(world) = World::new() else { return };
    world.drop_udp(true);
    let _echo = world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]);
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &["--publish", PUBLISH]);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    world.run_tool(Ns::Public, &["udp-ping", "--count", "20", "--sizes", "0,1200,65507", "198.51.100.1:5300"]).ok();
    assert_eq!(world.counters().udp_in.packets, 0);
}

//! Published ports that a mediator asks for by itself, within the relay's rules. On the loopback interface.

mod common;

use std::net::TcpListener;

use common::{Host, counter, ctl, curl, until};
use isthmus_e2e::{Loopback, SOON};
use rustix::process::Signal;
use tempfile::TempDir;

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// What `show publishes` tells of this port: who asked for it, and where it leads.
fn shown(world: &Loopback, port: u16) -> Option<(String, String)> {
    let text = ctl(world, "show publishes json");
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let rows = json["publishes"].as_array().cloned().unwrap_or_default();
    rows.iter().find_map(|row| {
        let publish = row["publish"].as_str()?.to_owned();
        (publish.contains(&format!(":{port}=")) && row["leaving"] == false)
            .then(|| (row["origin"].as_str().unwrap_or_default().to_owned(), publish))
    })
}

fn serves(port: u16, body: &str) -> bool {
    curl(&format!("127.0.0.1:{port}"), "x").ends_with(body)
}

#[test]
fn port_that_a_mediator_asks_for_is_served_while_its_tunnel_is_there() {
    let host = Host::http("asked for");
    let port = free_port();
    let ask = format!("tcp:127.0.0.1:{port}={}", host.address);
    let rule = format!("c*=tcp:127.0.0.0/8:{port}");
    let mut world = Loopback::start(&["--allow-publish", &rule], &["--ask-publish", &ask]);
    until(SOON, || serves(port, "asked for"));
    assert_eq!(shown(&world, port), Some(("asked".into(), format!("tcp:127.0.0.1:{port}=cpe/{}", host.address))));

    world.agent.kill();
    until(SOON, || shown(&world, port).is_none());
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "the port is free for others");

    let args = ["--allow", "127.0.0.0/8", "--ask-publish", &ask];
    world.agent = Loopback::start_agent(&world.keys, &world.service, "cpe", &args);
    until(SOON, || serves(port, "asked for"));
    // A newer session of the same mediator takes the port over as it is.
    let newer = Loopback::start_agent(&world.keys, &world.service, "cpe", &args);
    assert!(serves(port, "asked for"), "{}", ctl(&world, "show publishes"));
    assert_eq!(counter(&world, "asks_refused"), 0);
    drop(newer);
}

#[test]
fn what_no_rule_covers_is_refused_with_the_rule_that_would() {
    let host = Host::http("never");
    let port = free_port();
    let ask = format!("tcp:127.0.0.1:{port}={}", host.address);
    let rule = format!("other-*=tcp:*:{port}");
    let world = Loopback::start(&["--allow-publish", &rule], &["--ask-publish", &ask]);
    let line = world.relay.wait_for_line("a port that a mediator asks for is refused", SOON);
    assert!(line.contains(&format!("--allow-publish 'cpe=tcp:127.0.0.1:{port}'")), "{line}");
    assert_eq!((shown(&world, port), counter(&world, "asks_refused")), (None, 1));
}

#[test]
fn operators_port_and_the_first_asker_stand_above_a_later_one() {
    let (first, second, operator) = (Host::http("first"), Host::http("second"), Host::http("operator"));
    let (port, own) = (free_port(), free_port());
    let publish = format!("tcp:127.0.0.1:{own}=cpe/{}", operator.address);
    let ask = |port: u16, host: &Host| format!("tcp:127.0.0.1:{port}={}", host.address);
    let world = Loopback::start(
        &["--allow-publish", "*=tcp:*:1024-65535", "--publish", &publish],
        &["--ask-publish", &ask(port, &first)],
    );
    until(SOON, || serves(port, "first"));
    let args = [&ask(port, &second), &ask(own, &second)].map(|ask| ["--ask-publish".to_owned(), ask.clone()]).concat();
    let args: Vec<&str> = ["--allow", "127.0.0.0/8"].into_iter().chain(args.iter().map(String::as_str)).collect();
    let _later = Loopback::start_agent(&world.keys, &world.service, "later", &args);
    let line = world.relay.wait_for_line("a port that a mediator asks for is refused", SOON);
    assert!(line.contains("later") && line.contains("the port is taken"), "{line}");
    until(SOON, || counter(&world, "asks_refused") == 2);
    assert!(serves(port, "first") && serves(own, "operator"));
}

#[test]
fn reload_of_either_end_takes_away_what_is_asked_or_allowed_no_more() {
    let host = Host::http("asked for");
    let (kept, dropped) = (free_port(), free_port());
    let dir = TempDir::new().expect("a temporary directory");
    let (relay_file, agent_file) = (dir.path().join("relay.toml"), dir.path().join("agent.toml"));
    let ask = |port: u16| format!("\"tcp:127.0.0.1:{port}={}\"", host.address);
    std::fs::write(&relay_file, "allow-publish = [\"cpe=tcp:*:1024-65535\"]\n").expect("written");
    std::fs::write(&agent_file, format!("ask-publish = [{}, {}]\n", ask(kept), ask(dropped))).expect("written");
    let (relay, agent) = (relay_file.display().to_string(), agent_file.display().to_string());
    let world = Loopback::start(&["--config", &relay], &["--config", &agent]);
    until(SOON, || serves(kept, "asked for") && serves(dropped, "asked for"));

    std::fs::write(&agent_file, format!("ask-publish = [{}]\n", ask(kept))).expect("written");
    world.agent.signal(Signal::HUP);
    until(SOON, || shown(&world, dropped).is_none());
    assert!(serves(kept, "asked for"));

    // The operator's own word for the port: it leads where the file says, and the tunnel stays.
    let other = Host::http("operator");
    let publish = format!("publish = [\"tcp:127.0.0.1:{kept}=cpe/{}\"]\n", other.address);
    std::fs::write(&relay_file, format!("{publish}allow-publish = [\"cpe=tcp:*:1024-65535\"]\n")).expect("written");
    let answer = ctl(&world, "reload");
    assert!(answer.contains(&format!("changed tcp:127.0.0.1:{kept}=")), "{answer}");
    until(SOON, || serves(kept, "operator"));

    std::fs::write(&relay_file, "").expect("written");
    let answer = ctl(&world, "reload");
    assert!(answer.contains("changed allow-publish"), "{answer}");
    until(SOON, || shown(&world, kept).is_none());
    assert_eq!(ctl(&world, "show tunnels").matches("cpe").count(), 1);
}

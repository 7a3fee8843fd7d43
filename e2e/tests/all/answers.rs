//! The stats socket's answers for programs are what docs/stats.schema.json says, with the real programs and something of
//! everything in them.

use std::net::UdpSocket;

use isthmus_e2e::{Loopback, SOON, Schema};
use serde_json::Value;

use crate::common::{counter, ctl, published, until};

fn schema() -> Schema {
    Schema::new(include_str!("../../../docs/stats.schema.json"))
}

fn check(name: &str, answer: &str) -> Value {
    let value: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{name}: {error}: {answer}"));
    let wrong = schema().wrong_with(name, &value);
    assert!(wrong.is_empty(), "{name}: {wrong:?} in {answer}");
    value
}

#[test]
fn answers_for_programs_are_as_their_schema_says() {
    let world = Loopback::start(
        &[
            "--publish",
            "udp:127.0.0.1:0=cpe/127.0.0.1:9",
            "--names",
            "127.0.0.1:0",
            "--name",
            "a.example.net=cpe/127.0.0.1:9",
            "--expose",
            "tcp:cpe/127.0.0.1:0=127.0.0.1:9",
            "--http",
            "127.0.0.1:0",
            "--allow-publish",
            "cpe=tcp:1-2",
        ],
        &["--ask-publish", "tcp:7=127.0.0.1:9", "--service", "help me"],
    );
    let visitor = UdpSocket::bind("127.0.0.1:0").unwrap();
    visitor.send_to(b"hello", published(&world, "udp")).unwrap();
    // An error, and what a mediator asks for.
    visitor.send_to(&[0; 64], &world.service).unwrap();
    until(SOON, || counter(&world, "flows_live") == 1 && counter(&world, "asks_refused") == 1);
    until(SOON, || {
        counter(&world, "datagrams_dropped_unknown_channel") + counter(&world, "datagrams_dropped_forged") > 0
    });
    ctl(&world, "revoke mediator nobody");

    let help = ctl(&world, "help");
    let mut commands: Vec<String> = Vec::new();
    for line in help.lines().filter(|line| line.contains("[json]")) {
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('[')).collect();
        commands.push(words.join(" "));
    }
    let schema = schema();
    let described = schema.names().iter().filter(|name| name.starts_with("show ")).count();
    assert_eq!(described, commands.len(), "{commands:?}");
    for command in &commands {
        let (name, command) = (command.trim_end_matches(" ID"), command.replace(" ID", " cpe"));
        let answer = check(name, &ctl(&world, &format!("{command} json")));
        let filled =
            answer.as_object().unwrap().values().all(|value| value.as_array().is_none_or(|rows| !rows.is_empty()));
        assert!(filled || name == "show names" || name == "show trust", "{name} shows nothing: {answer}");
    }
    check("show tunnels", &ctl(&world, "show tunnels sort=bps json"));

    let limits = check("show limits", &ctl(&world, "show limits json"));
    let flows = limits["limits"].as_array().unwrap().iter().find(|row| row["of"] == "published port").unwrap();
    assert_eq!((&flows["now"], &flows["most"]), (&1.into(), &16_384.into()));
    let flow = &check("show flows", &ctl(&world, "show flows json"))["flows"][0];
    assert_eq!((&flow["mediator"], &flow["to"]), (&"cpe".into(), &"127.0.0.1:9".into()));
    assert_eq!(flow["from"], visitor.local_addr().unwrap().to_string());
    assert_eq!((&flow["datagrams_out"], &flow["bytes_out"]), (&1.into(), &5.into()));
    let config = ctl(&world, "show config");
    let line = |name: &str| config.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    assert!(line("shards ").contains(" 2 ") && line("shards ").ends_with("command line"), "{config}");
    assert!(line("udp-idle ").contains(" 60s ") && line("udp-idle ").ends_with("default"), "{config}");
    assert!(ctl(&world, "show flows id=x*").lines().count() == 1);
}

//! `doctor`, at real programs: what is wrong is found by its name, with the cure and the exit code.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use isthmus_e2e::{Agent, Keys, Loopback, Ns, Relay, SERVICE, World, program};
use serde_json::Value;

/// What a doctor said: its exit code, and its findings.
fn ask(mut doctor: Command) -> (i32, Vec<Value>) {
    let output = doctor.args(["doctor", "--json"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let answer: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(answer["v"], 1);
    (output.status.code().unwrap(), answer["findings"].as_array().unwrap().clone())
}

#[track_caller]
fn severity(findings: &[Value], name: &str) -> String {
    let of_name = |finding: &&Value| finding["name"].as_str().is_some_and(|text| text.starts_with(name));
    let found = findings.iter().find(of_name).unwrap_or_else(|| panic!("no {name} in {findings:#?}"));
    let severity = found["severity"].as_str().unwrap();
    assert!(!["warning", "error"].contains(&severity) || found["cure"].as_str().is_some_and(|cure| !cure.is_empty()));
    severity.to_owned()
}

fn agent(relay: &str, pin: &str, token: &str) -> Command {
    let mut agent = Command::new(program("isthmus-agent"));
    agent.env_remove("ISTHMUS_RELAY").args(["--relay", relay, "--pin", pin, "--token", token]);
    agent
}

#[test]
fn mediator_that_is_well_has_no_error_and_keeps_its_running_tunnel() {
    let mut world = Loopback::start(&[], &[]);
    let token = world.keys.mediator_token("cpe", &[]);
    let (code, findings) = ask(agent(&world.service, world.keys.pin(), &token));
    assert!(code < 2, "{findings:#?}");
    for name in ["kernel", "io_uring", "token", "relay's name", "TCP", "TLS", "UDP", "NAT", "path MTU"] {
        assert_eq!(severity(&findings, name), "ok", "{name}");
    }
    assert!(world.agent.runs());
    assert!(!world.agent.lines().iter().any(|line| line.contains("tunnel lost")), "the doctor took its tunnel");
}

#[test]
fn wrong_pin_dead_relay_and_ended_token_are_errors_of_their_own() {
    let world = Loopback::start(&[], &[]);
    let token = world.keys.mediator_token("cpe", &[]);
    let other = "SHA256:0000000000000000000000000000000000000000000000000000000000000000";
    let (code, findings) = ask(agent(&world.service, other, &token));
    assert_eq!((code, severity(&findings, "TCP").as_str(), severity(&findings, "TLS").as_str()), (2, "ok", "error"));

    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, findings) = ask(agent(&unused, world.keys.pin(), &token));
    assert_eq!((code, severity(&findings, "TCP").as_str()), (2, "error"));

    let short = world.keys.mediator_token("cpe", &["--ttl", "1s"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (code, findings) = ask(agent(&world.service, world.keys.pin(), &short));
    assert_eq!((code, severity(&findings, "token").as_str()), (2, "error"));
}

#[test]
fn relay_tells_its_own_running_ports_from_those_of_others() {
    let world = Loopback::start(&[], &[]);
    let relay = |listen: &str| {
        let mut relay = Command::new(program("isthmus-relay"));
        relay.arg("--state").arg(world.keys.path()).args(["--listen", listen]);
        relay
    };
    let (code, findings) = ask(relay(&world.service));
    assert!(code < 2, "{findings:#?}");
    assert_eq!(severity(&findings, "relay"), "note");
    assert_eq!(severity(&findings, "--listen tcp"), "ok");
    assert_eq!(severity(&findings, "trust"), "ok");

    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut other = Command::new(program("isthmus-relay"));
    other.arg("--state").arg(dir.path().join("state"));
    other.args(["--listen", &taken.local_addr().unwrap().to_string()]);
    let (code, findings) = ask(other);
    assert_eq!((code, severity(&findings, "--listen tcp").as_str()), (2, "error"));
}

#[test]
fn settings_are_read_from_the_file_as_the_programs_do() {
    let world = Loopback::start(&[], &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let (pin, token) = (world.keys.pin(), world.keys.mediator_token("cpe", &[]));
    let of_agent = format!("relay = '{}'\npin = '{pin}'\ntoken = '{token}'\n", world.service);
    let mut agent = Command::new(program("isthmus-agent"));
    agent.env_remove("ISTHMUS_RELAY").arg("--config").arg(file("agent.toml", of_agent));
    let (code, findings) = ask(agent);
    assert!(code < 2, "{findings:#?}");
    assert_eq!((severity(&findings, "TLS"), severity(&findings, "token")), ("ok".into(), "ok".into()));

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let of_relay = format!("listen = '{}'\n", taken.local_addr().unwrap());
    let mut relay = Command::new(program("isthmus-relay"));
    relay.arg("--state").arg(dir.path().join("state")).arg("--config").arg(file("relay.toml", of_relay));
    let (code, findings) = ask(relay);
    assert_eq!((code, severity(&findings, "--listen tcp").as_str()), (2, "error"), "{findings:#?}");
}

#[test]
fn nat_is_told_by_its_mapping_filtering_and_life_and_the_path_by_its_mtu() {
    let Some(world) = World::new() else { return };
    let keys = Keys::new();
    let relay = Relay::start(&world, &keys, &[]);
    let agent = Agent::start(&world, &keys, "cpe", &[]);
    let token = keys.mediator_token("cpe", &[]);
    let args = ["--relay", SERVICE, "--pin", keys.pin(), "--token", &token, "doctor", "--json", "--nat-silence", "1s"];
    let answer = world.run(Ns::Private, program("isthmus-agent"), &args).text();
    let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    let found = |name: &str| {
        let findings = answer["findings"].as_array().unwrap().iter();
        let mut of_name =
            findings.filter(|finding| finding["name"].as_str().is_some_and(|text| text.starts_with(name)));
        of_name.next().unwrap_or_else(|| panic!("no {name} in {answer:#}"))["found"].as_str().unwrap().to_owned()
    };
    // Linux's masquerading keeps one port for all destinations while it is free, and lets in only who was asked.
    assert!(found("UDP ").contains("the relay sees"), "{answer:#}");
    let nat = found("NAT ");
    assert!(
        nat.contains("one port to all of the relay's") && nat.contains("address and port-dependent filtering"),
        "{nat}"
    );
    assert!(found("path MTU ").contains("packets of 1500 bytes"), "{answer:#}");
    assert!(found("UDP binding").contains("lives through 1s"), "{answer:#}");
    drop((agent, relay));
}

//! A reload from an operator's side; the sockets are real, the shards are not.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;

use crate::common::{Client, Plane};
use isthmus_relay::admin::Limits;

struct Reloaded {
    plane: Plane,
    client: Client,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Reloaded {
    fn start(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("relay.toml");
        std::fs::write(&file, text).unwrap();
        let plane = Plane::start_flags(2, Vec::new(), Limits::default(), &["--config", file.to_str().unwrap()]);
        // The fake shards publish ports of their own that no configuration names: the first reload takes them away.
        let mut client = plane.client();
        let first = client.ask("reload");
        assert!(first.contains("unpublished tcp:127.0.0.1:8000"), "{first}");
        Self { plane, client, file, _dir: dir }
    }

    fn reload(&mut self, text: &str) -> String {
        std::fs::write(&self.file, text).unwrap();
        self.client.ask("reload")
    }

    fn published(&mut self) -> Vec<String> {
        let json = self.client.ask_json("show publishes json");
        json["publishes"].as_array().unwrap().iter().map(|row| row["publish"].as_str().unwrap().to_owned()).collect()
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn publish(port: u16, target: &str) -> String {
    format!("tcp:127.0.0.1:{port}={target}")
}

#[test]
fn difference_is_applied_and_told() {
    let mut it = Reloaded::start("");
    assert_eq!(it.client.ask("reload"), "no setting differs; keys and tokens are read again");
    let (one, two) = (free_port(), free_port());
    let (a, b) = (publish(one, "cpe-1/10.0.0.5:80"), publish(two, "cpe-1/10.0.0.5:81"));
    let answer = it.reload(&format!("publish = ['{a}', '{b}']\nudp-idle = '5s'\nname = []\n"));
    assert_eq!(answer, format!("published {a}\npublished {b}\nchanged udp-idle: 60s -> 5s"));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, one)).is_ok());

    // One goes, one leads elsewhere; its socket is the same, so who came in between is still in its queue.
    let waiting = TcpStream::connect((Ipv4Addr::LOCALHOST, two)).unwrap();
    let c = publish(two, "hub-7/10.0.0.6:82");
    let answer = it.reload(&format!("publish = ['{c}']\nudp-idle = '5s'\n"));
    assert_eq!(answer, format!("unpublished {a}\nchanged {b} to {c}"));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, one)).is_err());
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, two)).is_ok());
    assert!(waiting.take_error().unwrap().is_none());
    assert_eq!(it.published(), [c]);
    it.plane.stop();
}

#[test]
fn reload_that_cannot_be_done_whole_changes_nothing() {
    let mut it = Reloaded::start("");
    let good = publish(free_port(), "cpe-1/10.0.0.5:80");
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let bad = publish(taken.local_addr().unwrap().port(), "cpe-1/10.0.0.5:80");
    for (text, parts) in [
        (format!("publish = ['{good}', '{bad}']"), &["is taken"][..]),
        (format!("publish = ['{good}']\nshards = 7\nlisten = '127.0.0.1:9'"), &["needs a restart", "shards", "listen"]),
        (format!("publish = ['{good}']\nudp_idel = '5s'"), &["relay.toml, line 2", "is it 'udp-idle'"]),
        (format!("publish = ['{good}']\nudp-idle = '5'"), &["line 2", "udp-idle", "20s"]),
        (format!("publish = ['{good}', '{good}']"), &["twice"]),
        (format!("publish = ['{good}']\nlog = 'info,=x='"), &["line 2", "log"]),
        ("publish = [".to_owned(), &["line 1"]),
    ] {
        let answer = it.reload(&text);
        assert!(answer.starts_with("error: nothing is changed: ") && answer.lines().count() == 1, "{text}: {answer}");
        assert!(parts.iter().all(|part| answer.contains(part)), "{text}: {answer}");
        assert!(it.published().is_empty(), "{text}");
    }
    assert_eq!(it.reload(&format!("publish = ['{good}']")), format!("published {good}"));
    it.plane.stop();
}

#[test]
fn difference_of_exposed_services_is_applied_and_told() {
    // The same number with another protocol is another port.
    let mut it = Reloaded::start("");
    let (a, b) = ("tcp:cpe-1/10.0.0.2:80=192.0.2.1:80", "udp:cpe-1/10.0.0.2:80=192.0.2.1:80");
    assert_eq!(it.reload(&format!("expose = ['{a}', '{b}']")), format!("exposed {a}\nexposed {b}"));
    let c = "tcp:cpe-1/10.0.0.2:80=192.0.2.1:81,proxy=v2";
    assert_eq!(it.reload(&format!("expose = ['{c}']")), format!("changed {a} to {c}\nunexposed {b}"));
    let json = it.client.ask_json("show exposes json");
    assert_eq!((json["exposes"].as_array().unwrap().len(), json["exposes"][0]["expose"].as_str()), (1, Some(c)));

    // What operators expose is theirs.
    assert!(it.client.ask(&format!("expose {b}")).starts_with("exposed udp:cpe-1/"));
    assert!(it.client.ask(&format!("expose {b}")).contains("exposed already, as udp:cpe-1/"));
    let other = "udp:cpe-1/10.0.0.2:80=198.51.100.1:80";
    let answer = it.reload(&format!("expose = ['{c}', '{other}']"));
    assert!(answer.starts_with("error: nothing is changed: ") && answer.contains("unexpose it first"), "{answer}");
    assert_eq!(it.reload(""), format!("unexposed {c}"));
    assert_eq!(it.client.ask("unexpose udp:cpe-1/10.0.0.2:80"), format!("unexposed {b}"));
    assert!(it.client.ask("unexpose udp:cpe-1/10.0.0.2:80").contains("nothing is exposed there"));
    it.plane.stop();
}

#[test]
fn ports_of_operators_are_left_alone() {
    let mut it = Reloaded::start("");
    let port = free_port();
    let own = publish(port, "cpe-1/10.0.0.5:80");
    it.client.ask(&format!("publish {own}"));
    let other = publish(port, "cpe-2/10.0.0.5:80");
    let answer = it.reload(&format!("publish = ['{other}']"));
    assert!(answer.contains("at run time already") && answer.contains("unpublish it first"), "{answer}");
    assert_eq!(it.reload("udp-idle = '5s'"), "changed udp-idle: 60s -> 5s");
    assert_eq!(it.published(), [own]);
    it.plane.stop();
}

#[test]
fn new_certificate_is_told() {
    let mut it = Reloaded::start("");
    let state = it.plane.path.parent().unwrap().to_owned();
    let other = tempfile::tempdir().unwrap();
    isthmus_relay::trust::State::open(other.path()).unwrap();
    for name in ["ca.pem", "ca.key", "server.pem", "server.key"] {
        std::fs::copy(other.path().join(name), state.join(name)).unwrap();
    }
    let answer = it.client.ask("reload");
    let fingerprint = it.client.ask_json("show info json")["fingerprint"].as_str().unwrap().to_owned();
    assert!(answer.contains(&format!("changed certificate: new connections see {fingerprint}")), "{answer}");
    // A key that does not fit its certificate is refused, and the old pair stays.
    std::fs::write(state.join("server.key"), "").unwrap();
    let answer = it.client.ask("reload");
    assert!(answer.contains("nothing is changed") && answer.contains("server.key"), "{answer}");
    assert_eq!(it.client.ask_json("show info json")["fingerprint"], fingerprint);
    it.plane.stop();
}

#[test]
fn log_filter_is_checked() {
    let mut it = Reloaded::start("");
    assert_eq!(it.client.ask("set log info,isthmus_relay=debug"), "log filter is info,isthmus_relay=debug");
    assert!(it.client.ask("set log =x=").starts_with("error: "));
    it.plane.stop();
}

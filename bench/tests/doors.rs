//! The loads through the front doors of a real relay: what they say first lets them through, and the far end passes it over.

mod common;

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{PATIENCE, relay};
use isthmus_bench::load::preface::Target;
use isthmus_bench::load::{setup, tcp};
use isthmus_bench::names::numbered;
use isthmus_bench::simulate::{self, Answer, Settings};
use isthmus_proto::record::{Trust, client_config};
use isthmus_relay::trust::State;

const SHORT: Duration = Duration::from_millis(400);

/// A port number that nobody has now.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Mediators with a sink behind every destination, that stay for as long as the test's process does.
fn mediators(relay: SocketAddr, state: &State) {
    let settings = Settings {
        relay,
        tls: Some(client_config(Trust::Pin(state.fingerprint().0)).unwrap()),
        tokens: state.tokens().clone(),
        names: numbered("m", 0, 2).unwrap(),
        sources: None,
        rings: 1,
        udp_channels: 0,
        learned: false,
        tickets: true,
        at_once: 4,
        answer: Answer::Sink,
        patience: PATIENCE,
        hold: None,
    };
    let (tell, told) = mpsc::channel();
    thread::spawn(move || simulate::run(settings, |figures| tell.send(figures.line().to_string()).unwrap()));
    told.recv_timeout(PATIENCE).unwrap();
}

fn value(line: &str, key: &str) -> f64 {
    let word = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {key} in {line}")).parse().unwrap()
}

#[test]
fn bulk_and_new_connections_pass_through_every_door_and_refusals_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let state = State::open(&path).unwrap();
    let [plain, socks, names] = [free(), free(), free()];
    let routes = "--name a.example=m0/10.0.0.1:7 --name b.example=m1/10.0.0.1:7";
    let ports = format!("--publish tcp:{plain}=m0/10.0.0.1:7 --socks {socks}=m1 --names {names} {routes}");
    mediators(relay(&path, &ports), &state);
    let target = |text: String| text.parse::<Target>().unwrap();
    let doors = [
        vec![target(plain.to_string())],
        vec![target(format!("{socks},socks5=10.0.0.1:7"))],
        ["a", "b"].map(|label| target(format!("{names},tls={label}.example"))).into(),
    ];
    for to in doors {
        for up in [true, false] {
            let settings =
                tcp::Settings { to: to.clone(), streams: 3, measured: SHORT, warm_up: SHORT, up, watched: Vec::new() };
            let line = tcp::run(&settings).unwrap().to_string();
            assert!(value(&line, "slowest_gbit_s") > 0.0, "{to:?}: {line}");
        }
        let settings = setup::Settings { to: to.clone(), at_once: 8, measured: SHORT, watched: Vec::new() };
        let line = setup::run(&settings).unwrap().to_string();
        assert!(value(&line, "connects") > 0.0 && value(&line, "failed") == 0.0, "{to:?}: {line}");
    }

    // A name that leads nowhere gets a TLS alert, and SOCKS5 at a port of names gets nothing: neither is an echo.
    let unknown = vec![target(format!("{names},tls=c.example"))];
    let not_socks = vec![target(format!("{names},socks5=10.0.0.1:7"))];
    for to in [unknown, not_socks] {
        let settings = setup::Settings { to, at_once: 1, measured: SHORT, watched: Vec::new() };
        assert!(setup::run(&settings).unwrap_err().to_string().contains("had its echo"));
    }
}

//! The command line, as a process.

use std::process::{Output, Stdio};
use std::time::Duration;

use isthmus_proto::record::format_pin;
use isthmus_terminal::Code;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::{Child, Command};

use crate::relay::{self, COUNT, ECHO, HELLO, Options, REFUSE, RESET, Relay, Seen};

fn isthmus(relay: &Relay, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus"));
    command
        .args(line.split(' '))
        .env("ISTHMUS_RELAY", relay.addr.to_string())
        .env("ISTHMUS_PIN", format_pin(&relay.pin))
        .env("ISTHMUS_TOKEN", "token")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(line: &str, input: &[u8]) -> Output {
    let relay = Relay::start(Options { channels: 1, ..Options::default() }).await;
    let mut child = isthmus(&relay, line).spawn().unwrap();
    // One that ends with an error may not read its input.
    let _ = child.stdin.take().unwrap().write_all(input).await;
    child.wait_with_output().await.unwrap()
}

/// Runs until killed; gives the first line that it prints.
async fn start(relay: &Relay, line: &str) -> (Child, String) {
    let mut child = isthmus(relay, line).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).await.unwrap();
    (child, first.trim_end().to_owned())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn nc_ends_in_order_with_0() {
    let input = vec![b'x'; 200_000];
    let output = run(&format!("nc cpe-1 10.0.0.5 {ECHO}"), &input).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout == input);
    // The host's end comes first; the rest of the input goes there nevertheless.
    let output = run(&format!("nc cpe-1 10.0.0.5 {HELLO}"), &input).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(output.stdout, b"hello");
    let mut relay = Relay::start(Options::default()).await;
    let mut child = isthmus(&relay, &format!("nc cpe-1 10.0.0.5 {HELLO}")).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&input).await.unwrap();
    assert!(child.wait().await.unwrap().success());
    relay.expect(Seen::Sunk(200_000)).await;
    let output = run(&format!("nc cpe-1 10.0.0.5 {COUNT}"), &input).await;
    assert_eq!(output.stdout, 200_000u64.to_be_bytes());
}

#[tokio::test]
async fn errors_are_one_line_with_cause_and_1() {
    for (line, cause) in [
        (format!("nc cpe-1 10.0.0.5 {RESET}"), Code::Reset.text().to_owned()),
        (format!("nc cpe-1 10.0.0.5 {}", REFUSE + Code::Denied as u16), Code::Denied.text().to_owned()),
        (format!("--pin {} list", format_pin(&[1; 32])), "does not match the pin".to_owned()),
        ("nc cpe-1 10.0.0.5 1 -u".to_owned(), "10.0.0.5:1".to_owned()),
        ("--token-file /nonexistent list".to_owned(), "/nonexistent".to_owned()),
    ] {
        let output = run(&line, b"abc").await;
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {error}");
        assert!(error.contains(&cause), "{line}: {error}");
        assert_eq!(error.lines().count(), 1, "{line}: {error}");
    }
}

#[tokio::test]
async fn a_refused_token_is_told_with_what_to_do() {
    for (code, cure) in [
        (Code::TokenMismatch, "isthmus-relay token --terminal NAME --mediators GLOB"),
        (Code::TokenExpired, "isthmus-relay token --terminal NAME"),
        (Code::BadToken, "--state directory"),
        (Code::MediatorAway, "isthmus list"),
    ] {
        // The relay repeats the code's text where it has no more to say.
        let relay = Relay::start(Options { goodbye: Some((code, 0, code.text())), ..Options::default() }).await;
        let output = isthmus(&relay, "info cpe-1").output().await.unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(error.contains(cure), "{error}");
        assert_eq!(error.matches(code.text()).count(), 1, "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[tokio::test]
async fn settings_come_from_flags_before_the_environment() {
    let relay = Relay::start(Options::default()).await;
    let dir = std::env::temp_dir().join(format!("isthmus-cli-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("token");
    std::fs::write(&file, "token\n").unwrap();
    let flags = format!("--relay {} --pin {} --token-file {} list", relay.addr, format_pin(&relay.pin), file.display());
    let output = isthmus(&relay, &flags)
        .env("ISTHMUS_RELAY", "nowhere.invalid:1")
        .env("ISTHMUS_PIN", format_pin(&[1; 32]))
        .env("ISTHMUS_TOKEN", "another")
        .output()
        .await
        .unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let relay = Relay::start(Options::default()).await;
    let output = isthmus(&relay, "list").env("ISTHMUS_PIN", " ").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("ISTHMUS_PIN"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn nc_sends_and_prints_datagrams() {
    let output = run("nc cpe-1 10.0.0.5 53 -u -w 0.3", b"abc").await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(output.stdout, b"abc");
    let output = run("nc cpe-1 10.0.0.5 53 -u --redirect -w 0.3", b"abc").await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(output.stdout, b"abc\0\x03");
}

#[tokio::test]
async fn info_and_list_are_for_people_and_for_programs() {
    let output = run("info cpe-1 --json", b"").await;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["id"], &json["session"]), (&"cpe-1".into(), &relay::SESSION.into()));
    let output = run("info cpe-1", b"").await;
    assert!(text(&output.stdout).contains("192.0.2.1:99"));
    let output = run("list --json", b"").await;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 5);
    let output = run("list", b"").await;
    assert_eq!(text(&output.stdout).lines().count(), 6);
}

#[tokio::test]
async fn forward_leads_local_connections_to_the_host() {
    let relay = Relay::start(Options::default()).await;
    let (_child, line) = start(&relay, &format!("forward cpe-1 -L 0:10.0.0.5:{ECHO}")).await;
    let local = line.strip_prefix("forwarding ").unwrap();
    let local = local.strip_suffix(&format!(" -> 10.0.0.5:{ECHO}")).unwrap();
    for len in [1, 1_000_000] {
        let mut stream = TcpStream::connect(local).await.unwrap();
        let sent = vec![b'y'; len];
        let (mut read, mut write) = stream.split();
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, received) = tokio::join!(send, read.read_to_end(&mut got));
        received.unwrap();
        assert!(got == sent);
    }
}

#[tokio::test]
async fn a_forwarded_reset_is_a_reset() {
    let relay = Relay::start(Options::default()).await;
    let (_child, line) = start(&relay, &format!("forward cpe-1 -L 0:10.0.0.5:{RESET}")).await;
    let local = line.split(' ').nth(1).unwrap();
    let mut stream = TcpStream::connect(local).await.unwrap();
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn forward_gives_each_local_party_a_udp_port() {
    let relay = Relay::start(Options { channels: 1, ..Options::default() }).await;
    let (_child, line) = start(&relay, "forward cpe-1 -U -L 0:10.0.0.5:53").await;
    let local = line.split(' ').nth(1).unwrap();
    for text in [b"one", b"two"] {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(local).await.unwrap();
        let mut buffer = [0; 100];
        // The channel may not answer yet; then it goes over TCP, without the second inner datagram.
        socket.send(text).await.unwrap();
        let n = socket.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..n], text);
    }
}

#[tokio::test]
async fn listen_leads_hosts_to_this_side() {
    let relay = Relay::start(Options::default()).await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let (_child, line) = start(&relay, &format!("listen cpe-1 10.0.0.2:8080 --to {to} --obligatory")).await;
    assert_eq!(line, "listening on 10.0.0.2:8080");
    relay.commands.send(relay::Command::Accept { peer: "10.0.0.5:99".parse().unwrap() }).unwrap();
    let (mut stream, _) = server.accept().await.unwrap();
    stream.write_all(b" there").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"hi there");
}

#[tokio::test]
async fn forward_comes_back_after_the_relay_was_lost() {
    let mut relay = Relay::start(Options::default()).await;
    let (mut child, line) = start(&relay, &format!("forward cpe-1 -L 0:10.0.0.5:{ECHO}")).await;
    let local = line.split(' ').nth(1).unwrap();
    let echo = async || {
        let mut stream = TcpStream::connect(local).await?;
        stream.write_all(b"x").await?;
        stream.read_u8().await
    };
    assert_eq!(echo().await.unwrap(), b'x');
    for _ in 0..2 {
        relay.commands.send(relay::Command::Cut).unwrap();
        relay.expect(Seen::Gone).await;
        // Refused until the connection is back, for which the waits between tries are random.
        while echo().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // What waiting does not cure ends the program.
    relay.commands.send(relay::Command::Goodbye(Code::TokenExpired)).unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(1));
}

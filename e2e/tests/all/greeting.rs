//! The relay's answers to first messages that it does not like, and its bound on half-open connections.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use isthmus_e2e::{Keys, Process, SOON, program, word_after};
use isthmus_proto::Code;
use isthmus_proto::hello::VERSION;
use isthmus_proto::record::{RECORD_HEADER, Session, parse_header};
use isthmus_proto::wire::{ControlBuf, Frame, HEADER_LEN, read_header};

fn relay(keys: &Keys, args: &[&str]) -> (Process, String) {
    let mut command = Command::new(program("isthmus-relay"));
    command.arg("--state").arg(keys.path()).args(["--listen", "127.0.0.1:0", "--log", "debug"]).args(args);
    let relay = Process::spawn("relay", command);
    let line = relay.wait_for_line("relay runs", SOON);
    (relay, word_after(&line, "listen=").to_owned())
}

/// Sends one frame as a plaintext caller's first and gives the code of the relay's farewell.
fn answer_to(service: &str, frame: &Frame<'_>) -> Option<Code> {
    let mut control = ControlBuf::default();
    control.push(frame);
    let mut record = vec![0; RECORD_HEADER];
    record.extend_from_slice(control.take(usize::MAX));
    let mut session = Session::plaintext();
    session.seal(&mut record).unwrap();
    let mut stream = TcpStream::connect(service).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&record).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    let whole = parse_header(&got).unwrap().unwrap();
    let range = match session.open(&mut got[..whole]).unwrap() {
        isthmus_proto::record::Opened::Data(range) => range,
        other => panic!("{other:?}"),
    };
    let frame = &got[range];
    match Frame::decode(read_header(frame).unwrap(), &frame[HEADER_LEN..]).unwrap() {
        Frame::Goodbye { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_versions_and_unintelligible_hellos_are_told_why_and_logged() {
    let keys = Keys::new();
    let (relay, service) = relay(&keys, &["--plaintext", "--shards", "2"]);
    assert_eq!(answer_to(&service, &Frame::Hello { version: VERSION + 1, json: b"{}" }), Some(Code::BadVersion));
    relay.wait_for_line("caller refused .. reason=bad-version .. version", SOON);
    assert_eq!(answer_to(&service, &Frame::Hello { version: VERSION, json: b"{" }), Some(Code::BadHello));
    assert_eq!(answer_to(&service, &Frame::Ping { opaque: 1 }), Some(Code::BadHello));
    relay.wait_for_line("caller refused .. reason=bad-hello", SOON);
    let forged = br#"{"token":"a.b.c","role":{"terminal":{"mediator":null}},"udp_channels":0}"#;
    assert_eq!(answer_to(&service, &Frame::Hello { version: VERSION, json: forged }), Some(Code::BadToken));
}

#[test]
fn half_open_connections_are_bounded_in_number_and_time() {
    let keys = Keys::new();
    let (_relay, service) = relay(&keys, &["--shards", "1", "--half-open-max", "3", "--handshake-timeout", "1s"]);
    let mut strangers: Vec<_> = (0..4).map(|_| TcpStream::connect(&service).unwrap()).collect();
    // The one too many is turned away at once, the others when their time is over.
    let mut ends: Vec<_> = strangers
        .iter_mut()
        .map(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            match stream.read(&mut [0]) {
                Ok(0) => "end",
                Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset",
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(ends.pop(), Some("reset"));
    assert_eq!(ends, ["end"; 3]);
    // There is room again.
    let mut next = TcpStream::connect(&service).unwrap();
    next.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let error = next.read(&mut [0]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
}

//! How a connection begins and ends.

use std::time::Duration;

use isthmus_proto::record::HandshakeError;
use isthmus_terminal::{Code, Config, Error, Mediator, Relay as Asked, Trust};

use crate::relay::{Command, ECHO, Options, Relay, SESSION, Seen};

#[tokio::test]
async fn a_welcome_tells_session_report_and_address() {
    for plaintext in [false, true] {
        let relay = Relay::start(Options { plaintext, ..Options::default() }).await;
        let mediator = relay.attach().await;
        assert_eq!(mediator.session(), SESSION);
        assert_eq!(mediator.report().unwrap().hostname, "host");
        assert!(mediator.observed().ip().is_loopback());
        assert_eq!(mediator.info().await.unwrap().session, SESSION);
    }
}

#[tokio::test]
async fn a_wrong_pin_is_told_as_such() {
    let relay = Relay::start(Options::default()).await;
    let config = Config::new(relay.addr.to_string(), Trust::Pin([3; 32]), "token");
    let error = Mediator::attach(&config, "cpe-1".parse().unwrap()).await.err().unwrap();
    assert!(matches!(error, Error::Tls(HandshakeError::WrongPin)), "{error}");
    assert_eq!(error.code(), Some(Code::TlsFailed));
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_plaintext_relay_is_told_from_a_tls_one() {
    let relay = Relay::start(Options::default()).await;
    let config = Config::new(relay.addr.to_string(), Trust::Plaintext, "token");
    let error = Asked::connect(&config).await.err().unwrap();
    assert!(
        matches!(error.code(), Some(Code::ConnectionLost | Code::PlaintextRefused | Code::ProtocolError)),
        "{error}"
    );
}

#[tokio::test]
async fn a_goodbye_instead_of_a_welcome_keeps_code_text_and_wait() {
    let goodbye = Some((Code::TokenExpired, 2500, "since yesterday"));
    let relay = Relay::start(Options { goodbye, ..Options::default() }).await;
    let error = Mediator::attach(&relay.config(), "cpe-1".parse().unwrap()).await.err().unwrap();
    let Error::Goodbye { code, text, retry_after, .. } = error else { panic!("{error}") };
    assert_eq!(
        (code, text.as_str(), retry_after),
        (Code::TokenExpired, "since yesterday", Duration::from_millis(2500))
    );
}

#[tokio::test]
async fn a_relay_that_is_not_there_is_an_io_error_with_its_address() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Asked::connect(&Config::new(&addr, Trust::Plaintext, "token")).await.err().unwrap();
    assert!(error.to_string().contains(&addr), "{error}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_relay_that_says_nothing_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config::new(listener.local_addr().unwrap().to_string(), Trust::Plaintext, "token");
    let error = Asked::connect(&config.handshake_timeout(Duration::from_millis(50))).await.err().unwrap();
    assert_eq!(error.code(), Some(Code::HandshakeTimeout), "{error}");
}

#[tokio::test]
async fn a_goodbye_ends_everything_with_its_code() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let mut stream = mediator.connect(([10, 0, 0, 5], ECHO).into()).await.unwrap();
    relay.commands.send(Command::Goodbye(Code::Draining)).unwrap();
    let error = mediator.closed().await;
    assert_eq!(error.code(), Some(Code::Draining));
    assert_eq!(error.retry_after(), Duration::from_millis(1500));
    let read = tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap_err();
    assert_eq!(read.kind(), std::io::ErrorKind::ConnectionAborted);
    let refused = mediator.connect(([10, 0, 0, 5], ECHO).into()).await.err().unwrap();
    assert_eq!(refused.code(), Some(Code::Draining));
}

#[tokio::test]
async fn a_cut_connection_fails_what_waits() {
    let relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let listener = mediator.listen(([10, 0, 0, 2], 0).into(), isthmus_terminal::Importance::Desired).await.unwrap();
    let accept = tokio::spawn(async move { listener.accept().await.err().unwrap() });
    relay.commands.send(Command::Cut).unwrap();
    assert!(matches!(accept.await.unwrap(), Error::Lost { .. }));
    assert!(mediator.closed().await.is_transient());
}

#[tokio::test]
async fn the_last_handle_ends_the_connection_and_a_socket_is_one() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    let stream = mediator.connect(([10, 0, 0, 5], ECHO).into()).await.unwrap();
    drop(mediator);
    let mut stream = stream;
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await.unwrap();
    assert_eq!(tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap(), b'x');
    drop(stream);
    relay.expect(Seen::Reset(Code::Reset)).await;
    relay.expect(Seen::Gone).await;
}

#[tokio::test]
async fn a_key_update_is_answered_and_the_stream_goes_on() {
    let mut relay = Relay::start(Options::default()).await;
    let mediator = relay.attach().await;
    for _ in 0..3 {
        relay.commands.send(Command::UpdateKeys).unwrap();
        relay.expect(Seen::KeysUpdated).await;
        mediator.info().await.unwrap();
    }
}

#[tokio::test]
async fn a_list_is_read_to_its_last_page() {
    let relay = Relay::start(Options::default()).await;
    let asked = Asked::connect(&relay.config()).await.unwrap();
    let names: Vec<_> = asked.list().await.unwrap().into_iter().map(|one| one.id.to_string()).collect();
    assert_eq!(names, ["cpe-0", "cpe-1", "cpe-2", "cpe-3", "cpe-4"]);
    assert_eq!(asked.version(), "test");
}

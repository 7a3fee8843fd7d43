//! A session lasts as long as its right: expiry, renewal, rotation, revocation, certificates, enrollment, and what the
//! mediator writes down of it. On the loopback interface, with the real programs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use isthmus_e2e::{Keys, Loopback, Process, SOON, program, word_after};
use isthmus_proto::Code;
use isthmus_proto::hello::{Hello, Role, SERVER_NAME, VERSION};
use isthmus_proto::record::{
    ClientHandshake, Identity, RECORD_HEADER, Session, Step, client_config_with_identity, parse_pin,
};
use isthmus_proto::wire::{ControlBuf, Frame};
use isthmus_terminal::{Config, Error, Importance, Mediator, Relay, Trust};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// `isthmus-relay` with these words and the state directory; what it prints.
#[track_caller]
fn relay_says(keys: &Keys, words: &[&str]) -> String {
    let state = keys.path().to_str().expect("a plain path");
    let output = Command::new(program("isthmus-relay")).args(words).args(["--state", state]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn trust(world: &Loopback) -> Trust {
    Trust::pin(world.keys.pin()).unwrap()
}

async fn attach(world: &Loopback, token: String) -> Result<Mediator, Error> {
    Mediator::attach(&Config::new(&*world.service, trust(world), token), "cpe".parse().unwrap()).await
}

/// A mediator of its own that reads its token from a file.
fn agent_with_file(world: &Loopback, id: &str, file: &Path) -> Process {
    let mut command = Command::new(program("isthmus-agent"));
    command.args(["--relay", &world.service, "--pin", world.keys.pin(), "--token-file"]).arg(file);
    Process::spawn(id, command)
}

fn files() -> TempDir {
    TempDir::new().expect("a temporary directory")
}

/// What a live stream through the mediator gets at the end.
async fn fate(stream: &mut isthmus_terminal::TcpStream) -> Option<Code> {
    stream.write_all(b"x").await.unwrap();
    let mut buffer = [0; 8];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).and_then(Error::code);
                return inner.or(Some(Code::Reset));
            }
        }
    }
}

fn silent_host() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

#[tokio::test]
async fn terminals_live_session_ends_with_its_token() {
    let world = Loopback::start(&[], &[]);
    let (_host, addr) = silent_host();
    let mediator = attach(&world, world.keys.terminal_token("*", &["--ttl", "3s"])).await.unwrap();
    let mut stream = mediator.connect(addr).await.unwrap();
    let code = tokio::time::timeout(SOON, fate(&mut stream)).await.expect("the end of the session");
    assert_eq!(code, Some(Code::TokenExpired));
    world.relay.wait_for_line("terminal left .. reason=token-expired", SOON);
    // The mediator's own, longer right is not concerned.
    assert!(attach(&world, world.keys.terminal_token("*", &[])).await.is_ok());
    assert!(!world.agent.said_after(0, "tunnel down"));
}

#[test]
fn mediators_tunnel_ends_with_its_token_unless_a_newer_one_is_shown() {
    let world = Loopback::start(&[], &[]);
    let dir = files();
    let (old, renewed) = (dir.path().join("old"), dir.path().join("renewed"));
    for (file, id) in [(&old, "ends"), (&renewed, "stays")] {
        std::fs::write(file, world.keys.mediator_token(id, &["--ttl", "4s"])).unwrap();
    }
    let (ends, stays) = (agent_with_file(&world, "ends", &old), agent_with_file(&world, "stays", &renewed));
    stays.wait_for_line("tunnel up", SOON);
    ends.wait_for_line("tunnel up", SOON);
    // A newer token for somebody else is no renewal.
    std::fs::write(&old, world.keys.mediator_token("other", &[])).unwrap();
    std::fs::write(&renewed, world.keys.mediator_token("stays", &[])).unwrap();
    stays.wait_for_line("newer token", SOON);
    ends.wait_for_line("tunnel down .. reason=token-expired", SOON);
    // Its file names another mediator by now, which is let in as that one.
    world.relay.wait_for_line("tunnel attached .. mediator=other", SOON);
    assert!(!stays.said_after(0, "tunnel down"));
}

#[test]
fn rotation_drops_nobody_and_retirement_ends_what_the_old_key_signed() {
    let world = Loopback::start(&[], &[]);
    let before = relay_says(&world.keys, &["token", "keys"]);
    let old = before.split_whitespace().next().unwrap();
    let new = relay_says(&world.keys, &["token", "rotate"]);
    let keys = relay_says(&world.keys, &["token", "keys"]);
    assert_eq!(keys, format!("{new} signs\n{old} verifies"));
    let other = Loopback::start_agent(&world.keys, &world.service, "other", &[]);
    assert!(!world.agent.said_after(0, "tunnel down"));
    relay_says(&world.keys, &["token", "retire", old]);
    world.agent.wait_for_line("tunnel down .. reason=revoked", SOON);
    world.agent.wait_for_line("tunnel down .. reason=bad-token", SOON);
    assert!(!other.said_after(0, "tunnel down"));
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_ends_live_sessions_and_what_is_issued_later_is_good() {
    let world = Loopback::start(&[], &[]);
    let other = Loopback::start_agent(&world.keys, &world.service, "other", &[]);
    let (_host, addr) = silent_host();
    let token = world.keys.terminal_token("*", &[]);
    let mediator = attach(&world, token.clone()).await.unwrap();
    let mut stream = mediator.connect(addr).await.unwrap();
    let revoke = async {
        // The whole token stands for its identifier.
        tokio::task::block_in_place(|| relay_says(&world.keys, &["token", "revoke", &token]));
    };
    let (code, ()) = tokio::join!(fate(&mut stream), revoke);
    assert_eq!(code, Some(Code::Revoked));
    assert_eq!(attach(&world, token).await.err().and_then(|error| error.code()), Some(Code::Revoked));

    let mut ctl = Command::new(program("isthmus-relay"));
    ctl.args(["ctl", "--state"]).arg(world.keys.path()).args(["revoke", "mediator", "cpe"]);
    let said = String::from_utf8(ctl.output().unwrap().stdout).unwrap();
    assert!(said.contains("mediator cpe revoked") && said.contains("1 sessions ended"), "{said}");
    world.agent.wait_for_line("tunnel down .. reason=revoked", SOON);
    assert!(!other.said_after(0, "tunnel down"));
    // Whole seconds decide what was issued later.
    isthmus_e2e::silence(Duration::from_millis(1100));
    let _again = Loopback::start_agent(&world.keys, &world.service, "cpe", &[]);
    assert_eq!(relay_says(&world.keys, &["token", "revoked"]).lines().count(), 2);
}

#[test]
fn damaged_revocation_list_changes_nothing_and_says_so() {
    let world = Loopback::start(&[], &[]);
    std::fs::write(world.keys.path().join("revoked"), "half a li").unwrap();
    let mut ctl = Command::new(program("isthmus-relay"));
    ctl.args(["ctl", "--state"]).arg(world.keys.path()).args(["reload", "trust"]);
    let output = ctl.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && said.contains("nothing is changed") && said.contains("line 1"), "{said}");
    assert!(!world.agent.said_after(0, "tunnel down"));
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let dir = files();
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Certificate and key, as files.
    fn issue(&self, name: &str, uris: &[&str]) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert, secret) = (self.dir.path().join(format!("{name}.pem")), self.dir.path().join(format!("{name}.key")));
        std::fs::write(&cert, certificate.pem()).unwrap();
        std::fs::write(&secret, key.serialize_pem()).unwrap();
        (cert, secret)
    }
}

fn agent_with_certificate(world: &Loopback, (cert, key): &(PathBuf, PathBuf)) -> Process {
    let mut command = Command::new(program("isthmus-agent"));
    command.args(["--relay", &world.service, "--pin", world.keys.pin(), "--log", "debug", "--allow", "127.0.0.0/8"]);
    command.arg("--cert").arg(cert).arg("--key").arg(key);
    Process::spawn("certified", command)
}

#[tokio::test]
async fn certificates_stand_in_for_tokens_on_both_sides() {
    let authority = Authority::new();
    let ca = authority.file();
    let world = Loopback::start(&["--client-ca", ca.to_str().unwrap(), "--log", "debug"], &[]);
    // Who has a token and no certificate is in already. Who has a certificate needs no token.
    let agent = agent_with_certificate(&world, &authority.issue("m", &["isthmus:mediator:certified"]));
    agent.wait_for_line("tunnel up", SOON);
    world.relay.wait_for_line("tunnel attached .. mediator=certified", SOON);

    let rights = ["isthmus:terminal:desk", "isthmus:mediators:cert*", "isthmus:allow:open,connect"];
    let (cert, key) = authority.issue("t", &rights);
    let config = Config::new(&*world.service, trust(&world), "").certificate(&cert, &key).unwrap();
    let mediator = Mediator::attach(&config, "certified".parse().unwrap()).await.unwrap();
    let (_host, addr) = silent_host();
    assert!(mediator.connect(addr).await.is_ok());
    let other = Mediator::attach(&config, "cpe".parse().unwrap()).await;
    assert_eq!(other.err().and_then(|error| error.code()), Some(Code::TokenMismatch));
    // Its rights have no "list".
    let relay = Relay::connect(&config).await.unwrap();
    assert!(relay.list().await.is_err());

    // Another authority's certificate gets nowhere.
    let other_authority = Authority::new();
    let stranger = agent_with_certificate(&world, &other_authority.issue("m", &["isthmus:mediator:certified"]));
    world.relay.wait_for_line("certificate is refused", SOON);
    assert!(!stranger.said_after(0, "tunnel up"));

    relay_says(&world.keys, &["token", "revoke", "--mediator", "certified"]);
    agent.wait_for_line("tunnel down .. reason=revoked", SOON);
}

/// A caller that has shown its certificate and has not said yet what it wants.
fn shake_hands(world: &Loopback, (cert, key): &(PathBuf, PathBuf)) -> (TcpStream, Session) {
    let identity = Identity {
        chain: vec![CertificateDer::from_pem_file(cert).unwrap()],
        key: PrivateKeyDer::from_pem_file(key).unwrap(),
    };
    let pin = isthmus_proto::record::Trust::Pin(parse_pin(world.keys.pin()).unwrap());
    let config = client_config_with_identity(pin, Some(identity)).unwrap();
    let mut handshake = ClientHandshake::new(config, SERVER_NAME.try_into().unwrap()).unwrap();
    let mut stream = TcpStream::connect(&world.service).unwrap();
    let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let mut output = Vec::new();
        let step = handshake.feed(&mut input, &mut output).unwrap();
        stream.write_all(&output).unwrap();
        if step == Step::Done {
            return (stream, handshake.into_session().unwrap().session);
        }
        let length = stream.read(&mut buffer).unwrap();
        input.extend_from_slice(&buffer[..length]);
    }
}

/// Sends the hello of a mediator that has no token.
fn greet(stream: &mut TcpStream, session: &mut Session, id: &str) {
    let role = Role::Mediator { id: id.parse().unwrap(), report: Box::default() };
    let hello = Hello { token: String::new(), role, udp_channels: 0, instance: 0 };
    let mut frames = ControlBuf::new();
    frames.push(&Frame::Hello { version: VERSION, json: &serde_json::to_vec(&hello).unwrap() });
    let mut record = vec![0; RECORD_HEADER];
    record.extend_from_slice(frames.take(usize::MAX));
    record.resize(record.len() + session.tail(), 0);
    session.seal(&mut record).unwrap();
    stream.write_all(&record).unwrap();
}

#[test]
fn authority_that_is_gone_lets_nobody_in_whose_handshake_began_before() {
    let authority = Authority::new();
    let ca = authority.file();
    let world = Loopback::start(&["--client-ca", ca.to_str().unwrap()], &[]);
    // Many names, so that the owner is the shard that accepted, or another one.
    let mut callers: Vec<_> = (0..8)
        .map(|n| format!("late-{n}"))
        .map(|id| (shake_hands(&world, &authority.issue(&id, &[&format!("isthmus:mediator:{id}")])), id))
        .collect();
    let ((stream, session), id) = &mut callers[0];
    greet(stream, session, id);
    world.relay.wait_for_line("tunnel attached .. mediator=late-0", SOON);

    std::fs::copy(Authority::new().file(), &ca).unwrap();
    let mut ctl = Command::new(program("isthmus-relay"));
    ctl.args(["ctl", "--state"]).arg(world.keys.path()).args(["reload", "trust"]);
    assert!(ctl.output().unwrap().status.success());
    world.relay.wait_for_line("session cut .. name=late-0 reason=revoked", SOON);
    for ((stream, session), id) in &mut callers[1..] {
        let mark = world.relay.mark();
        greet(stream, session, id);
        let line = world.relay.wait_for_any_after(mark, &["caller refused", "tunnel attached"], SOON);
        assert!(line.contains("caller refused") && line.contains("revoked"), "{line}");
    }
    assert!(!world.agent.said_after(0, "tunnel down"));
}

#[test]
fn enrollment_line_sets_a_mediator_up() {
    let world = Loopback::start(&[], &[]);
    let dir = files();
    let target = dir.path().join("isthmus");
    let line = relay_says(
        &world.keys,
        &["enroll", "shop-7", "--address", &world.service, "--allow", "127.0.0.1:1-9999", "--ttl", "1h"],
    );
    let enroll = |line: &str| {
        let mut command = Command::new(program("isthmus-agent"));
        command.args(["enroll", line, "--dir"]).arg(&target).output().unwrap()
    };
    let damaged = enroll(&line[..line.len() - 1]);
    assert!(!damaged.status.success() && String::from_utf8_lossy(&damaged.stderr).contains("damaged"));
    let output = enroll(&line);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("shop-7"), "{said}");
    let again = enroll(&line);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--force"));

    let mut command = Command::new(program("isthmus-agent"));
    command.arg("--config").arg(target.join("agent.toml"));
    let agent = Process::spawn("enrolled", command);
    agent.wait_for_line("tunnel up", SOON);
    world.relay.wait_for_line("tunnel attached .. mediator=shop-7", SOON);
}

#[test]
fn stopped_mediator_says_goodbye() {
    let mut world = Loopback::start(&[], &[]);
    world.agent.terminate();
    assert!(world.agent.wait_exit(SOON).success());
    world.relay.wait_for_line("tunnel ended .. reason=peer-closed", SOON);
}

#[test]
fn two_mediators_with_one_token_are_noticed_and_slowed_down() {
    let world = Loopback::start(&[], &["--udp-channels", "0"]);
    let second = Loopback::start_agent(&world.keys, &world.service, "cpe", &["--udp-channels", "0"]);
    // The first one comes back once its wait is over, and the second one is told to wait.
    let said = "two mediators with one token";
    let line = world.relay.wait_for_line(said, SOON + Duration::from_secs(20));
    assert_eq!(word_after(&line, "rounds="), "1");
    second.wait_for_line("tunnel down: another mediator uses the same token", SOON);
    assert!(!world.agent.said_after(0, "another mediator uses the same token"));
}

/// Lines of an audit that is being written, once there are `count` that fit.
#[track_caller]
fn audited(path: &Path, count: usize, fits: impl Fn(&serde_json::Value) -> bool) -> Vec<serde_json::Value> {
    let deadline = Instant::now() + SOON;
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines: Vec<serde_json::Value> =
            whole.lines().map(|line| serde_json::from_str(line).unwrap()).filter(|line| fits(line)).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(Instant::now() < deadline, "{count} lines never came: {text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn audit_tells_every_operation_with_who_asked() {
    let dir = files();
    let path = dir.path().join("audit.jsonl");
    let (host, addr) = silent_host();
    let publish = format!("tcp:127.0.0.1:0=cpe/{addr}");
    let world = Loopback::start(&["--publish", &publish], &["--audit", path.to_str().unwrap()]);
    let line = world.relay.wait_for_line("published", SOON);
    let published: SocketAddr = word_after(&line, "tcp:").split('=').next().unwrap().parse().unwrap();
    let mut visitor = TcpStream::connect(published).unwrap();
    visitor.write_all(b"hello").unwrap();
    let (mut accepted, _) = host.accept().unwrap();
    accepted.read_exact(&mut [0; 5]).unwrap();
    let by_visitor = audited(&path, 1, |line| line["op"] == "connect");
    assert_eq!(by_visitor[0]["asker"], format!("published tcp:{published}"));
    assert_eq!((&by_visitor[0]["to"], &by_visitor[0]["result"]), (&addr.to_string().into(), &"ok".into()));
    assert_eq!(by_visitor[0]["mediator"], "cpe");

    let mediator = attach(&world, world.keys.terminal_token("*", &[])).await.unwrap();
    let _stream = mediator.connect(addr).await.unwrap();
    assert!(mediator.connect("192.0.2.1:9".parse().unwrap()).await.is_err());
    let of_terminal = |line: &serde_json::Value| line["asker"] == "terminal e2e" && line["op"] == "connect";
    let by_terminal = audited(&path, 2, of_terminal);
    assert_eq!((&by_terminal[0]["result"], &by_terminal[1]["result"]), (&"ok".into(), &"denied".into()));
    let _by_name = mediator.connect_name("127.0.0.1", addr.port()).await.unwrap();
    assert!(mediator.connect_name("none.invalid", 80).await.is_err());
    let by_name = audited(&path, 2, |line| of_terminal(line) && line["name"].is_string());
    assert_eq!((&by_name[0]["name"], &by_name[0]["to"]), (&"127.0.0.1".into(), &addr.to_string().into()));
    assert_eq!((&by_name[0]["result"], &by_name[1]["name"]), (&"ok".into(), &"none.invalid".into()));
    // Where there is no name server at all, that is the answer.
    assert!(by_name[1]["result"].as_str().is_some_and(|result| result.starts_with("name-")), "{by_name:?}");
    let listener = mediator.listen("127.0.0.1:0".parse().unwrap(), Importance::Desired).await.unwrap();
    let _host = TcpStream::connect(listener.local_addr()).unwrap();
    listener.accept().await.unwrap();
    let accepted = audited(&path, 1, |line| line["op"] == "accept");
    assert_eq!(accepted[0]["asker"], "terminal e2e");

    // A file that was moved away is made again on SIGHUP.
    let moved = dir.path().join("audit.1");
    std::fs::rename(&path, &moved).unwrap();
    world.agent.signal(Signal::HUP);
    let _more = mediator.connect(addr).await.unwrap();
    let deadline = Instant::now() + SOON;
    while !path.exists() {
        assert!(Instant::now() < deadline, "the file was not made again");
        std::thread::sleep(Duration::from_millis(20));
    }
    audited(&moved, 1, |line| line["op"] == "accept");
    assert!(!world.agent.said_after(0, "tunnel down"));
}

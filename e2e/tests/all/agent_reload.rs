//! SIGHUP of a mediator that was set up by an enrollment line: its configuration file is read again, and what its owner
//! does not allow any more is cut, with the tunnel up. On the loopback interface, with the real programs.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use isthmus_e2e::{Loopback, Process, SOON, program};
use isthmus_proto::Code;
use isthmus_terminal::{Config, Error, Importance, Mediator, Trust};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

/// A relay, and the mediator `shop-7` that runs by its configuration file alone.
struct World {
    l: Loopback,
    agent: Process,
    dir: TempDir,
    /// What the enrollment wrote.
    enrolled: String,
}

fn world() -> World {
    let l = Loopback::start(&[], &[]);
    let dir = TempDir::new().expect("a temporary directory");
    let mut enroll = Command::new(program("isthmus-relay"));
    enroll.args(["enroll", "shop-7", "--address", &l.service, "--allow", "127.0.0.0/8", "--state"]).arg(l.keys.path());
    let line = String::from_utf8(enroll.output().unwrap().stdout).unwrap();
    let mut enroll = Command::new(program("isthmus-agent"));
    assert!(enroll.args(["enroll", line.trim(), "--dir"]).arg(dir.path()).output().unwrap().status.success());
    let enrolled = std::fs::read_to_string(dir.path().join("agent.toml")).unwrap();
    let mut run = Command::new(program("isthmus-agent"));
    run.arg("--config").arg(dir.path().join("agent.toml"));
    let agent = Process::spawn("shop-7", run);
    agent.wait_for_line("tunnel up", SOON);
    World { l, agent, dir, enrolled }
}

impl World {
    fn audit(&self) -> PathBuf {
        self.dir.path().join("audit.jsonl")
    }

    /// The file with another allow-list and further lines, and SIGHUP.
    fn change(&self, allow: &str, more: &str) -> usize {
        let kept: String =
            self.enrolled.lines().filter(|line| !line.starts_with("allow")).map(|l| format!("{l}\n")).collect();
        let text = format!("{kept}allow = [\"{allow}\"]\naudit = \"{}\"\n{more}\n", self.audit().display());
        std::fs::write(self.dir.path().join("agent.toml"), text).unwrap();
        let mark = self.agent.mark();
        self.agent.signal(Signal::HUP);
        mark
    }

    async fn attach(&self) -> Mediator {
        let trust = Trust::pin(self.l.keys.pin()).unwrap();
        let config = Config::new(&*self.l.service, trust, self.l.keys.terminal_token("*", &[]));
        Mediator::attach(&config, "shop-7".parse().unwrap()).await.unwrap()
    }
}

fn host(ip: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn code(error: &std::io::Error) -> Option<Code> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).and_then(Error::code)
}

/// Waits until `there` is.
#[track_caller]
fn soon(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !there() {
        assert!(Instant::now() < deadline, "{what} never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn audited(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn narrower_allow_list_cuts_what_is_outside_and_keeps_the_rest() {
    let w = world();
    let ((_one, out), (_two, within)) = (host("127.0.0.1"), host("127.0.0.2"));
    let mediator = w.attach().await;
    let mut cut = mediator.connect(out).await.unwrap();
    let mut kept = mediator.connect(within).await.unwrap();
    let server = mediator.listen("127.0.0.1:0".parse().unwrap(), Importance::Desired).await.unwrap();
    let (server, bound) = (server.local_addr(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let redirected = mediator.udp_bind("127.0.0.1:0".parse().unwrap(), Importance::Desired).await.unwrap();
    redirected.send_to(b"x", bound.local_addr().unwrap()).await.unwrap();
    bound.set_read_timeout(Some(SOON)).unwrap();
    let (_, from) = bound.recv_from(&mut [0; 8]).unwrap();

    let mark = w.change("127.0.0.2/32", "log = \"debug\"\noffer = [\"shop.test=127.0.0.2:80\"]");
    let error = tokio::time::timeout(SOON, cut.read(&mut [0])).await.expect("the end of the stream").unwrap_err();
    assert!(matches!(code(&error), Some(Code::Denied | Code::Reset)) || error.kind() == ErrorKind::ConnectionReset);
    w.agent.wait_for_line_after(mark, "settings reloaded", SOON);
    soon("the end of the server", || TcpStream::connect(server).is_err());
    bound.connect(from).unwrap();
    // The system says that nobody is there any more.
    soon("the end of the UDP port", || bound.send(b"x").is_err());
    soon("the cuts in the audit", || {
        let cuts = audited(&w.audit()).into_iter().filter(|line| line["op"] == "cut");
        let cuts: Vec<_> = cuts.map(|line| (line["to"].clone(), line["local"].clone())).collect();
        let tells = |to: &str| cuts.iter().any(|(a, b)| a == to || b == to);
        tells(&out.to_string()) && tells(&server.to_string()) && tells(&from.to_string())
    });

    // The rest goes on: the stream within, the tunnel, and what is asked for from now on under the new list.
    assert!(tokio::time::timeout(Duration::from_millis(100), kept.read(&mut [0])).await.is_err());
    assert_eq!(mediator.connect(out).await.err().and_then(|error| error.code()), Some(Code::Denied));
    assert!(mediator.connect(within).await.is_ok());
    let report = mediator.info().await.unwrap().report;
    assert_eq!(report.policy, ["127.0.0.2/32".parse().unwrap()]);
    assert_eq!(report.offers.len(), 1);
    // Operations are debug lines.
    w.agent.wait_for_line_after(mark, "DEBUG", SOON);
    assert!(!w.agent.said_after(0, "tunnel down"));
}

#[tokio::test(flavor = "multi_thread")]
async fn narrower_allow_list_ends_a_connect_that_is_under_way() {
    let w = world();
    let (slow, out) = host("127.0.0.1");
    // Its queue has room for one, and nobody takes that one from it.
    rustix::net::listen(&slow, 0).unwrap();
    let mediator = w.attach().await;
    let _first = mediator.connect(out).await.unwrap();
    let connect = tokio::spawn(async move { mediator.connect(out).await.err().and_then(|error| error.code()) });
    soon("the second connect", || {
        let sent = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let to = format!("0100007F:{:04X} 02", out.port());
        sent.lines().any(|line| line.contains(&to))
    });
    w.change("127.0.0.2/32", "");
    assert_eq!(tokio::time::timeout(SOON, connect).await.unwrap().unwrap(), Some(Code::Denied));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_used_change_nothing() {
    let w = world();
    let (_host, addr) = host("127.0.0.1");
    let mediator = w.attach().await;
    let _stream = mediator.connect(addr).await.unwrap();
    for (more, part) in
        [("alow = []", "alow"), ("log = \"loud\"", "loud"), ("busy-poll = \"50us\"", "--busy-poll cannot be changed")]
    {
        let mark = w.change("127.0.0.2/32", more);
        let line = w.agent.wait_for_line_after(mark, "nothing is changed", SOON);
        assert!(line.contains(part), "{line}");
    }
    assert!(mediator.connect(addr).await.is_ok());
    assert!(!w.audit().exists());
    let mark = w.change("127.0.0.1/32", "");
    w.agent.wait_for_line_after(mark, "settings reloaded", SOON);
    assert!(mediator.connect(addr).await.is_ok());
    assert!(!w.agent.said_after(0, "tunnel down"));
}

//! A management plane with shards that only answer commands, and clients of its socket.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use isthmus_proto::hello::Report;
use isthmus_proto::{MediatorId, ShardId};
use isthmus_relay::admin::command::COMMANDS_MAX;
use isthmus_relay::admin::{
    Admin, Command, ExposeRow, ExposeState, FlowPage, Level, Limits, PortRow, PublishRow, RelayInfo, ShardCounters,
    ShardHandle, ShardState, StatsSocket, Stop, TerminalRow, TunnelDetail, TunnelRow, Unpublish, Unpublished, serve,
};
use isthmus_relay::config::{self, Invocation};
use isthmus_relay::expose::Expose;
use isthmus_relay::http::HttpSocket;
use isthmus_relay::names::Names;
use isthmus_relay::publish::{Bound, Kept, Origin, Publish};
use isthmus_relay::report::PackedReport;
use isthmus_relay::trust::Fingerprint;
use isthmus_ring::Socket;
use isthmus_service::Notifier;
use tokio::sync::oneshot;

/// No wait of a test is longer: what should happen has then not happened.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A row as a shard would make it.
pub(crate) fn row(id: &str, shard: ShardId) -> TunnelRow {
    TunnelRow {
        id: id.parse().unwrap(),
        session: 7,
        shard,
        observed: "192.0.2.1:5555".parse().unwrap(),
        age_s: 60,
        idle_s: 1,
        ports: 2,
        terminals: 1,
        udp_channels: 2,
        udp_channels_live: 1,
        udp_period_s: 8,
        rtt_us: Some(1500),
        bps: None,
        bytes_in: 10,
        bytes_out: 20,
        datagrams_in: 1,
        datagrams_out: 2,
        oversize: 0,
        report: PackedReport::from(&Report { hostname: "box".into(), service: "lend me".into(), ..Report::default() }),
    }
}

/// A published port as a shard would tell it.
fn publish_row(publish: Publish, asked: SocketAddr, origin: Origin, shard: ShardId) -> PublishRow {
    let (visitors_live, visitors_total, flows_live, flows_total) = (1, 2, 0, 0);
    let (leaving, connected) = (false, shard.0 == 0);
    PublishRow {
        publish,
        shard,
        asked,
        origin,
        leaving,
        connected,
        visitors_live,
        visitors_total,
        flows_live,
        flows_total,
    }
}

/// An exposed service as a shard would tell it.
fn expose_row(expose: Expose, origin: Origin, shard: ShardId) -> ExposeRow {
    ExposeRow {
        expose,
        shard,
        origin,
        state: ExposeState::Away,
        bound: None,
        reason: None,
        cure: None,
        retry_s: None,
        connections_live: 0,
        connections_total: 0,
        connections_failed: 0,
    }
}

/// A shard that answers commands from a table of its own, until it is told to stop.
pub(crate) fn fake_shard(me: ShardId, mut rows: Vec<TunnelRow>, commands: Receiver<Command>) -> JoinHandle<()> {
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    let publish: Publish = format!("tcp:127.0.0.1:{}=cpe-1/10.0.0.5:80", 8000 + u16::from(me.0)).parse().unwrap();
    let mut served = vec![(publish_row(publish.clone(), publish.listen, Origin::Config, me), None)];
    let mut names: Arc<Names> = Arc::default();
    let mut exposed: Vec<ExposeRow> = Vec::new();
    let answer = move || {
        while let Ok(command) = commands.recv() {
            match command {
                Command::Tunnels { filter, reply } => {
                    let page = rows.iter().filter(|row| filter.passes(&row.id)).take(filter.limit);
                    let _ = reply.send(page.cloned().collect());
                }
                Command::Kill { mediator, reply } => {
                    let before = rows.len();
                    rows.retain(|row| row.id != mediator);
                    let _ = reply.send(rows.len() < before);
                }
                Command::Names { reply } => {
                    let _ = reply.send(names.clone());
                }
                Command::SetNames(other) => names = other,
                Command::Exposes { reply } => {
                    let _ = reply.send(exposed.clone());
                }
                Command::Expose { services, reply } => {
                    for (expose, origin) in services {
                        exposed.retain(|row| row.expose.server != expose.server);
                        exposed.push(expose_row(expose, origin, me));
                    }
                    let _ = reply.send(Ok(()));
                }
                Command::Unexpose { servers, reply, .. } => {
                    let is = |row: &ExposeRow| servers.contains(&row.expose.server);
                    let (gone, stay) = exposed.into_iter().partition(is);
                    exposed = stay;
                    let _ = reply.send(gone);
                }
                Command::Asks { reply } => {
                    let _ = reply.send((Vec::new(), false));
                }
                Command::Outcomes(_) => {}
                Command::Check { reply, .. } => {
                    let _ = reply.send(Some(0));
                }
                Command::Publishes { reply } => {
                    let _ = reply.send(served.iter().map(|(row, _)| row.clone()).collect());
                }
                Command::Publish { ports, reply } => {
                    let row = |bound: &Bound| publish_row(bound.publish.clone(), bound.asked, bound.origin, me);
                    served.extend(ports.into_iter().map(|bound| (row(&bound), Some(bound.socket))));
                    let _ = reply.send(Ok(()));
                }
                Command::Reload { shared, reply } => {
                    names = shared.names.clone();
                    let _ = reply.send(());
                }
                Command::Unpublish { ports, how, reply } => {
                    let is = |row: &PublishRow| ports.contains(&(row.publish.proto, row.publish.listen));
                    let (gone, stay) = served.into_iter().partition(|(row, _)| is(row));
                    served = stay;
                    let hand_out = how == Unpublish::HandOut;
                    let gone: Vec<(PublishRow, Option<Socket>)> = gone;
                    let unpublished = gone.into_iter().map(|(row, socket)| Unpublished {
                        asked: row.asked,
                        row,
                        socket: socket.filter(|_| hand_out),
                    });
                    let _ = reply.send(unpublished.collect());
                }
                Command::Trust { reply, .. } => {
                    let _ = reply.send(0);
                }
                Command::Drain { reply, .. } => {
                    let _ = reply.send(rows.len());
                }
                Command::State { reply } => {
                    let state = ShardState {
                        shard: me,
                        cpu_us: 1,
                        links: 0,
                        streams: 0,
                        flows: 0,
                        queued_bytes: 0,
                        queued_bytes_max: 1,
                        operations: 1,
                        direct_descriptors: 0,
                        pools: Vec::new(),
                    };
                    let _ = reply.send(state);
                }
                Command::Flows { reply, .. } => {
                    let _ = reply.send(FlowPage::default());
                }
                Command::Undrain { reply } => {
                    let _ = reply.send(false);
                }
                Command::Detail { mediator, reply } => {
                    let row = rows.iter().find(|row| row.id == mediator).cloned();
                    let detail = row.map(|tunnel| TunnelDetail {
                        terminals: vec![TerminalRow { name: "desk".into(), observed: Some(tunnel.observed) }],
                        ports: vec![PortRow { id: 7, kind: "tcp".into(), of: "visitor".into() }],
                        ports_more: false,
                        tunnel,
                    });
                    let _ = reply.send(detail.map(Box::new));
                }
                Command::Turn { reply } => {
                    let _ = reply.send(());
                }
                Command::Stop => break,
            }
        }
    };
    thread::spawn(answer)
}

/// Fake shards that share `rows` as real ones would.
fn fake_shards(count: usize, rows: Vec<TunnelRow>) -> (Vec<ShardHandle>, Vec<JoinHandle<()>>) {
    let mut handles = Vec::new();
    let mut fakes = Vec::new();
    for n in 0..count {
        let me = ShardId(u8::try_from(n).unwrap());
        let (sender, commands) = crossbeam_channel::bounded(COMMANDS_MAX);
        let mine = rows.iter().filter(|row| row.id.shard(count) == me).cloned();
        fakes.push(fake_shard(me, mine.map(|row| TunnelRow { shard: me, ..row }).collect(), commands));
        handles.push(ShardHandle { commands: sender, wake: Arc::new(|| {}), counters: Arc::default() });
    }
    (handles, fakes)
}

/// A running management plane.
pub(crate) struct Plane {
    pub(crate) path: PathBuf,
    pub(crate) counters: Vec<Arc<ShardCounters>>,
    shards: Vec<Sender<Command>>,
    fakes: Vec<JoinHandle<()>>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<anyhow::Result<Stop>>,
    dir: tempfile::TempDir,
}

impl Plane {
    /// One with `count` fake shards that share `rows` as real ones would.
    pub(crate) fn start(count: usize, rows: Vec<TunnelRow>, limits: Limits) -> Self {
        Self::start_flags(count, rows, limits, &[])
    }

    /// The same with flags of the relay.
    pub(crate) fn start_flags(count: usize, rows: Vec<TunnelRow>, limits: Limits, flags: &[&str]) -> Self {
        let (handles, fakes) = fake_shards(count, rows);
        Self::start_configured(handles, fakes, limits, flags)
    }

    /// One with these shards.
    pub(crate) fn start_with(shards: Vec<ShardHandle>, fakes: Vec<JoinHandle<()>>, limits: Limits) -> Self {
        Self::start_configured(shards, fakes, limits, &[])
    }

    /// One with these shards and these flags of the relay.
    pub(crate) fn start_configured(
        shards: Vec<ShardHandle>,
        fakes: Vec<JoinHandle<()>>,
        limits: Limits,
        flags: &[&str],
    ) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), shards, fakes, limits, flags, Notifier::default())
    }

    /// One with two fake shards, and these besides, that a service manager looks after.
    pub(crate) fn start_managed(manager: Notifier, others: Vec<ShardHandle>) -> Self {
        let (mut handles, fakes) = fake_shards(2, Vec::new());
        handles.extend(others);
        Self::start_in(tempfile::tempdir().unwrap(), handles, fakes, Limits::default(), &[], manager)
    }

    /// One with fake shards in a directory that was another one's.
    pub(crate) fn restart(count: usize, dir: tempfile::TempDir, flags: &[&str]) -> Self {
        let (handles, fakes) = fake_shards(count, Vec::new());
        Self::start_in(dir, handles, fakes, Limits::default(), flags, Notifier::default())
    }

    fn start_in(
        dir: tempfile::TempDir,
        shards: Vec<ShardHandle>,
        fakes: Vec<JoinHandle<()>>,
        limits: Limits,
        flags: &[&str],
        manager: Notifier,
    ) -> Self {
        let path = dir.path().join("stats.sock");
        let level = |name: &str, level| (StatsSocket::bind(&dir.path().join(name)).unwrap(), level);
        let sockets = vec![
            level("stats.sock", Level::Admin),
            level("operator.sock", Level::Operator),
            level("user.sock", Level::User),
        ];
        let (stop, stopped) = oneshot::channel();
        let info = RelayInfo {
            listen: "127.0.0.1:4470".parse().unwrap(),
            fingerprint: Fingerprint([0xab; 32]),
            plaintext: false,
            started: Instant::now(),
        };
        let counters = shards.iter().map(|shard| shard.counters.clone()).collect();
        let senders = shards.iter().map(|shard| shard.commands.clone()).collect();
        let state = dir.path().to_str().unwrap();
        let words = ["isthmus-relay", "--state", state].into_iter().chain(flags.iter().copied());
        let Ok(Invocation::Run(config)) = config::parse(words) else { panic!("bad flags: {flags:?}") };
        let kept = Kept::load(dir.path()).unwrap();
        let http = config.http.map(|listen| HttpSocket::bind(listen, config.http_token_file.as_deref()).unwrap());
        let (recorder, inbox) = isthmus_relay::journal::queue();
        let admin = Admin {
            sockets,
            http,
            shards,
            info,
            limits,
            trust: None,
            config: *config,
            kept,
            asking: Default::default(),
            journal: isthmus_relay::journal::Journal::new(inbox),
            recorder,
            records: None,
            manager,
        };
        let thread = thread::spawn(move || serve(admin, stopped));
        Self { path, counters, shards: senders, fakes, stop, thread, dir }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path)
    }

    /// At the socket of another level.
    pub(crate) fn client_at(&self, name: &str) -> Client {
        Client::connect(&self.dir.path().join(name))
    }

    /// Stops plane and shards; how the plane ended.
    pub(crate) fn stop(self) -> Stop {
        self.stop_with().0
    }

    /// The same; the directory stays.
    pub(crate) fn stop_and_keep(self) -> tempfile::TempDir {
        self.stop_with().1
    }

    fn stop_with(self) -> (Stop, tempfile::TempDir) {
        for shard in &self.shards {
            // One that is full or gone in its test has no thread to end.
            let _ = shard.try_send(Command::Stop);
        }
        let _ = self.stop.send(());
        for fake in self.fakes {
            fake.join().unwrap();
        }
        (self.thread.join().unwrap().unwrap(), self.dir)
    }
}

/// An operator's connection.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pending: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, pending: Vec::new() }
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// The next answer without its blank line; `None` at the end.
    pub(crate) fn answer(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
                let rest = self.pending.split_off(at + 2);
                let mut answer = std::mem::replace(&mut self.pending, rest);
                answer.truncate(at);
                return Some(String::from_utf8(answer).unwrap());
            }
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    assert!(self.pending.is_empty(), "half an answer: {:?}", String::from_utf8_lossy(&self.pending));
                    return None;
                }
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                // What was sent after the last command that was read is lost; that too is the end.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.send(&format!("{command}\n"));
        self.answer().expect("an answer")
    }

    pub(crate) fn ask_json(&mut self, command: &str) -> serde_json::Value {
        let answer = self.ask(command);
        assert_eq!(answer.lines().count(), 1, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }

    /// One figure of `show info`.
    pub(crate) fn figure(&mut self, name: &str) -> u64 {
        self.ask_json("show info json")[name].as_u64().unwrap_or_else(|| panic!("no {name}"))
    }

    /// Asks until a figure of `show info` has reached `want`.
    pub(crate) fn await_figure(&mut self, name: &str, want: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.figure(name) < want {
            assert!(Instant::now() < deadline, "{name} never reached {want}");
        }
    }
}

/// Names `cpe-000` and on.
pub(crate) fn names(count: usize) -> Vec<MediatorId> {
    (0..count).map(|n| format!("cpe-{n:03}").parse().unwrap()).collect()
}

//! The management thread: takes connections and signals until it is told to stop.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use isthmus_service::Notifier;
use slab::Slab;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_uring::net::UnixStream;

use super::asking::{self, Asked};
use super::command::{Command, ShardHandle};
use super::level::Level;
use super::listener::StatsSocket;
use super::publishing::{self, KeptLock};
use super::{manager, pages, reload, session};
use crate::config::Config;
use crate::http::{self, HttpSocket};
use crate::journal::{Journal, Recorder};
use crate::publish::Kept;
use crate::records::Records;
use crate::trust::{Fingerprint, TrustSource};

/// How long sessions may take to end when the relay stops.
const SESSIONS_END: Duration = Duration::from_secs(1);

/// How long to wait when the system has no descriptor for a connection: it would be offered again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All that the management plane needs.
#[derive(Debug)]
pub struct Admin {
    /// Where operators come in, and what they may there.
    pub sockets: Vec<(StatsSocket, Level)>,
    /// Where monitors come in.
    pub http: Option<HttpSocket>,
    /// The shards, in the order of their numbers.
    pub shards: Vec<ShardHandle>,
    /// What `show info` tells.
    pub info: RelayInfo,
    /// The bounds.
    pub limits: Limits,
    /// Where to read whom to trust; none where that never changes, as in tests.
    pub trust: Option<TrustSource>,
    /// The settings that the relay started with.
    pub config: Config,
    /// The published ports that come back with the relay.
    pub kept: Kept,
    /// Wakes it when what mediators ask for has changed.
    pub asking: Arc<Notify>,
    /// What happened.
    pub journal: Journal,
    /// Where it writes what operators did.
    pub recorder: Recorder,
    /// The records, if there are any.
    pub records: Option<Records>,
    /// Who started the relay, and wants to know how it is.
    pub manager: Notifier,
}

/// The relay itself.
#[derive(Clone, Debug)]
pub struct RelayInfo {
    /// The service port's address.
    pub listen: SocketAddr,
    /// What mediators and terminals pin.
    pub fingerprint: Fingerprint,
    /// Whether the service port is without TLS.
    pub plaintext: bool,
    /// When the relay started.
    pub started: Instant,
}

/// The bounds of what operators can take; each that is hit is counted in `show info`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; one more is told so and closed.
    pub connections_max: usize,
    /// Bytes of one line.
    pub line_max: usize,
    /// Without a command for this long, a connection is closed.
    pub idle: Duration,
    /// An answer must be read within this.
    pub write: Duration,
    /// The shards must answer within this.
    pub reply: Duration,
    /// Of HTTP clients.
    pub http: http::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 32,
            line_max: 4096,
            idle: Duration::from_secs(300),
            write: Duration::from_secs(10),
            reply: Duration::from_secs(5),
            http: http::Limits::default(),
        }
    }
}

/// Why the management plane stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A signal of this name.
    Signal(&'static str),
    /// The caller of [`serve`] said so.
    Asked,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => f.write_str(name),
            Self::Asked => f.write_str("asked to"),
        }
    }
}

/// Runs the management plane on the calling thread, until SIGTERM, SIGINT or `stop` (its loss counts too).
/// SIGHUP reads the configuration again.
///
/// # Errors
/// io_uring or the signals are not to be had.
pub fn serve(admin: Admin, stop: oneshot::Receiver<()>) -> anyhow::Result<Stop> {
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder())
        .context("cannot start the management plane's io_uring (is it allowed here?)")?;
    step_back();
    runtime.block_on(run(admin, stop))
}

/// How much the management plane stands back behind the shards where both want a core: with a tenth of their weight it still
/// answers beside full ones (setpriority(2)).
const NICE: i32 = 10;

/// Lets the calling thread, which serves people, go behind those that carry traffic. Where that is not to be had it is a
/// neighbour like any other.
fn step_back() {
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
        tracing::debug!(%error, "the management plane keeps its priority");
    }
}

async fn run(admin: Admin, mut stop: oneshot::Receiver<()>) -> anyhow::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    // `tokio_uring::net::UnixListener::bind` fails on current kernels; an ordinary listener's connections do not.
    let (accepted, mut callers) = mpsc::channel(1);
    for (socket, level) in &admin.sockets {
        let listener = socket.listener().and_then(UnixListener::from_std).context("cannot use the stats socket")?;
        tokio::task::spawn_local(accept(listener, *level, accepted.clone()));
    }
    let Admin { sockets, http, shards, info, limits, trust, config, kept, asking, journal, recorder, records, manager } =
        admin;
    let plane = Rc::new(Plane {
        shards,
        info: RefCell::new(info),
        limits,
        trust,
        config: RefCell::new(config),
        kept: KeptLock::new(kept),
        asked: RefCell::default(),
        asking,
        journal,
        recorder,
        records,
        manager,
        tally: Tally::default(),
        http_address: http.as_ref().map(HttpSocket::address),
        http_tally: Rc::default(),
        streams: RefCell::default(),
    });
    publishing::restore(&plane).await;
    let asking = tokio::task::spawn_local(asking::run(plane.clone()));
    let journal = plane.clone();
    let journal = tokio::task::spawn_local(async move { journal.journal.run().await });
    let http = http.map(|socket| {
        let (limits, tally) = (plane.limits.http.clone(), plane.http_tally.clone());
        tokio::task::spawn_local(http::serve(socket, pages::router(&plane), limits, tally))
    });
    // From here on signals are taken, ports are bound and the stats socket is served.
    plane.manager.ready(&manager::status(&plane));
    let telling = tokio::task::spawn_local(manager::run(plane.clone()));
    let mut sessions = JoinSet::new();
    let reason = loop {
        tokio::select! {
            _ = terminate.recv() => break Stop::Signal("SIGTERM"),
            _ = interrupt.recv() => break Stop::Signal("SIGINT"),
            _ = &mut stop => break Stop::Asked,
            _ = hangup.recv() => {
                let plane = plane.clone();
                sessions.spawn_local(async move {
                    if let Err(error) = reload::reload(&plane).await {
                        tracing::error!(error, "SIGHUP: the configuration is not reloaded");
                    }
                });
            }
            Some(ended) = sessions.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a management session failed");
                }
            }
            Some((stream, level)) = callers.recv() => {
                sessions.spawn_local(session::serve(plane.clone(), stream, level));
            }
        }
    };
    plane.manager.stopping(&format!("stops: {reason}"));
    asking.abort();
    journal.abort();
    // Its connections end with it.
    http.inspect(|http| http.abort());
    telling.abort();
    drop(callers);
    drop(sockets);
    for (_, stream) in plane.streams.borrow().iter() {
        // It fails only where the other end has gone already.
        let _ = stream.shutdown(Shutdown::Both);
    }
    // A session may still wait for a shard; what is left after this is cut off with the runtime.
    let _ = tokio::time::timeout(SESSIONS_END, async { while sessions.join_next().await.is_some() {} }).await;
    Ok(reason)
}

/// Takes connections, until nobody wants them any more.
async fn accept(listener: UnixListener, level: Level, callers: mpsc::Sender<(UnixStream, Level)>) {
    loop {
        match listener.accept().await.and_then(|(stream, _)| into_uring(stream)) {
            Ok(stream) => {
                if callers.send((stream, level)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a management connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn into_uring(stream: tokio::net::UnixStream) -> std::io::Result<UnixStream> {
    let stream = stream.into_std()?;
    // On a non-blocking socket io_uring would answer EAGAIN rather than wait.
    stream.set_nonblocking(false)?;
    Ok(UnixStream::from_std(stream))
}

/// What the sessions share; one thread's.
pub(super) struct Plane {
    pub(super) shards: Vec<ShardHandle>,
    pub(super) info: RefCell<RelayInfo>,
    pub(super) limits: Limits,
    pub(super) trust: Option<TrustSource>,
    pub(super) config: RefCell<Config>,
    pub(super) kept: KeptLock,
    /// What mediators ask for; whoever changes it has the lock of `kept`.
    pub(super) asked: RefCell<Asked>,
    /// Told when there is something new to look at.
    pub(super) asking: Arc<Notify>,
    pub(super) journal: Journal,
    pub(super) recorder: Recorder,
    pub(super) records: Option<Records>,
    pub(super) manager: Notifier,
    pub(super) tally: Tally,
    /// Where the HTTP port is, if there is one.
    pub(super) http_address: Option<SocketAddr>,
    pub(super) http_tally: Rc<http::Tally>,
    /// The sessions' sockets, so that the end of the relay can end their waits.
    pub(super) streams: RefCell<Slab<Rc<UnixStream>>>,
}

impl Plane {
    /// Sends a command to one shard; the error is a text for the operator.
    pub(super) fn send(&self, shard: usize, command: Command) -> Result<(), String> {
        let handle = self.shards.get(shard).ok_or_else(|| format!("there is no shard {shard}"))?;
        handle.send(command).map_err(|error| format!("shard {shard}: {error}"))
    }

    /// Until when shards that are asked now may answer.
    pub(super) fn reply_deadline(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.limits.reply
    }
}

/// The management plane's own counters.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) connections: Cell<u64>,
    pub(super) refused: Cell<u64>,
    pub(super) commands: Cell<u64>,
    pub(super) errors: Cell<u64>,
    pub(super) refused_level: Cell<u64>,
    pub(super) lines_oversize: Cell<u64>,
    pub(super) idle_timeouts: Cell<u64>,
    pub(super) write_timeouts: Cell<u64>,
}

impl Tally {
    /// Adds one.
    pub(super) fn count(counter: &Cell<u64>) {
        counter.set(counter.get() + 1);
    }

    /// Each with its name.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("admin_connections_total", &self.connections),
            ("admin_connections_refused", &self.refused),
            ("admin_commands_total", &self.commands),
            ("admin_errors_total", &self.errors),
            ("admin_refused_level", &self.refused_level),
            ("admin_lines_oversize", &self.lines_oversize),
            ("admin_idle_timeouts", &self.idle_timeouts),
            ("admin_write_timeouts", &self.write_timeouts),
        ]
        .map(|(name, cell)| (name, cell.get()))
        .into_iter()
    }
}

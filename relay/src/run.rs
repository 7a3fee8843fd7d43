//! A relay's life: load the keys, open the stats socket, start shards and management plane, wait, stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use isthmus_proto::ShardId;
use isthmus_service::Notifier;
use tokio::sync::{Notify, oneshot};

use crate::admin::command::COMMANDS_MAX;
use crate::admin::{self, Admin, Command, Level, Limits, RelayInfo, ShardCounters, ShardHandle, StatsSocket};
use crate::config::Config;
use crate::http::HttpSocket;
use crate::journal::{self, Journal, Recorder};
use crate::names::Names;
use crate::publish::Kept;
use crate::records::Records;
use crate::trust::{State, Trust, TrustSource};

/// How long the shards may take to end their tunnels in an orderly way.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What all shards share, read-only.
#[derive(Debug)]
pub struct Shared {
    /// The settings. A reload gives the shards another one: those that matter at the start only do not differ in it.
    pub config: Config,
    /// The named routes that the relay started with.
    pub names: Arc<Names>,
    /// Whom to let in, at the start.
    pub trust: Arc<Trust>,
}

impl Shared {
    /// What a configuration and the state directory's keys give, at the start and at each reload; `before` is whom the
    /// relay trusts until then.
    ///
    /// # Errors
    /// Keys or settings that do not fit together.
    pub fn new(config: Config, state: &State, before: Option<&Trust>) -> anyhow::Result<Self> {
        let trust = Arc::new(Trust::load(state, &config.trust(), before)?);
        let names = Arc::new(Names::new(config.name.clone()).map_err(anyhow::Error::msg)?);
        Ok(Self { names, config, trust })
    }
}

/// A shard's place: what one thread gets for its own. It keeps the seat until it ends.
#[derive(Debug)]
pub struct ShardSeat {
    /// Its number.
    pub id: ShardId,
    /// Commands from the management plane.
    pub commands: Receiver<Command>,
    /// Where it shows its figures.
    pub counters: Arc<ShardCounters>,
    /// Tells the management plane that mediators' asks have changed.
    pub asking: Arc<Notify>,
    /// Where it writes what happened.
    pub recorder: Recorder,
    /// Where it writes who used what, if that is asked for.
    pub records: Option<Records>,
    /// Its drop tells [`run`] that the thread is at its end, in whatever way.
    pub ended: Ended,
}

/// What [`crate::shard::spawn`] gives back for all seats.
pub struct Shards {
    /// The service port's address, with its real port number where 0 was asked for.
    pub listen: SocketAddr,
    /// One per seat, in the order of the seats.
    pub running: Vec<RunningShard>,
}

/// One shard's thread.
pub struct RunningShard {
    /// See [`ShardHandle::wake`].
    pub wake: Arc<dyn Fn() + Send + Sync>,
    /// Ends after [`Command::Stop`], or earlier with an error.
    pub thread: JoinHandle<anyhow::Result<()>>,
}

/// Tells [`run`], when it is dropped, that its thread ends.
#[derive(Debug)]
pub struct Ended(Sender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        // Room for every thread; and if nobody listens any more, nobody needs to know.
        let _ = self.0.try_send(());
    }
}

/// Runs the relay until it is told to stop (SIGTERM, SIGINT) or a thread fails.
///
/// # Errors
/// Start-up: keys, stats socket, service port or io_uring, with the cure. Later: the first thread's failure.
pub fn run(config: Config) -> anyhow::Result<()> {
    run_with(config, crate::shard::spawn)
}

/// [`run`] with another data plane, as tests need it.
///
/// # Errors
/// See [`run`]; what `spawn` says too.
pub fn run_with(
    config: Config,
    spawn: impl FnOnce(Arc<Shared>, Vec<ShardSeat>) -> anyhow::Result<Shards>,
) -> anyhow::Result<()> {
    if let Err(error) = isthmus_ring::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of descriptors stays as low as it is; set LimitNOFILE= in the unit");
    }
    let state = State::open(&config.state)?;
    let kept = Kept::load(&config.state)?;
    let shared = Arc::new(Shared::new(config.clone(), &state, None)?);
    let source = TrustSource::new(config.state.clone(), config.trust(), shared.trust.clone());
    let levels = [
        (Some(config.stats_socket_path()), Level::Admin),
        (config.stats_socket_operator.clone(), Level::Operator),
        (config.stats_socket_user.clone(), Level::User),
    ];
    let bind = |(path, level): (Option<PathBuf>, Level)| path.map(|path| Ok((StatsSocket::bind(&path)?, level)));
    let sockets = levels.into_iter().filter_map(bind).collect::<anyhow::Result<Vec<_>>>()?;
    let bind = |listen| HttpSocket::bind(listen, config.http_token_file.as_deref());
    let http = config.http.map(bind).transpose()?;
    let threads_max = config.shards + 1;
    let (ended_sender, ended) = crossbeam_channel::bounded(threads_max);

    let asking = Arc::new(Notify::new());
    let (recorder, inbox) = journal::queue();
    let (records, records_thread) = config.records().map(Records::start).transpose()?.unzip();
    let (seats, senders) = seats(shared.config.shards, &ended_sender, &asking, &recorder, &records);
    let shown: Vec<_> = seats.iter().map(|seat| seat.counters.clone()).collect();
    let shards = spawn(shared.clone(), seats)?;
    let handles: Vec<_> = std::iter::zip(senders, shown)
        .zip(&shards.running)
        .map(|((commands, counters), running)| ShardHandle { commands, wake: running.wake.clone(), counters })
        .collect();

    let info = RelayInfo {
        listen: shards.listen,
        fingerprint: state.fingerprint(),
        plaintext: shared.config.plaintext,
        started: Instant::now(),
    };
    tracing::info!(listen = %info.listen, shards = handles.len(), fingerprint = %info.fingerprint, "relay runs");
    if let Some(http) = &http {
        tracing::info!(address = %http.address(), "HTTP listens");
    }
    if info.plaintext {
        tracing::warn!("plaintext: whoever is on the way can read and change everything, the tokens too");
    }
    let (stop, stopped) = oneshot::channel();
    let limits = Limits::default();
    let trust = Some(source);
    let admin = Admin {
        sockets,
        http,
        shards: handles.clone(),
        info,
        limits,
        trust,
        config,
        kept,
        asking,
        journal: Journal::new(inbox),
        recorder,
        records,
        manager: Notifier::from_env(),
    };
    let management = spawn_admin(admin, stopped, Ended(ended_sender))?;

    // Whichever thread ends first, by a signal, an error or a panic, ends the relay.
    let _ = ended.recv();
    let deadline = Instant::now() + STOP_TIMEOUT;
    for handle in &handles {
        // A shard that has ended needs no telling, and one that empties its full queue too late is named below.
        if handle.commands.send_deadline(Command::Stop, deadline).is_ok() {
            (handle.wake)();
        }
    }
    // The management plane has ended already if the stop was its doing.
    let _ = stop.send(());
    wait_for_end(&ended, threads_max - 1, deadline)?;
    let mut result = join(management);
    for shard in shards.running {
        result = result.and(join(shard.thread));
    }
    // All that wrote records is gone, so the last ones are written.
    if let Some(thread) = records_thread
        && thread.join().is_err()
    {
        tracing::error!("the records' thread failed");
    }
    tracing::info!("relay stopped");
    result
}

fn seats(
    count: usize,
    ended: &Sender<()>,
    asking: &Arc<Notify>,
    recorder: &Recorder,
    records: &Option<Records>,
) -> (Vec<ShardSeat>, Vec<Sender<Command>>) {
    let seat = |n: usize| {
        let (sender, commands) = crossbeam_channel::bounded(COMMANDS_MAX);
        // The command line bounds the count so that a number fits.
        let id = ShardId(n as u8);
        (
            ShardSeat {
                id,
                commands,
                counters: Arc::default(),
                asking: asking.clone(),
                recorder: recorder.clone(),
                records: records.clone(),
                ended: Ended(ended.clone()),
            },
            sender,
        )
    };
    (0..count).map(seat).unzip()
}

fn spawn_admin(
    admin: Admin,
    stop: oneshot::Receiver<()>,
    ended: Ended,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let run = move || {
        let _ended = ended;
        let reason = admin::serve(admin, stop)?;
        tracing::info!(%reason, "relay stops");
        Ok(())
    };
    thread::Builder::new().name("admin".into()).spawn(run).context("cannot start the management thread")
}

/// Waits for `count` more threads.
fn wait_for_end(ended: &Receiver<()>, count: usize, deadline: Instant) -> anyhow::Result<()> {
    for _ in 0..count {
        match ended.recv_deadline(deadline) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => bail!("not every thread stopped within {STOP_TIMEOUT:?}"),
            // All ends are told, whether or not each was read.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(())
}

fn join(thread: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    let name = thread.thread().name().unwrap_or("a thread").to_owned();
    thread.join().unwrap_or_else(|_| bail!("thread {name} panicked"))
}

//! The mediator's life: dial, serve the relay's requests, report changes, come back when the tunnel ends.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use isthmus_engine::{Control, Engine, EngineConfig, Event, Key, TimerId};
use isthmus_proto::Code;
use isthmus_proto::dialer::Dialer;
use isthmus_proto::hello::{Outcome, Report};
use isthmus_proto::wire::Frame;
use isthmus_ring::{Ring, RingConfig};
use isthmus_service::Notifier;

use crate::asking;
use crate::audit::Audit;
use crate::channels::Channels;
use crate::config::Config;
use crate::environment::{self, Watch};
use crate::names::Names;
use crate::policy::Policy;
use crate::ports::{Asked, Ports, Request};
use crate::resolve::Resolver;
use crate::session::KnownRelay;
use crate::signals::{Signals, Wish};
use crate::token::TokenSource;

/// First wait before a new attempt, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Wait after another session took over: most likely the same token is in use twice.
const REPLACED_WAIT_MS: u32 = 10_000;

/// Addresses come and go in bursts: the environment is read once they have settled.
const SETTLE: Duration = Duration::from_millis(200);

/// Numbers of the control's own timers; a connect's number is its place plus [`TIMER_CONNECT`].
const TIMER_DIAL: u32 = 0;
const TIMER_ENVIRONMENT: u32 = 1;
const TIMER_RENEW: u32 = 2;
const TIMER_LEAVE: u32 = 3;
const TIMER_ALIVE: u32 = 4;
const TIMER_CHANNELS: u32 = 5;
pub(crate) const TIMER_CONNECT: u32 = 6;

const WATCH_ENVIRONMENT: u32 = 0;
const WATCH_SIGNALS: u32 = 1;

/// Number given with the streams of hosts that came to a server port: their addresses are nobody's destinations.
pub(crate) const TAG_ACCEPTED: u32 = 1;

/// How long the relay may take to hear of our going.
const FAREWELL: Duration = Duration::from_secs(2);

/// Shortest and longest time between two looks into the token's file, of which four fit a token's lifetime.
const RENEW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Runs until SIGTERM or SIGINT, and then goes in order. SIGHUP: the settings and the token's file are read again, and the
/// audit's is opened again.
///
/// # Errors
/// What keeps it from starting at all: no io_uring, bad settings. A relay that cannot be reached is not among them.
pub fn run(config: Config) -> anyhow::Result<()> {
    let token = config.token.load()?;
    // Before any thread is started, so that none of them takes a signal.
    let signals = Signals::take().context("cannot take signals")?;
    let audit = Rc::new(Audit::start(config.audit.clone(), token.mediator.to_string())?);
    let ring = Ring::new(RingConfig::default())?;
    let waker = ring.waker();
    let names = Names::new(waker.clone()).context("cannot start the threads that resolve names")?;
    let resolved = Arc::new(AtomicBool::new(false));
    let tell = resolved.clone();
    let wake = move || {
        tell.store(true, Ordering::Release);
        waker.wake();
    };
    let resolver =
        Resolver::new(config.relay.clone(), Box::new(wake)).context("cannot start the thread that resolves names")?;
    let interfaces = environment::interfaces().context("cannot read this machine's interfaces")?;
    let mut policy = Policy::new(&config.allow, &interfaces);
    let mut report =
        environment::gather(&mut policy, &config.service).context("cannot read this machine's environment")?;
    asking::fill(&mut report, &config);
    let policy = Rc::new(RefCell::new(policy));
    let engine_config = EngineConfig { busy_poll: config.busy_poll, ..EngineConfig::default() };
    let mut engine = Engine::new(ring, engine_config);
    let allows = policy.clone();
    let refusals = audit.clone();
    engine.set_destination_filter(Box::new(move |to| {
        let permitted = allows.borrow().permits(to);
        if !permitted {
            refusals.refused_datagram(to, std::time::Instant::now());
        }
        permitted
    }));
    engine.watch(&signals.as_fd(), WATCH_SIGNALS);
    let watch = Watch::new().context("cannot watch this machine's addresses")?;
    engine.watch(&watch.as_fd(), WATCH_ENVIRONMENT);
    let timers = Timers {
        dial: engine.add_timer(TIMER_DIAL),
        environment: engine.add_timer(TIMER_ENVIRONMENT),
        renew: engine.add_timer(TIMER_RENEW),
        leave: engine.add_timer(TIMER_LEAVE),
        alive: engine.add_timer(TIMER_ALIVE),
        channels: engine.add_timer(TIMER_CHANNELS),
    };
    engine.set_timer(timers.dial, engine.now());
    let mut mediator = Mediator {
        dialer: Dialer::new(BACKOFF.0, BACKOFF.1, random()?),
        // Zero would be none.
        instance: random()? | 1,
        signals,
        manager: Notifier::from_env(),
        audit,
        shown_token: String::new(),
        leaving: false,
        gone: false,
        config,
        policy,
        report,
        extras_wait: false,
        outcomes: Vec::new(),
        resolver,
        watch,
        timers,
        dialling: false,
        resolved,
        known: None,
        link: None,
        up: false,
        ports: Ports::default(),
        channels: Channels::default(),
        names,
    };
    mediator.tell_ready(&mut engine);
    while !mediator.gone {
        engine.turn(&mut mediator).context("the ring failed")?;
    }
    mediator.audit.finish();
    tracing::info!("mediator stopped");
    Ok(())
}

fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(u64::from_ne_bytes(bytes))
}

pub(crate) struct Timers {
    dial: TimerId,
    environment: TimerId,
    renew: TimerId,
    leave: TimerId,
    pub(crate) alive: TimerId,
    pub(crate) channels: TimerId,
}

pub(crate) struct Mediator {
    pub(crate) config: Config,
    pub(crate) policy: Rc<RefCell<Policy>>,
    pub(crate) report: Report,
    /// Offers and asks did not fit the hello: the first report brings them.
    pub(crate) extras_wait: bool,
    /// What the relay told last of what is asked for.
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) audit: Rc<Audit>,
    /// Tells the relay this process from another one with the same token.
    pub(crate) instance: u64,
    /// What the relay knows us by.
    pub(crate) shown_token: String,
    resolver: Resolver,
    dialer: Dialer,
    watch: Watch,
    signals: Signals,
    /// Who started the mediator, and wants to know how it is.
    pub(crate) manager: Notifier,
    /// Told to go: the farewell is on its way.
    leaving: bool,
    gone: bool,
    pub(crate) timers: Timers,
    /// The relay's address is being looked up.
    dialling: bool,
    /// The resolver has an answer.
    resolved: Arc<AtomicBool>,
    pub(crate) known: Option<KnownRelay>,
    /// The tunnel, established or not.
    pub(crate) link: Option<Key>,
    /// Established.
    pub(crate) up: bool,
    pub(crate) ports: Ports,
    pub(crate) channels: Channels,
    pub(crate) names: Names,
}

impl Control for Mediator {
    fn on_event(&mut self, engine: &mut Engine, event: Event<'_>) {
        match event {
            Event::Timer { number: TIMER_DIAL } => {
                self.dialling = true;
                self.resolver.ask();
            }
            Event::Timer { number: TIMER_ENVIRONMENT } => self.report_changes(engine),
            Event::Timer { number: TIMER_RENEW } => self.renew(engine),
            Event::Timer { number: TIMER_LEAVE } => self.gone = true,
            Event::Timer { number: TIMER_ALIVE } => self.keep_telling(engine),
            Event::Timer { number: TIMER_CHANNELS } => self.on_channels_due(engine),
            Event::Timer { number } => self.ports.on_connect_timeout(engine, number - TIMER_CONNECT),
            Event::Watched { number: WATCH_SIGNALS } => self.on_signals(engine),
            Event::Watched { .. } => {
                if self.watch.drain() {
                    engine.set_timer(self.timers.environment, engine.now() + SETTLE);
                }
            }
            Event::LinkReady { link } => self.say_hello(engine, link),
            Event::Greeting { link, frame } => self.on_welcome(engine, link, frame),
            Event::LinkEnded { link, code, text, retry_after_ms, peer, .. } => {
                // There may be another relay of that name, which a mediator that is not let in need not wait for. One whose
                // tunnel ends comes when it is told, since all of them do so at once.
                let others = code == Code::Draining && self.resolver.avoid(peer) && !self.up;
                self.on_tunnel_ended(engine, link, code, &text, if others { 0 } else { retry_after_ms });
            }
            Event::Request { link, slot, owner, request, ask } => {
                self.on_request(engine, Request { asked: Asked { link, slot, owner, number: request }, ask });
            }
            Event::RequestName { link, slot, owner, request, to, timeout_ms } => {
                self.on_connect_name(engine, Asked { link, slot, owner, number: request }, to, timeout_ms);
            }
            Event::Connected { stream, link, slot, result } => self.on_connected(engine, stream, link, slot, result),
            Event::Accepted { tag, socket, peer } => self.on_host(engine, tag, socket, peer),
            Event::PortEnded { owner, .. } => self.ports.forget(owner),
            Event::ChannelsChanged { link } => self.on_channels_changed(engine, link),
            Event::Lifetime { proven, period, settled, .. } => {
                let (proven_s, period_s) = (proven.as_secs_f32(), period.as_secs_f32());
                tracing::info!(proven_s, period_s, settled, "the gateway's UDP bindings live at least so long");
            }
            Event::StreamEnded { stream, .. } => self.ports.forget_connect(engine, stream),
            Event::Asker { link, asker, name } if self.link == Some(link) => self.audit.name(asker, name),
            Event::Outcomes { link, json } if self.link == Some(link) => self.on_outcomes(json),
            // A mediator asks nobody, publishes nothing.
            Event::Answered { .. }
            | Event::PortAccepted { .. }
            | Event::UdpError { .. }
            | Event::Report { .. }
            | Event::Renew { .. }
            | Event::Asker { .. }
            | Event::Outcomes { .. }
            | Event::Query { .. }
            | Event::Visitor { .. }
            | Event::Host { .. }
            | Event::Stray { .. }
            | Event::FlowFailed { .. }
            | Event::GuestBytes { .. }
            | Event::GuestEnded { .. }
            | Event::FlowEnded { .. } => {}
        }
    }

    fn on_turn(&mut self, engine: &mut Engine) {
        self.on_names(engine);
        if self.leaving || !self.dialling || !self.resolved.swap(false, Ordering::AcqRel) {
            return;
        }
        if let Some(answer) = self.resolver.poll() {
            self.dialling = false;
            match answer {
                Ok(relay) => self.dial(engine, relay),
                Err(error) => self.try_later(engine, &error.to_string(), 0),
            }
        }
    }

    fn has_work(&self) -> bool {
        self.names.has_answers() || self.dialling && self.resolved.load(Ordering::Acquire)
    }
}

impl Mediator {
    /// After a failure: the next attempt, with growing waits.
    pub(crate) fn try_later(&mut self, engine: &mut Engine, why: &str, retry_after_ms: u32) {
        if retry_after_ms > 0 {
            self.dialer.told_to_wait(Duration::from_millis(u64::from(retry_after_ms)));
        }
        let wait = self.dialer.next_delay();
        tracing::warn!(wait_ms = wait.as_millis() as u64, "no tunnel: {why}");
        self.manager.status(&format!("no tunnel: {why}"));
        engine.set_timer(self.timers.dial, engine.now() + wait);
    }

    pub(crate) fn succeeded(&mut self) {
        self.up = true;
        self.manager.status("tunnel up");
        self.dialer.succeeded();
        self.resolver.succeeded();
    }

    fn on_tunnel_ended(&mut self, engine: &mut Engine, link: Key, code: Code, text: &str, retry_after_ms: u32) {
        if self.link != Some(link) {
            return;
        }
        self.link = None;
        if self.leaving {
            self.gone = true;
            return;
        }
        self.audit.forget();
        self.ports.clear(engine);
        self.channels.clear();
        let was_up = std::mem::take(&mut self.up);
        // Another mediator of the same name would be replaced in its turn, and so on without end.
        let retry_after_ms = if code == Code::Replaced { retry_after_ms.max(REPLACED_WAIT_MS) } else { retry_after_ms };
        let text = if text.is_empty() { code.text() } else { text };
        tracing::warn!(reason = code.word(), was_up, "tunnel down: {text}");
        self.try_later(engine, text, retry_after_ms);
    }

    /// The machine's addresses may have changed: the policy follows, and the relay is told.
    pub(crate) fn report_changes(&mut self, engine: &mut Engine) {
        let gathered = environment::gather(&mut self.policy.borrow_mut(), &self.config.service).map(|mut report| {
            asking::fill(&mut report, &self.config);
            report
        });
        match gathered {
            Ok(report) if report != self.report => {
                self.report = report;
                tracing::info!("environment changed");
                self.enforce_policy(engine);
                self.send_report(engine);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot read this machine's environment"),
        }
    }

    pub(crate) fn send_report(&mut self, engine: &mut Engine) {
        let Some(link) = self.link.filter(|_| self.up) else { return };
        // Plain data: it always serialises.
        let json = serde_json::to_vec(&self.report).unwrap_or_default();
        if let Some(machine) = engine.link(link) {
            machine.control().push(&Frame::Report { json: &json });
            engine.touch(link);
        }
    }

    fn on_signals(&mut self, engine: &mut Engine) {
        for wish in self.signals.wishes() {
            match wish {
                Wish::Leave => self.leave(engine),
                Wish::Reload => self.reload_and_tell(engine),
            }
        }
    }

    /// Says goodbye to the relay, which so need not find out by silence. Asked a second time, it goes at once.
    fn leave(&mut self, engine: &mut Engine) {
        let again = std::mem::replace(&mut self.leaving, true);
        self.manager.stopping("leaves");
        match self.link.filter(|_| !again) {
            Some(link) => {
                tracing::info!("leaving");
                engine.farewell(link, Code::PeerClosed, 0, "the mediator is shutting down");
                engine.set_timer(self.timers.leave, engine.now() + FAREWELL);
            }
            None => self.gone = true,
        }
    }

    /// A newer token in the file is shown to the relay, so that the tunnel does not end with the older one.
    pub(crate) fn renew(&mut self, engine: &mut Engine) {
        let Some(link) = self.link.filter(|_| self.up) else { return };
        let TokenSource::File(_) = self.config.token else { return };
        match self.config.token.load() {
            Ok(token) => {
                if token.text != self.shown_token
                    && let Some(machine) = engine.link(link)
                {
                    machine.control().push(&Frame::Renew { token: &token.text });
                    engine.touch(link);
                    tracing::info!("showing the relay a newer token");
                    self.shown_token = token.text;
                }
                let lifetime = token.lifetime.unwrap_or(RENEW.1);
                engine.set_timer(self.timers.renew, engine.now() + (lifetime / 4).clamp(RENEW.0, RENEW.1));
            }
            Err(error) => {
                tracing::warn!("the tunnel keeps the token that it has: {error}");
                engine.set_timer(self.timers.renew, engine.now() + RENEW.1);
            }
        }
    }

    /// The tunnel is up: from time to time its token is looked after.
    pub(crate) fn watch_token(&mut self, engine: &mut Engine) {
        engine.set_timer(self.timers.renew, engine.now() + RENEW.0);
    }

    pub(crate) fn permits(&self, to: std::net::SocketAddr) -> bool {
        self.policy.borrow().permits(to)
    }
}

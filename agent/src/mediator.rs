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
use isthmus_proto::hello::Report;
use isthmus_proto::wire::Frame;
use isthmus_ring::{Ring, RingConfig};

use crate::config::Config;
use crate::environment::{self, Watch};
use crate::policy::Policy;
use crate::ports::Ports;
use crate::resolve::Resolver;

/// First wait before a new attempt, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Wait after another session took over: most likely the same token is in use twice.
const REPLACED_WAIT_MS: u32 = 10_000;

/// Addresses come and go in bursts: the environment is read once they have settled.
const SETTLE: Duration = Duration::from_millis(200);

/// Numbers of the control's own timers; a connect's number is its place plus [`TIMER_CONNECT`].
const TIMER_DIAL: u32 = 0;
const TIMER_ENVIRONMENT: u32 = 1;
pub(crate) const TIMER_CONNECT: u32 = 2;

const WATCH_ENVIRONMENT: u32 = 0;

/// Runs until the process is ended by a signal.
///
/// # Errors
/// What keeps it from starting at all: no io_uring, bad settings. A relay that cannot be reached is not among them.
pub fn run(config: Config) -> anyhow::Result<()> {
    config.token.load()?;
    let ring = Ring::new(RingConfig::default())?;
    let waker = ring.waker();
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
    let report = environment::gather(&mut policy, &config.service).context("cannot read this machine's environment")?;
    let policy = Rc::new(RefCell::new(policy));
    let engine_config = EngineConfig { busy_poll: config.busy_poll, ..EngineConfig::default() };
    let mut engine = Engine::new(ring, engine_config);
    let allows = policy.clone();
    engine.set_destination_filter(Box::new(move |to| allows.borrow().permits(to)));
    let watch = Watch::new().context("cannot watch this machine's addresses")?;
    engine.watch(&watch.as_fd(), WATCH_ENVIRONMENT);
    let timers = Timers { dial: engine.add_timer(TIMER_DIAL), environment: engine.add_timer(TIMER_ENVIRONMENT) };
    engine.set_timer(timers.dial, engine.now());
    let mut mediator = Mediator {
        dialer: Dialer::new(BACKOFF.0, BACKOFF.1, seed()?),
        config,
        policy,
        report,
        resolver,
        watch,
        timers,
        dialling: false,
        resolved,
        link: None,
        up: false,
        ports: Ports::default(),
    };
    loop {
        engine.turn(&mut mediator).context("the ring failed")?;
    }
}

fn seed() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(u64::from_ne_bytes(bytes))
}

struct Timers {
    dial: TimerId,
    environment: TimerId,
}

pub(crate) struct Mediator {
    pub(crate) config: Config,
    pub(crate) policy: Rc<RefCell<Policy>>,
    pub(crate) report: Report,
    resolver: Resolver,
    dialer: Dialer,
    watch: Watch,
    timers: Timers,
    /// The relay's address is being looked up.
    dialling: bool,
    /// The resolver has an answer.
    resolved: Arc<AtomicBool>,
    /// The tunnel, established or not.
    pub(crate) link: Option<Key>,
    /// Established.
    pub(crate) up: bool,
    pub(crate) ports: Ports,
}

impl Control for Mediator {
    fn on_event(&mut self, engine: &mut Engine, event: Event<'_>) {
        match event {
            Event::Timer { number: TIMER_DIAL } => {
                self.dialling = true;
                self.resolver.ask();
            }
            Event::Timer { number: TIMER_ENVIRONMENT } => self.report_changes(engine),
            Event::Timer { number } => self.ports.on_connect_timeout(engine, number - TIMER_CONNECT),
            Event::Watched { .. } => {
                if self.watch.drain() {
                    engine.set_timer(self.timers.environment, engine.now() + SETTLE);
                }
            }
            Event::LinkReady { link } => self.say_hello(engine, link),
            Event::Greeting { link, frame } => self.on_welcome(engine, link, frame),
            Event::LinkEnded { link, code, text, retry_after_ms } => {
                self.on_tunnel_ended(engine, link, code, &text, retry_after_ms);
            }
            Event::Request { link, slot, owner, request, ask } => {
                self.on_request(engine, link, slot, owner, request, ask);
            }
            Event::Connected { stream, link, slot, result } => self.on_connected(engine, stream, link, slot, result),
            Event::Accepted { tag, socket, peer } => self.on_host(engine, tag, socket, peer),
            Event::PortEnded { owner, .. } => self.ports.forget(owner),
            Event::ChannelsChanged { link } => {
                let (all, live) = engine.channels_of(link);
                tracing::info!(live, all, "UDP channels");
            }
            Event::Lifetime { proven, period, settled, .. } => {
                let (proven_s, period_s) = (proven.as_secs_f32(), period.as_secs_f32());
                tracing::info!(proven_s, period_s, settled, "the gateway's UDP bindings live at least so long");
            }
            Event::StreamEnded { stream, .. } => self.ports.forget_connect(engine, stream),
            // A mediator asks nobody, publishes nothing.
            Event::Answered { .. }
            | Event::PortAccepted { .. }
            | Event::UdpError { .. }
            | Event::Report { .. }
            | Event::Query { .. }
            | Event::Visitor { .. }
            | Event::FlowEnded { .. } => {}
        }
    }

    fn on_turn(&mut self, engine: &mut Engine) {
        if !self.dialling || !self.resolved.swap(false, Ordering::AcqRel) {
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
        self.dialling && self.resolved.load(Ordering::Acquire)
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
        engine.set_timer(self.timers.dial, engine.now() + wait);
    }

    pub(crate) fn succeeded(&mut self) {
        self.up = true;
        self.dialer.succeeded();
        self.resolver.succeeded();
    }

    fn on_tunnel_ended(&mut self, engine: &mut Engine, link: Key, code: Code, text: &str, retry_after_ms: u32) {
        if self.link != Some(link) {
            return;
        }
        self.link = None;
        self.ports.clear(engine);
        let was_up = std::mem::take(&mut self.up);
        // Another mediator of the same name would be replaced in its turn, and so on without end.
        let retry_after_ms = if code == Code::Replaced { retry_after_ms.max(REPLACED_WAIT_MS) } else { retry_after_ms };
        let text = if text.is_empty() { code.text() } else { text };
        tracing::warn!(reason = code.word(), was_up, "tunnel down: {text}");
        self.try_later(engine, text, retry_after_ms);
    }

    /// The machine's addresses may have changed: the policy follows, and the relay is told.
    fn report_changes(&mut self, engine: &mut Engine) {
        let gathered = environment::gather(&mut self.policy.borrow_mut(), &self.config.service);
        match gathered {
            Ok(report) if report != self.report => {
                self.report = report;
                engine.forget_allowed();
                tracing::info!("environment changed");
                self.send_report(engine);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot read this machine's environment"),
        }
    }

    fn send_report(&mut self, engine: &mut Engine) {
        let Some(link) = self.link.filter(|_| self.up) else { return };
        // Plain data: it always serialises.
        let json = serde_json::to_vec(&self.report).unwrap_or_default();
        if let Some(machine) = engine.link(link) {
            machine.control().push(&Frame::Report { json: &json });
            engine.touch(link);
        }
    }
}

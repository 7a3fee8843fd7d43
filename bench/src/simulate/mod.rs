//! Many mediators in one process, on one event loop: each is a real tunnel with its own keys and UDP
//! channels, made by the same engine as the mediator's. What they lend is an echo service.

mod echo;
mod ports;
mod session;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use isthmus_engine::{Control, Engine, EngineConfig, Event, Key, TimerId};
use isthmus_proto::time::Instant;
use isthmus_proto::{Code, MediatorId};
use isthmus_relay::trust::TokenKey;
use isthmus_ring::{Ring, RingConfig};
use rustls::ClientConfig;

use crate::report::{Line, Samples};
use crate::usage;

/// What to simulate.
#[derive(Clone)]
pub struct Settings {
    /// The relay's service port.
    pub relay: SocketAddr,
    /// TLS; `None` for plaintext.
    pub tls: Option<Arc<ClientConfig>>,
    /// Signs their tokens.
    pub tokens: TokenKey,
    /// Their names.
    pub names: Vec<MediatorId>,
    /// UDP channels of each.
    pub udp_channels: u8,
    /// Handshakes at once.
    pub at_once: usize,
    /// What they say to a request to connect.
    pub answer: Answer,
    /// How long it may take until all tunnels are up.
    pub patience: Duration,
    /// How long they stay then; `None` until the process is ended.
    pub hold: Option<Duration>,
}

/// What a simulated mediator says to a request to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Every destination is the process's own echo service.
    Echo,
    /// Every destination is a sink of the loads, TCP and UDP ([`crate::peer`]).
    Sink,
    /// Every destination refuses.
    Refuse,
}

/// What happened, counted.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Tunnels that came up, again and again counted.
    pub came_up: u64,
    /// Tunnels up now.
    pub up: usize,
    /// Times from the dialling to the welcome.
    pub handshakes: Samples,
    /// From the first dialling until the last one was up.
    pub all_up_after: Option<Duration>,
    /// Why attempts and tunnels ended.
    pub ended: BTreeMap<&'static str, u64>,
    /// Requests answered.
    pub requests: u64,
    /// Of them, refused.
    pub refused: u64,
}

impl Figures {
    /// As a line.
    pub fn line(&self) -> Line {
        let mut line = Line::default().with("up", self.up).with("came_up", self.came_up);
        if let Some(time) = self.all_up_after {
            line.add("all_up_s", format_args!("{:.3}", time.as_secs_f64()));
        }
        line.add_percentiles("handshake", &self.handshakes);
        line.add("requests", self.requests);
        line.add("refused", self.refused);
        for (word, count) in &self.ended {
            line.add(&format!("ended_{word}"), count);
        }
        line
    }
}

/// Wait before ended and failed ones dial again, all together.
const AGAIN: Duration = Duration::from_millis(500);

/// Descriptors beside the tunnels' own: ring, echo service, standard streams.
const DESCRIPTORS_BESIDE: u64 = 64;

const TIMER_AGAIN: u32 = 0;
const TIMER_PHASE: u32 = 1;

/// Runs them. `told` gets the figures when all are up, and each time that they are again; `run` returns those at the end of the hold. Tunnels that
/// end in between are made anew, as a mediator does.
///
/// # Errors
/// Not all are up in time (with why), too few descriptors, no io_uring.
pub fn run(settings: Settings, mut told: impl FnMut(&Figures)) -> anyhow::Result<Figures> {
    let each = 1 + u64::from(settings.udp_channels);
    usage::raise_descriptors(settings.names.len() as u64 * each + DESCRIPTORS_BESIDE)?;
    let mut services = echo::spawn().context("cannot start the echo service")?;
    if settings.answer == Answer::Sink {
        services.tcp = crate::peer::stream::spawn((Ipv4Addr::LOCALHOST, 0).into())?;
        services.udp = crate::peer::datagram::spawn((Ipv4Addr::LOCALHOST, 0).into())?;
    }
    let mut engine = Engine::new(Ring::new(RingConfig::default())?, EngineConfig::default());
    let timers = Timers { again: engine.add_timer(TIMER_AGAIN), phase: engine.add_timer(TIMER_PHASE) };
    let count = settings.names.len();
    let report = session::report()?;
    let mut simulator = Simulator {
        services,
        report,
        waiting: (0..count).collect(),
        later: Vec::new(),
        dialling: 0,
        dialled: vec![Instant::ZERO; count],
        links: HashMap::with_capacity(count),
        ports: ports::Ports::default(),
        timers,
        started: None,
        told: false,
        phase_over: false,
        figures: Figures::default(),
        settings,
    };
    engine.set_timer(simulator.timers.again, engine.now());
    engine.set_timer(simulator.timers.phase, engine.now() + simulator.settings.patience);
    while !simulator.all_up() {
        engine.turn(&mut simulator).context("the ring failed")?;
        anyhow::ensure!(!simulator.phase_over, "not all are up in time: {}", simulator.figures.line());
    }
    simulator.figures.all_up_after = simulator.started.map(|started| engine.now().since(started));
    simulator.told = true;
    told(&simulator.figures);
    match simulator.settings.hold {
        Some(hold) => engine.set_timer(simulator.timers.phase, engine.now() + hold),
        None => engine.remove_timer(simulator.timers.phase),
    }
    while !simulator.phase_over {
        engine.turn(&mut simulator).context("the ring failed")?;
        if simulator.told != simulator.all_up() {
            simulator.told = !simulator.told;
            if simulator.told {
                told(&simulator.figures);
            }
        }
    }
    Ok(simulator.figures)
}

struct Timers {
    again: TimerId,
    phase: TimerId,
}

/// One mediator's link.
struct Tunnel {
    /// Its place in the settings' names.
    index: usize,
    up: bool,
}

struct Simulator {
    settings: Settings,
    services: echo::Services,
    /// What all of them report, but for the host name.
    report: isthmus_proto::hello::Report,
    /// To be dialled as soon as fewer than `at_once` are on their way.
    waiting: VecDeque<usize>,
    /// To be dialled at the next [`TIMER_AGAIN`].
    later: Vec<usize>,
    dialling: usize,
    /// When each was dialled last.
    dialled: Vec<Instant>,
    links: HashMap<Key, Tunnel>,
    ports: ports::Ports,
    timers: Timers,
    started: Option<Instant>,
    /// That all were up.
    told: bool,
    phase_over: bool,
    figures: Figures,
}

impl Control for Simulator {
    fn on_event(&mut self, engine: &mut Engine, event: Event<'_>) {
        match event {
            Event::Timer { number: TIMER_AGAIN } => {
                self.waiting.extend(self.later.drain(..));
                self.dial_more(engine);
            }
            Event::Timer { .. } => self.phase_over = true,
            Event::LinkReady { link } => self.say_hello(engine, link),
            Event::Greeting { link, frame } => self.on_welcome(engine, link, frame),
            Event::LinkEnded { link, code, text, .. } => self.on_ended(engine, link, code, &text),
            Event::Request { link, slot, owner, request, ask } => {
                self.figures.requests += 1;
                self.on_request(engine, link, slot, owner, request, ask);
            }
            Event::Connected { stream, link, slot, result } => {
                self.on_connected(engine, stream, link, slot, result.is_ok());
            }
            Event::StreamEnded { stream, .. } => self.ports.forget(stream),
            // They ask nobody, publish nothing, listen nowhere.
            Event::Accepted { .. }
            | Event::Answered { .. }
            | Event::PortAccepted { .. }
            | Event::PortEnded { .. }
            | Event::UdpError { .. }
            | Event::Report { .. }
            | Event::Query { .. }
            | Event::Visitor { .. }
            | Event::FlowEnded { .. }
            | Event::ChannelsChanged { .. }
            | Event::Watched { .. } => {}
        }
    }

    fn on_turn(&mut self, _engine: &mut Engine) {}

    /// What the loop in [`run`] looks for has come: it shall not sleep on it.
    fn has_work(&self) -> bool {
        self.phase_over || self.all_up() && !self.told
    }
}

impl Simulator {
    fn all_up(&self) -> bool {
        self.figures.up == self.settings.names.len()
    }

    fn dial_more(&mut self, engine: &mut Engine) {
        self.started.get_or_insert(engine.now());
        while self.dialling < self.settings.at_once.max(1)
            && let Some(index) = self.waiting.pop_front()
        {
            match self.dial(engine) {
                Ok(link) => {
                    self.dialled[index] = engine.now();
                    self.links.insert(link, Tunnel { index, up: false });
                    self.dialling += 1;
                }
                Err(error) => {
                    tracing::warn!("cannot dial: {error:#}");
                    *self.figures.ended.entry("not-dialled").or_default() += 1;
                    self.again(engine, index);
                }
            }
        }
    }

    fn again(&mut self, engine: &mut Engine, index: usize) {
        if self.later.is_empty() {
            engine.set_timer(self.timers.again, engine.now() + AGAIN);
        }
        self.later.push(index);
    }

    fn on_ended(&mut self, engine: &mut Engine, link: Key, code: Code, text: &str) {
        let Some(tunnel) = self.links.remove(&link) else { return };
        tracing::debug!(mediator = %self.settings.names[tunnel.index], reason = code.word(), text, "tunnel ended");
        *self.figures.ended.entry(code.word()).or_default() += 1;
        if tunnel.up {
            self.figures.up -= 1;
        } else {
            self.dialling -= 1;
        }
        self.again(engine, tunnel.index);
        self.dial_more(engine);
    }
}

//! Many mediators in one process, on a few event loops: each is a real tunnel with its own keys and UDP
//! channels, made by the same engine as the mediator's. What they lend is an echo service.

mod channels;
mod echo;
mod part;
mod ports;
mod session;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use ipnet::Ipv4Net;
use isthmus_engine::{Control, Engine, Event, Key, TimerId};
use isthmus_proto::record::Tickets;
use isthmus_proto::time::Instant;
use isthmus_proto::{Code, MediatorId};
use isthmus_relay::trust::TokenKey;
use rustls::ClientConfig;

use crate::report::{Line, Samples};
use crate::usage;
use part::{Part, Told};

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
    /// Their source addresses, one after the other, where one has too few port numbers; `None` lets the system choose.
    pub sources: Option<Ipv4Net>,
    /// Fewest rings, each with a thread.
    pub rings: usize,
    /// UDP channels of each.
    pub udp_channels: u8,
    /// Whether their UDP channels are maintained as after everything was learned of their gateways, or as at first.
    pub learned: bool,
    /// Whether they keep the relay's tickets, which make the next handshake shorter.
    pub tickets: bool,
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
    /// The same from the first attempt that found a relay: without the wait for one, and the wait between attempts.
    pub found_up_after: Option<Duration>,
    /// When the last one was up.
    pub up_at: Option<SystemTime>,
    /// Welcomes that asked to leave UDP channels for later, since all were up the last time.
    pub channels_later: u64,
    /// From when these figures were told until the last of those channels is opened.
    pub channels_wait: Duration,
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
        if let Some(time) = self.found_up_after {
            line.add("found_up_s", format_args!("{:.3}", time.as_secs_f64()));
        }
        if let Some(at) = self.up_at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            line.add("up_at_s", format_args!("{:.3}", at.as_secs_f64()));
        }
        line.add("channels_later", self.channels_later);
        line.add("channels_wait_s", format_args!("{:.3}", self.channels_wait.as_secs_f64()));
        line.add_percentiles("handshake", &self.handshakes);
        line.add("requests", self.requests);
        line.add("refused", self.refused);
        for (word, count) in &self.ended {
            line.add(&format!("ended_{word}"), count);
        }
        line
    }
}

/// Wait before ended and failed ones dial again, all together: a real mediator's is up to ten times longer, and spread.
pub const AGAIN: Duration = Duration::from_millis(50);

/// Mediators of one ring: its table has room for as many sockets as the limit of descriptors allows a process, and
/// 20,000 is a usual one.
pub const PER_RING: usize = 16_000;

/// Descriptors beside the tunnels' own: ring, echo service, standard streams.
const DESCRIPTORS_BESIDE: u64 = 64;

const TIMER_AGAIN: u32 = 0;
const TIMER_PHASE: u32 = 1;
const TIMER_CHANNELS: u32 = 2;

/// Runs them, on a ring and a thread for each [`PER_RING`]. `told` gets the figures each time that all are up: at first,
/// and again when some had ended in between, since those are made anew as a mediator does. `run` returns the figures at
/// the end of the hold.
///
/// # Errors
/// Not all are up in time (with why), too few descriptors, no io_uring.
pub fn run(settings: Settings, mut told: impl FnMut(&mut Figures)) -> anyhow::Result<Figures> {
    // The tunnels' own sockets are in the rings' tables, but the sockets of UDP channels are not.
    let channels = settings.names.len() as u64 * u64::from(settings.udp_channels);
    // Former ones are closed after the turn that opens new ones in their place.
    let former = settings.at_once as u64 * u64::from(settings.udp_channels);
    usage::raise_descriptors(channels + former + settings.at_once as u64 + DESCRIPTORS_BESIDE)?;
    let mut services = echo::spawn().context("cannot start the echo service")?;
    if settings.answer == Answer::Sink {
        services.tcp = crate::peer::stream::spawn((Ipv4Addr::LOCALHOST, 0).into())?;
        services.udp = crate::peer::datagram::spawn((Ipv4Addr::LOCALHOST, 0).into())?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let hold = settings.hold;
    let parts = settings.parts();
    let mut latest: Vec<Option<Figures>> = vec![None; parts.len()];
    let (tell, letters) = mpsc::channel();
    let mut threads = Vec::new();
    let mut wakers = Vec::new();
    for (number, settings) in parts.into_iter().enumerate() {
        let (tell, stop) = (tell.clone(), stop.clone());
        let ended = tell.clone();
        let part =
            Part { settings, number, services, stop, tell: move |told| drop(tell.send(Letter::Told(number, told))) };
        let work = move || {
            let result = part.run();
            // Whoever listened has gone, and with it the need to know.
            let _ = ended.send(Letter::Ended(number, result.map(Box::new)));
        };
        threads.push(thread::Builder::new().name(format!("mediators-{number}")).spawn(work)?);
    }
    drop(tell);
    let mut deadline = None;
    let mut failure = None;
    while failure.is_none() {
        let letter =
            match deadline.map(|at: std::time::Instant| at.saturating_duration_since(std::time::Instant::now())) {
                None => letters.recv().ok(),
                Some(left) => letters.recv_timeout(left).ok(),
            };
        match letter {
            Some(Letter::Told(_, Told::Begun(waker))) => wakers.push(waker),
            Some(Letter::Told(number, Told::Up(figures))) => {
                latest[number] = Some(*figures);
                if latest.iter().all(Option::is_some) {
                    let mut all = Figures::sum(latest.iter().flatten());
                    told(&mut all);
                    deadline = deadline.or(hold.map(|hold| std::time::Instant::now() + hold));
                    // The next time tells of those parts again that lost some.
                    continue;
                }
            }
            Some(Letter::Ended(number, result)) => {
                failure = Some(result.err().unwrap_or_else(|| anyhow::anyhow!("thread {number} ended early")));
            }
            None => break,
        }
    }
    stop.store(true, Ordering::Release);
    wakers.iter().for_each(isthmus_ring::Waker::wake);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread of mediators panicked"))?;
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let ended = letters.try_iter().filter_map(|letter| match letter {
        Letter::Ended(_, result) => Some(result),
        Letter::Told(..) => None,
    });
    let figures: Vec<Box<Figures>> = ended.collect::<anyhow::Result<_>>()?;
    Ok(Figures::sum(figures.iter().map(|figures| &**figures)))
}

/// What the parts' threads send.
enum Letter {
    Told(usize, Told),
    Ended(usize, anyhow::Result<Box<Figures>>),
}

impl Settings {
    /// As many parts as it needs rings, of about the same size.
    fn parts(self) -> Vec<Self> {
        let count = self.names.len().div_ceil(PER_RING).max(self.rings).max(1);
        let size = self.names.len().div_ceil(count).max(1);
        let part = |names: &[MediatorId]| Self {
            names: names.to_vec(),
            at_once: self.at_once.div_ceil(count).max(1),
            ..self.clone()
        };
        self.names.chunks(size).map(part).collect()
    }
}

impl Figures {
    /// Of several parts together: the slowest one's time.
    fn sum<'a>(parts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for part in parts {
            sum.came_up += part.came_up;
            sum.up += part.up;
            sum.handshakes.merge(&part.handshakes);
            sum.all_up_after = sum.all_up_after.max(part.all_up_after);
            sum.found_up_after = sum.found_up_after.max(part.found_up_after);
            sum.up_at = sum.up_at.max(part.up_at);
            sum.channels_later += part.channels_later;
            sum.channels_wait = sum.channels_wait.max(part.channels_wait);
            for (&word, count) in &part.ended {
                *sum.ended.entry(word).or_default() += count;
            }
            sum.requests += part.requests;
            sum.refused += part.refused;
        }
        sum
    }
}

struct Timers {
    again: TimerId,
    phase: TimerId,
    channels: TimerId,
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
    /// The number of its first mediator among all, which chooses the source addresses.
    first: usize,
    /// When each was dialled last.
    dialled: Vec<Instant>,
    /// Of each, the token, which a mediator has in a file: made when it is needed first.
    tokens: Vec<Option<Box<str>>>,
    /// When the oldest of them can have been signed, in seconds of the system's clock.
    signed_since_s: u64,
    /// Of each, the last ticket; none where they keep none.
    tickets: Vec<Arc<Tickets>>,
    links: HashMap<Key, Tunnel>,
    ports: ports::Ports,
    timers: Timers,
    started: Option<Instant>,
    /// When the first attempt since then was begun that found a relay.
    found: Option<Instant>,
    /// UDP channels that are opened later, by when.
    unopened: channels::Unopened,
    /// That all were up, and when, is noted.
    noted: bool,
    /// It was told ever: at first all of a tunnel has to stand, since what is measured then needs it.
    told_before: bool,
    told: bool,
    phase_over: bool,
    stop: Arc<AtomicBool>,
    figures: Figures,
}

impl Control for Simulator {
    fn on_event(&mut self, engine: &mut Engine, event: Event<'_>) {
        match event {
            Event::Timer { number: TIMER_AGAIN } => {
                self.waiting.extend(self.later.drain(..));
                self.dial_more(engine);
            }
            Event::Timer { number: TIMER_CHANNELS } => self.open_later_channels(engine),
            Event::Timer { .. } => self.phase_over = true,
            Event::LinkReady { link } => {
                if let (None, Some(tunnel)) = (self.found, self.links.get(&link)) {
                    self.found = Some(self.dialled[tunnel.index]);
                }
                self.say_hello(engine, link);
            }
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
            | Event::Renew { .. }
            | Event::Asker { .. }
            | Event::Outcomes { .. }
            | Event::Query { .. }
            | Event::Visitor { .. }
            | Event::Host { .. }
            | Event::FlowFailed { .. }
            | Event::FlowEnded { .. }
            | Event::GuestBytes { .. }
            | Event::RequestName { .. }
            | Event::GuestEnded { .. }
            | Event::Stray { .. }
            | Event::ChannelsChanged { .. }
            | Event::Lifetime { .. }
            | Event::Watched { .. } => {}
        }
    }

    fn on_turn(&mut self, _engine: &mut Engine) {}

    /// What the loop in [`Part::run`] looks for has come: it shall not sleep on it.
    fn has_work(&self) -> bool {
        self.phase_over || self.stop.load(Ordering::Acquire) || self.is_to_be_noted() || self.is_to_be_told()
    }
}

impl Simulator {
    fn all_up(&self) -> bool {
        self.figures.up == self.settings.names.len()
    }

    fn is_to_be_noted(&self) -> bool {
        self.all_up() && !self.noted
    }

    fn is_to_be_told(&self) -> bool {
        self.all_up() && !self.told && (self.told_before || self.unopened.is_empty())
    }

    fn dial_more(&mut self, engine: &mut Engine) {
        if !self.all_up() {
            self.started.get_or_insert(engine.now());
        }
        while self.dialling < self.settings.at_once.max(1)
            && let Some(index) = self.waiting.pop_front()
        {
            match self.dial(engine, index) {
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
        self.unopened.forget(link);
        tracing::debug!(mediator = %self.settings.names[tunnel.index], reason = code.word(), text, "tunnel ended");
        *self.figures.ended.entry(code.word()).or_default() += 1;
        if tunnel.up {
            if self.all_up() {
                // All are up again later than now.
                self.started = Some(engine.now());
                self.found = None;
                (self.noted, self.told) = (false, false);
                self.figures.channels_later = 0;
            }
            self.figures.up -= 1;
        } else {
            self.dialling -= 1;
        }
        self.again(engine, tunnel.index);
        self.dial_more(engine);
    }
}

//! One thread's part of the mediators: a ring and an event loop of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use isthmus_engine::{Engine, EngineConfig};
use isthmus_proto::time::Instant;
use isthmus_ring::{Ring, RingConfig, Waker};

use super::{
    Figures, Settings, Simulator, TIMER_AGAIN, TIMER_CHANNELS, TIMER_PHASE, Timers, channels, echo, ports, session,
};

/// What a part is to do, and how it tells of itself.
pub(super) struct Part<T> {
    pub(super) settings: Settings,
    /// Its place among the parts.
    pub(super) number: usize,
    pub(super) services: echo::Services,
    /// Set, and the ring woken, when it shall end.
    pub(super) stop: Arc<AtomicBool>,
    pub(super) tell: T,
}

/// What a part tells while it runs.
pub(super) enum Told {
    /// Its ring stands.
    Begun(Waker),
    /// All of its tunnels are up: the first time, and again after some had ended.
    Up(Box<Figures>),
}

impl<T: Fn(Told)> Part<T> {
    /// Runs until it is stopped.
    ///
    /// # Errors
    /// Not all are up in time (with why), no io_uring.
    pub(super) fn run(self) -> anyhow::Result<Figures> {
        let Self { settings, number, services, stop, tell } = self;
        let mut engine = Engine::new(Ring::new(RingConfig::default())?, EngineConfig::default());
        tell(Told::Begun(engine.ring().waker()));
        let timers = Timers {
            again: engine.add_timer(TIMER_AGAIN),
            phase: engine.add_timer(TIMER_PHASE),
            channels: engine.add_timer(TIMER_CHANNELS),
        };
        let count = settings.names.len();
        let report = session::report()?;
        let mut simulator = Simulator {
            services,
            report,
            waiting: (0..count).collect(),
            later: Vec::new(),
            dialling: 0,
            first: number * count,
            dialled: vec![Instant::ZERO; count],
            tokens: vec![None; count],
            signed_since_s: 0,
            tickets: (0..if settings.tickets { count } else { 0 }).map(|_| Arc::default()).collect(),
            links: Default::default(),
            ports: ports::Ports::default(),
            timers,
            started: None,
            found: None,
            unopened: channels::Unopened::default(),
            noted: false,
            told_before: false,
            told: false,
            phase_over: false,
            stop,
            figures: Figures::default(),
            settings,
        };
        engine.set_timer(simulator.timers.again, engine.now());
        engine.set_timer(simulator.timers.phase, engine.now() + simulator.settings.patience);
        while !simulator.stopped() {
            engine.turn(&mut simulator).context("the ring failed")?;
            anyhow::ensure!(!simulator.phase_over, "not all are up in time: {}", simulator.figures.line());
            if simulator.is_to_be_noted() {
                simulator.noted = true;
                let started = simulator.started.take();
                simulator.figures.all_up_after = started.map(|started| engine.now().since(started));
                simulator.figures.found_up_after = simulator.found.map(|found| engine.now().since(found));
                simulator.figures.up_at = Some(SystemTime::now());
            }
            if simulator.is_to_be_told() {
                (simulator.told, simulator.told_before) = (true, true);
                engine.remove_timer(simulator.timers.phase);
                simulator.figures.channels_wait =
                    simulator.unopened.last().map_or(Duration::ZERO, |at| at.since(engine.now()));
                tell(Told::Up(Box::new(simulator.figures.clone())));
            }
        }
        Ok(simulator.figures)
    }
}

impl Simulator {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

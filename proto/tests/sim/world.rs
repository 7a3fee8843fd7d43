//! Virtual time: what comes next happens, then the oracle looks at it.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_proto::link::{ChannelClock, Slot};
use isthmus_proto::wire::{Frame, HEADER_LEN, read_header};
use isthmus_proto::{Code, Instant};

use crate::end::{DEAD, End, INTERVAL, SILENCE, pair};
use crate::oracle::{Oracle, Tally};
use crate::path::{Air, Pipe, Weather};
use crate::plan::{ACTIVE_MS, Plan, Reading, Stream, Talk, Via};
use crate::rng::Rng;

/// The two ends' numbers.
pub(crate) const REQUESTER: usize = 0;
pub(crate) const RESPONDER: usize = 1;

/// Everything must have come to rest by then.
const PATIENCE_MS: u64 = 120_000;

/// A run takes some tens of thousands.
const STEPS_MAX: u32 = 2_000_000;

const MS: u64 = 1_000_000;

/// What the script or a host does at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Timer {
    Start(usize),
    /// The destination answers the connect with that number.
    Answered(usize, u16),
    Read(usize, usize),
    Reset(usize, usize),
    Close(usize),
    Send(usize, usize, usize),
    Switch(usize, bool),
    Heal,
    Cut,
}

/// What the hosts and drivers of one conversation know.
pub(crate) struct State {
    pub(crate) slot: [Option<Slot>; 2],
    /// May send.
    pub(crate) active: [bool; 2],
    pub(crate) finished: [bool; 2],
    /// Frame bytes that wait in the link.
    pub(crate) queued: [u64; 2],
    pub(crate) closed: bool,
    pub(crate) redirected: [bool; 2],
    /// The datagram whose parts are coming in.
    pub(crate) partial: [Option<(u64, Vec<u8>)>; 2],
    pub(crate) begun: bool,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) ends: [End; 2],
    pub(crate) oracle: Oracle,
    pub(crate) states: Vec<State>,
    pub(crate) weather: Weather,
    /// Towards the end of that number.
    pub(crate) airs: [Air; 2],
    /// Inner datagrams that wait for the end of this step.
    pub(crate) batch: [Vec<u8>; 2],
    pub(crate) clock: ChannelClock,
    pub(crate) channel_heard: Option<Instant>,
    pipes: [Pipe; 2],
    timers: BTreeMap<(u64, u64), Timer>,
    timer_count: u64,
    /// When each driver looks at its link's deadline, as the contract lets it: when the old one has come.
    look_at: [Instant; 2],
    died_at: [Option<Instant>; 2],
    cut_at: Option<Instant>,
}

impl World {
    pub(crate) fn new(seed: u64, cut: bool) -> Self {
        let mut rng = Rng(seed);
        let plan = Plan::new(&mut rng, cut);
        let ends = pair(plan.tls);
        let states = plan.talks.iter().map(|_| State {
            slot: [None; 2],
            active: [false; 2],
            finished: [false; 2],
            queued: [0; 2],
            closed: false,
            redirected: [false; 2],
            partial: [None, None],
            begun: false,
        });
        let states = states.collect();
        let look_at = [ends[0].link.deadline(), ends[1].link.deadline()];
        let mut world = Self {
            now: Instant::ZERO,
            rng,
            weather: plan.weather,
            ends,
            states,
            oracle: Oracle::default(),
            airs: Default::default(),
            batch: Default::default(),
            clock: ChannelClock::new(Duration::from_millis(800), DEAD),
            channel_heard: None,
            pipes: Default::default(),
            timers: BTreeMap::new(),
            timer_count: 0,
            look_at,
            died_at: [None; 2],
            cut_at: None,
            plan,
        };
        world.set_script();
        world
    }

    fn set_script(&mut self) {
        for talk in 0..self.plan.talks.len() {
            let (start, close_at) = match &self.plan.talks[talk] {
                Talk::Stream(stream) => (stream.start, stream.close_at),
                Talk::Server { start, close_at } => (*start, Some(*close_at)),
                Talk::Udp(udp) => (udp.start, udp.close_at),
            };
            self.at_ms(start, Timer::Start(talk));
            if let Some(at) = close_at {
                self.at_ms(at, Timer::Close(talk));
            }
            match self.plan.talks[talk].clone() {
                Talk::Server { .. } => {}
                Talk::Stream(stream) => {
                    for (end, side) in stream.sides.iter().enumerate() {
                        if let Some(at) = side.reset_at {
                            self.at_ms(at, Timer::Reset(talk, end));
                        }
                        if let Reading::Slow { every, .. } = side.reading {
                            self.at_ms(every, Timer::Read(talk, end));
                        }
                    }
                }
                Talk::Udp(udp) => {
                    for (end, sends) in udp.sends.iter().enumerate() {
                        for (number, &(at, _)) in sends.iter().enumerate() {
                            self.at_ms(at, Timer::Send(talk, end, number));
                        }
                    }
                    for &(at, redirect) in &udp.switches {
                        self.at_ms(at, Timer::Switch(talk, redirect));
                    }
                }
            }
        }
        match self.plan.cut_at {
            Some(at) => self.at_ms(at, Timer::Cut),
            None => self.at_ms(ACTIVE_MS, Timer::Heal),
        }
    }

    fn at_ms(&mut self, ms: u64, timer: Timer) {
        self.timer_count += 1;
        self.timers.insert((ms * MS, self.timer_count), timer);
    }

    pub(crate) fn after_ms(&mut self, ms: u64, timer: Timer) {
        self.at_ms(self.now.0 / MS + ms, timer);
    }

    pub(crate) fn ms(&self) -> u64 {
        self.now.0 / MS
    }

    /// Goes on to what comes next, until `done`.
    fn run(&mut self, done: impl Fn(&Self) -> bool) {
        for step in 0.. {
            if done(self) {
                return;
            }
            assert!(step < STEPS_MAX, "time stands still at {} ms: {}", self.ms(), self.describe());
            assert!(self.ms() < PATIENCE_MS, "it does not converge: {}", self.describe());
            self.step();
        }
    }

    fn step(&mut self) {
        let timers = self.timers.first_key_value().map(|(&(at, _), _)| at);
        let arrivals = self.pipes.iter().map(Pipe::next_at).chain(self.airs.iter().map(Air::next_at));
        let looks = (0..2).filter(|&end| self.died_at[end].is_none()).map(|end| Some(self.look_at[end].0));
        let next = arrivals.chain(looks).chain([timers, Some(self.clock.deadline().0)]).flatten().min();
        self.now = self.now.max(Instant(next.unwrap()));
        while let Some(first) = self.timers.first_entry().filter(|first| first.key().0 <= self.now.0) {
            let timer = first.remove();
            self.on_timer(timer);
        }
        for end in 0..2 {
            self.receive(end);
            self.receive_datagrams(end);
            self.look(end);
        }
        self.tend_channel();
        for end in 0..2 {
            if self.died_at[end].is_none() {
                // What is sent makes room for more.
                while self.write_streams(end) {
                    self.transmit(end);
                }
                self.flush_channel(end);
                self.transmit(end);
            }
        }
        self.check();
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Start(talk) => self.start(talk),
            Timer::Answered(talk, request) => self.answered(talk, request),
            Timer::Read(talk, end) => self.read_slowly(talk, end),
            Timer::Reset(talk, end) => self.reset(talk, end),
            Timer::Close(talk) => self.close(talk),
            Timer::Send(talk, end, number) => self.send_datagram(talk, end, number),
            Timer::Switch(talk, redirect) => self.switch(talk, redirect),
            Timer::Heal => {
                self.weather = Weather { lost: 0, doubled: 0, damaged: 0, jitter: 0, ..self.weather };
            }
            Timer::Cut => {
                self.cut_at = Some(self.now);
                for end in 0..2 {
                    self.pipes[end].cut(&mut self.rng);
                    self.airs[end].cut();
                }
            }
        }
    }

    /// Takes what has arrived at `end`, in pieces of any size.
    fn receive(&mut self, end: usize) {
        loop {
            let most = 1 + self.rng.below(self.plan.chunk as u64) as usize;
            let bytes = self.pipes[end].read(self.now.0, most);
            if bytes.is_empty() {
                return;
            }
            if self.died_at[end].is_some() {
                continue;
            }
            self.ends[end].feed(&bytes);
            while let Some(plaintext) = self.ends[end].next_record() {
                self.oracle.received(end, &plaintext);
                let mut rest = &plaintext[..];
                while !rest.is_empty() {
                    let header = read_header(rest).unwrap();
                    let (payload, next) = rest[HEADER_LEN..].split_at(usize::from(header.len));
                    let frame = Frame::decode(header, payload).unwrap();
                    let input = self.ends[end].link.receive(frame, self.now).unwrap();
                    self.on_input(end, input, payload);
                    rest = next;
                }
            }
        }
    }

    fn transmit(&mut self, end: usize) {
        while self.pipes[1 - end].in_flight() < self.plan.in_flight_max {
            let Some(filled) = self.ends[end].fill(&mut self.rng) else { return };
            for (owner, len) in filled.taken {
                self.states[owner as usize - 1].queued[end] -= len as u64;
            }
            self.oracle.sent(end, &filled.plaintext);
            let at = self.now.0 + self.weather.delay + self.rng.below(self.weather.jitter + 1);
            self.pipes[1 - end].write(filled.wire, at);
        }
    }

    fn look(&mut self, end: usize) {
        if self.died_at[end].is_some() || self.now < self.look_at[end] {
            return;
        }
        match self.ends[end].link.on_deadline(self.now) {
            Ok(()) => self.look_at[end] = self.ends[end].link.deadline(),
            Err(code) => {
                assert_eq!((code, self.cut_at.is_some()), (Code::Silent, true), "{end} gave up at {} ms", self.ms());
                self.died_at[end] = Some(self.now);
            }
        }
    }

    fn check(&mut self) {
        for end in 0..2 {
            let mut unread = 0;
            for talk in 0..self.states.len() {
                let half = self.oracle.half(talk, 1 - end);
                unread += half.read - half.consumed;
                let Some(slot) = self.states[talk].slot[end] else { continue };
                if self.ends[end].link.owner(slot).is_none() {
                    assert!(self.oracle.both_ended(talk, end), "the port of talk {talk} vanished at {end}");
                    self.gone(talk, end);
                }
            }
            let link = &self.ends[end].link;
            self.oracle.check(end, link.ports(), unread);
            assert!(!link.is_overrun());
        }
    }

    pub(crate) fn created(&mut self, talk: usize, end: usize, slot: Slot) {
        self.states[talk].slot[end] = Some(slot);
        self.states[talk].begun = true;
        self.oracle.created(end);
    }

    pub(crate) fn gone(&mut self, talk: usize, end: usize) {
        if self.states[talk].slot[end].take().is_some() {
            self.states[talk].active[end] = false;
            self.oracle.gone(end);
        }
    }

    /// Faults, then none: everything must come to its end, but for what a host stalls; then that, too.
    pub(crate) fn run_and_heal(mut self) -> Tally {
        self.run(|world| {
            world.ms() > ACTIVE_MS + 100 && world.unfinished().is_empty() && world.ends.iter().all(End::is_idle)
        });
        for talk in 0..self.plan.talks.len() {
            match &self.plan.talks[talk] {
                Talk::Stream(stream) if stream.is_stalled() => {
                    let at = stream.sides.iter().position(|side| side.reading == Reading::Stalled).unwrap();
                    self.oracle.check_stalled(talk, 1 - at);
                    self.reset(talk, at);
                }
                Talk::Stream(_) | Talk::Server { .. } => {}
                Talk::Udp(udp) => {
                    if udp.close_at.is_none() {
                        self.oracle.check_datagrams(talk);
                    }
                    self.close(talk);
                }
            }
        }
        let settled = self.ms() + 5000;
        self.run(|world| world.ms() > settled && world.pipes.iter().all(|pipe| pipe.in_flight() == 0));
        for end in &self.ends {
            assert_eq!((end.link.ports(), end.link.queued(), end.is_idle()), (0, 0, true));
            assert_eq!(end.link.live().count(), 0);
        }
        assert!(self.clock.is_live(self.now), "the UDP channel works again");
        let rtt = self.ends[RESPONDER].link.rtt().expect("a round trip was measured").as_nanos() as u64;
        // A ping may wait for room behind others' bytes, for one round trip each way.
        let most = 4 * (self.plan.weather.delay + self.plan.weather.jitter) + MS;
        assert!((2 * self.weather.delay..=most).contains(&rtt), "{rtt} ns is no round trip of this path");
        self.oracle.tally
    }

    /// The path fails for good: each end notices in time, and what it has got is true.
    pub(crate) fn run_and_cut(mut self) -> Tally {
        self.run(|world| world.died_at.iter().all(Option::is_some));
        let cut = self.cut_at.unwrap();
        let after = |end: usize| self.died_at[end].unwrap().since(cut);
        let way = Duration::from_nanos(self.plan.weather.delay + self.plan.weather.jitter);
        assert!(after(RESPONDER) <= INTERVAL + DEAD + way, "the caller noticed after {:?}", after(RESPONDER));
        // The ping that nothing answered may be older than the cut: it and its echo wait for room, one way each.
        assert!(after(RESPONDER) + 4 * way >= DEAD, "the caller gave up {:?} after the cut", after(RESPONDER));
        assert!(after(REQUESTER) <= SILENCE + way, "the relay noticed after {:?}", after(REQUESTER));
        assert!(after(REQUESTER) + INTERVAL + way >= SILENCE, "the relay gave up {:?}", after(REQUESTER));
        for end in &self.ends {
            assert_eq!(end.link.live().count(), end.link.ports(), "all ports can be told of the end");
        }
        self.now = self.now.max(cut + Duration::from_millis(800) + DEAD + way);
        assert!(!self.clock.is_live(self.now), "the UDP channel is dead, too");
        self.oracle.tally
    }

    fn describe(&self) -> String {
        let mut text = format!("{:#?}", self.unfinished());
        for (end, pipe) in self.ends.iter().zip(&self.pipes) {
            let (idle, queued, ports) = (end.is_idle(), end.link.queued(), end.link.ports());
            text += &format!("\nidle: {idle}, {queued} queued, {ports} ports, {} in flight", pipe.in_flight());
        }
        text
    }

    /// Conversations that have not come to where they should.
    fn unfinished(&self) -> Vec<String> {
        let is_unfinished = |&talk: &usize| match &self.plan.talks[talk] {
            Talk::Stream(stream) => !self.has_stream_ended(talk, stream),
            Talk::Server { .. } => !self.has_gone(talk),
            Talk::Udp(udp) if udp.close_at.is_some() => !self.has_gone(talk),
            Talk::Udp(_) => (0..2).any(|from| self.oracle.peek(talk, from).is_some_and(|half| !half.by_tcp.is_empty())),
        };
        (0..self.plan.talks.len())
            .filter(is_unfinished)
            .map(|talk| format!("talk {talk}: {:?}, {:?}", self.states[talk].slot, self.plan.talks[talk]))
            .collect()
    }

    fn has_gone(&self, talk: usize) -> bool {
        self.states[talk].slot == [None; 2]
    }

    fn has_stream_ended(&self, talk: usize, stream: &Stream) -> bool {
        let completed = |from: usize| {
            let half = self.oracle.peek(talk, from);
            half.is_some_and(|half| half.saw_fin && half.consumed == half.read)
        };
        let is_late = matches!(stream.via, Via::Accepted { .. }) && !self.states[talk].begun;
        if is_late || self.oracle.is_cut(talk) {
            self.has_gone(talk)
        } else if stream.should_complete() {
            let stalls = |end: usize| stream.sides[end].reading == Reading::Stalled;
            (0..2).all(|from| stalls(1 - from) || completed(from)) && (stream.is_stalled() || self.has_gone(talk))
        } else {
            self.has_gone(talk)
        }
    }
}

//! Maintain packets, and when silence means death: of a TCP channel ([`Pulse`]) and of one UDP
//! channel ([`ChannelClock`]).

use std::time::Duration;

use crate::code::Code;
use crate::time::Instant;
use crate::wire::{ControlBuf, Frame};

/// Who maintains the TCP channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintain {
    /// The caller: a ping each `interval`; dead when one is unanswered for `dead`.
    Caller {
        /// Between pings.
        interval: Duration,
        /// From a ping without any answer to the end.
        dead: Duration,
    },
    /// The relay: it only listens, so that an idle tunnel costs it one timer; dead after `silence`.
    Relay {
        /// From the last thing heard to the end.
        silence: Duration,
    },
}

/// How often a busy link measures its round trip.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// Of the pings of an idle link whose acknowledgements are watched, each so-many-th asks for an echo.
const ECHO_EACH: u8 = 3;

/// What a maintain packet carries that asks for nothing: no ping's time, so that nobody takes it for an echo.
const UNASKED: u64 = u64::MAX;

/// No time at which anything is sent.
const NEVER: Instant = Instant(u64::MAX);

/// Small, since there is one for each idle tunnel: times that may be missing are [`NEVER`] then.
pub(super) struct Pulse {
    last_heard: Instant,
    last_ping: Instant,
    /// The ping that nothing was heard since.
    unanswered: Instant,
    /// The caller's interval; zero marks the relay's end.
    interval_ms: u32,
    /// The caller's dead time, or the relay's silence.
    dead_ms: u32,
    /// Smoothed, in microseconds; zero before it was measured.
    rtt_us: u32,
    /// About the smallest of late, likewise: the path's own, without what waits on it.
    rtt_min_us: u32,
    /// Whether the last ping's own echo is missing.
    echo_due: bool,
    /// Whether what is sent and stays unacknowledged for the dead time ends the connection.
    watched: bool,
    /// Maintain packets since the last that asked for an echo.
    unasked: u8,
}

impl Pulse {
    pub(super) fn new(maintain: Maintain, now: Instant) -> Self {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let (interval_ms, dead_ms) = match maintain {
            Maintain::Caller { interval, dead } => (millis(interval).max(1), millis(dead)),
            Maintain::Relay { silence } => (0, millis(silence)),
        };
        // A caller's first one waits as well, half as long: its greeting has just been on its way, but the relay's patience
        // began earlier than here.
        let before = Instant(now.0.saturating_sub(u64::from(interval_ms) * 500_000));
        let (last_ping, unasked) = if interval_ms > 0 { (before, ECHO_EACH - 1) } else { (NEVER, 0) };
        Self {
            last_heard: now,
            last_ping,
            unanswered: NEVER,
            interval_ms,
            dead_ms,
            rtt_us: 0,
            rtt_min_us: 0,
            echo_due: false,
            watched: false,
            unasked,
        }
    }

    pub(super) fn watch_acknowledgements(&mut self) {
        self.watched = true;
    }

    fn maintain(&self) -> Maintain {
        let millis = |ms: u32| Duration::from_millis(u64::from(ms));
        match self.interval_ms {
            0 => Maintain::Relay { silence: millis(self.dead_ms) },
            interval => Maintain::Caller { interval: millis(interval), dead: millis(self.dead_ms) },
        }
    }

    fn last_ping(&self) -> Option<Instant> {
        (self.last_ping != NEVER).then_some(self.last_ping)
    }

    fn unanswered(&self) -> Option<Instant> {
        (self.unanswered != NEVER).then_some(self.unanswered)
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        (self.rtt_us > 0).then(|| Duration::from_micros(u64::from(self.rtt_us)))
    }

    pub(super) fn rtt_min(&self) -> Option<Duration> {
        (self.rtt_min_us > 0).then(|| Duration::from_micros(u64::from(self.rtt_min_us)))
    }

    pub(super) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.unanswered = NEVER;
    }

    /// An echo came; how long it took. One that is not of our last ping is passed over.
    pub(super) fn pong(&mut self, opaque: u64, now: Instant) -> Option<Duration> {
        if self.echo_due && self.last_ping().is_some_and(|sent| sent.0 == opaque) {
            self.echo_due = false;
            let sample = now.since(Instant(opaque));
            let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1);
            // RFC 6298's gain.
            self.rtt_us = micros(self.rtt().map_or(sample, |rtt| (rtt * 7 + sample) / 8));
            // A path that has become longer is found so after a while.
            self.rtt_min_us = match self.rtt_min_us {
                0 => micros(sample),
                min => micros(sample).min(min.saturating_add(min / 8 + 1)),
            };
            return Some(sample);
        }
        None
    }

    /// Bytes flow: measure the round trip now and then. Never while an echo is missing: on a path longer
    /// than the interval, each ping would make the echo before it worthless.
    pub(super) fn sample(&mut self, now: Instant, control: &mut ControlBuf) {
        let due = self.rtt_us == 0 || self.last_ping().is_none_or(|sent| now.since(sent) >= SAMPLE_INTERVAL);
        if !self.echo_due && due {
            self.ping(now, control);
        }
    }

    /// The other end asks: a link that carries nothing has its round trip measured as well, with the answer.
    pub(super) fn measure_once(&mut self, now: Instant, control: &mut ControlBuf) {
        if self.last_ping == NEVER {
            self.sample(now, control);
        }
    }

    fn ping(&mut self, now: Instant, control: &mut ControlBuf) {
        control.push(&Frame::Ping { opaque: now.0 });
        self.last_ping = now;
        self.echo_due = true;
        self.unasked = 0;
        self.unanswered = self.unanswered().unwrap_or(now);
    }

    /// Keeps the channel alive: by an unasked echo where acknowledgements tell of a dead path, which costs the other end
    /// no answer; by a ping now and then, since a path may acknowledge what the other end never reads.
    fn maintain_channel(&mut self, now: Instant, control: &mut ControlBuf) {
        if !self.watched || self.unanswered().is_some() || self.unasked + 1 >= ECHO_EACH {
            return self.ping(now, control);
        }
        control.push(&Frame::Pong { opaque: UNASKED });
        self.last_ping = now;
        self.echo_due = false;
        self.unasked += 1;
    }

    pub(super) fn deadline(&self) -> Instant {
        match self.maintain() {
            Maintain::Caller { interval, dead } => {
                let next = self.last_ping().map_or(Instant::ZERO, |sent| sent + interval);
                self.unanswered().map_or(next, |sent| next.min(sent + dead))
            }
            Maintain::Relay { silence } => self.last_heard + silence,
        }
    }

    pub(super) fn on_deadline(&mut self, now: Instant, control: &mut ControlBuf) -> Result<(), Code> {
        match self.maintain() {
            Maintain::Caller { interval, dead } => {
                if self.unanswered().is_some_and(|sent| now >= sent + dead) {
                    return Err(Code::Silent);
                }
                if self.last_ping().is_none_or(|sent| now >= sent + interval) {
                    self.maintain_channel(now, control);
                }
            }
            Maintain::Relay { silence } => {
                if now >= self.last_heard + silence {
                    return Err(Code::Silent);
                }
            }
        }
        Ok(())
    }
}

/// What a UDP channel's clock asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelAction {
    /// Nothing before [`ChannelClock::deadline`].
    Wait,
    /// Send a maintain packet.
    Ping,
}

/// The maintaining end of one UDP channel. It pings each start interval while payload travels, and while the channel
/// is young; each period, which may be learned ([`super::Lifetime`]), while it rests; and each [`PROBE_INTERVAL`] while
/// an answer is missing, so that one lost packet is no death and a channel that comes back is found soon.
#[derive(Clone, Copy, Debug)]
pub struct ChannelClock {
    start: Duration,
    period: Duration,
    dead: Duration,
    /// From the last ping to the next.
    wait: Duration,
    last_ping: Option<Instant>,
    last_heard: Option<Instant>,
    last_used: Option<Instant>,
    /// The first ping that nothing was heard since.
    unanswered: Option<Instant>,
    /// Pings that were answered, up to [`GROWN`].
    age: u8,
}

/// Interval of pings while a channel does not answer.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Gateways hold a binding for long only when it was used for a while: so many pings were answered before the period counts.
const GROWN: u8 = 2;

/// Waits are shorter by up to this part, so that very many callers do not ping together.
const JITTER: u32 = 10;

impl ChannelClock {
    /// A channel that is not known to work yet; the first ping is due at once.
    pub fn new(start: Duration, dead: Duration) -> Self {
        Self {
            start,
            period: start,
            dead,
            wait: start,
            last_ping: None,
            last_heard: None,
            last_used: None,
            unanswered: None,
            age: 0,
        }
    }

    /// How far apart pings are while it rests; never less than the start interval. It holds from the next ping on,
    /// but for a shorter one, which holds at once.
    pub fn set_period(&mut self, period: Duration) {
        self.period = period.max(self.start);
        self.wait = self.wait.min(self.period);
    }

    /// Something authentic came.
    pub fn heard(&mut self, now: Instant) {
        self.last_heard = Some(now);
        if self.unanswered.take().is_some() {
            self.age = (self.age + 1).min(GROWN);
        }
    }

    /// Payload travels on it, in either direction. `true` if the deadline is earlier now.
    pub fn used(&mut self, now: Instant) -> bool {
        self.last_used = Some(now);
        let shorter = self.wait > self.start;
        self.wait = self.wait.min(self.start);
        shorter
    }

    /// Whether the channel answers: heard ever, and no ping unanswered for the dead time.
    pub fn is_live(&self, now: Instant) -> bool {
        self.last_heard.is_some() && self.unanswered.is_none_or(|sent| now.since(sent) < self.dead)
    }

    /// The time to call [`ChannelClock::on_deadline`].
    pub fn deadline(&self) -> Instant {
        let wait = if self.unanswered.is_some() { self.start.min(PROBE_INTERVAL) } else { self.wait };
        self.last_ping.map_or(Instant::ZERO, |sent| sent + wait)
    }

    /// What to do now.
    pub fn on_deadline(&mut self, now: Instant) -> ChannelAction {
        if now < self.deadline() {
            return ChannelAction::Wait;
        }
        if now.since(*self.unanswered.get_or_insert(now)) >= self.dead {
            self.age = 0;
        }
        self.last_ping = Some(now);
        let in_use = self.last_used.is_some_and(|used| now.since(used) < self.start);
        self.wait = if self.age < GROWN || in_use { self.start } else { self.jittered(now) };
        ChannelAction::Ping
    }

    /// Silence from the last ping on after which the other end may take the channel for dead.
    pub fn silence(&self) -> Duration {
        self.wait + self.dead
    }

    /// The period, less a part that is as good as random: the lower bits of the time.
    fn jittered(&self, now: Instant) -> Duration {
        if self.period == self.start {
            return self.start;
        }
        let part = (now.0 >> 10) as u32 % 256;
        (self.period - self.period / JITTER * part / 256).max(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(8);
    const DEAD: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn an_answered_channel_pings_each_interval_and_a_silent_one_each_second() {
        let mut clock = ChannelClock::new(INTERVAL, DEAD);
        assert_eq!(clock.on_deadline(at(100)), ChannelAction::Ping);
        assert_eq!(clock.deadline(), at(101));
        clock.heard(at(100));
        assert_eq!(clock.deadline(), at(108));
        assert_eq!(clock.on_deadline(at(107)), ChannelAction::Wait);
        assert_eq!(clock.on_deadline(at(108)), ChannelAction::Ping);
        assert_eq!(clock.on_deadline(at(109)), ChannelAction::Ping);
        assert!(clock.is_live(at(117)));
        assert!(!clock.is_live(at(118)), "dead ten seconds after the first unanswered ping");
        clock.heard(at(119));
        assert!(clock.is_live(at(119)));
    }

    #[test]
    fn a_resting_channel_pings_each_period_and_a_used_one_as_at_the_start() {
        let period = Duration::from_secs(80);
        let mut clock = ChannelClock::new(INTERVAL, DEAD);
        clock.set_period(period);
        for ping in [100, 108] {
            assert_eq!(clock.on_deadline(at(ping)), ChannelAction::Ping);
            assert_eq!(clock.silence(), INTERVAL + DEAD, "a young binding is not relied on");
            clock.heard(at(ping));
        }
        assert_eq!(clock.on_deadline(at(116)), ChannelAction::Ping);
        clock.heard(at(116));
        let next = clock.deadline();
        assert!(next > at(116 + 71) && next <= at(116 + 80), "{next:?}");
        assert!(clock.silence() >= next.since(at(116)) + DEAD);
        // Payload: a dead channel would be noticed as soon as ever.
        assert!(clock.used(at(150)) && !clock.used(at(151)));
        assert_eq!(clock.on_deadline(at(151)), ChannelAction::Ping);
        assert_eq!(clock.silence(), INTERVAL + DEAD);
        clock.heard(at(151));
        assert_eq!(clock.on_deadline(at(159)), ChannelAction::Ping);
        clock.heard(at(159));
        assert!(clock.deadline() > at(159 + 71), "it rests again");
        clock.set_period(INTERVAL);
        assert_eq!(clock.deadline(), at(167), "what was learned is forgotten at once");
    }

    #[test]
    fn a_silent_relay_is_dead_after_the_dead_time_and_not_before() {
        let mut control = ControlBuf::default();
        let mut pulse = Pulse::new(Maintain::Caller { interval: INTERVAL, dead: DEAD }, at(100));
        assert_eq!(pulse.deadline(), at(104), "the greeting has just passed");
        assert_eq!(pulse.on_deadline(at(103), &mut control), Ok(()));
        assert!(control.is_empty());
        assert_eq!(pulse.on_deadline(at(104), &mut control), Ok(()));
        assert!(!control.is_empty());
        assert_eq!(pulse.on_deadline(at(113), &mut control), Ok(()));
        assert_eq!(pulse.on_deadline(at(114), &mut control), Err(Code::Silent));
    }

    #[test]
    fn with_watched_acknowledgements_each_third_maintain_packet_asks_for_an_echo() {
        let mut pulse = Pulse::new(Maintain::Caller { interval: INTERVAL, dead: DEAD }, at(0));
        pulse.watch_acknowledgements();
        let mut asked = Vec::new();
        for ping in 1..8 {
            let mut control = ControlBuf::default();
            let now = at(8 * ping);
            assert_eq!(pulse.on_deadline(now, &mut control), Ok(()));
            assert!(!control.is_empty(), "each keeps the channel alive");
            let mut ping = ControlBuf::default();
            ping.push(&Frame::Ping { opaque: now.0 });
            asked.push(control.take(64) == ping.take(64));
            if asked.last() == Some(&true) {
                assert_eq!(pulse.deadline(), now + INTERVAL.min(DEAD));
                pulse.heard(now);
            }
        }
        assert_eq!(asked, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn a_ping_without_an_answer_ends_a_watched_link_as_well() {
        let mut control = ControlBuf::default();
        let mut pulse = Pulse::new(Maintain::Caller { interval: INTERVAL, dead: DEAD }, at(0));
        pulse.watch_acknowledgements();
        assert_eq!(pulse.on_deadline(at(8), &mut control), Ok(()));
        assert_eq!(pulse.on_deadline(at(16), &mut control), Ok(()));
        assert_eq!(pulse.on_deadline(at(18), &mut control), Err(Code::Silent));
    }

    #[test]
    fn a_listening_relay_sends_nothing_and_ends_after_silence() {
        let mut control = ControlBuf::default();
        let mut pulse = Pulse::new(Maintain::Relay { silence: DEAD }, at(0));
        assert_eq!(pulse.on_deadline(at(9), &mut control), Ok(()));
        pulse.heard(at(5));
        assert_eq!(pulse.on_deadline(at(14), &mut control), Ok(()));
        assert_eq!(pulse.on_deadline(at(15), &mut control), Err(Code::Silent));
        assert!(control.is_empty());
    }

    #[test]
    fn only_the_last_pings_echo_is_a_sample() {
        let mut control = ControlBuf::default();
        let mut pulse = Pulse::new(Maintain::Relay { silence: DEAD }, at(0));
        pulse.sample(at(3), &mut control);
        pulse.pong(at(1).0, at(4));
        assert_eq!(pulse.rtt(), None);
        pulse.pong(at(3).0, at(4));
        assert_eq!(pulse.rtt(), Some(Duration::from_secs(1)));
    }
}

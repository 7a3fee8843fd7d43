//! Datagrams at a paced rate, and their echoes: loss, round trips, and CPU time a datagram.
//!
//! An open loop: each datagram has its time by the rate alone, and its round trip begins then, however late it is sent. What
//! is left out since it came much too late is counted.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_ring::{Completion, Piece, Ring, Socket};

use crate::load::own::{LATE_SHARE_MAX, Own, prompt_waits};
use crate::peer::datagram::{ring, socket};
use crate::report::{Line, Samples};
use crate::usage::{self, Usage, Watched};

/// What to send.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Echo servers, or what leads to them, at least one; the flows take turns.
    pub to: Vec<SocketAddr>,
    /// Payload bytes of each datagram, from [`STAMP`] to 65,507.
    pub size: usize,
    /// Sockets, which a relay takes for as many visitors; from 1 to [`FLOWS_MAX`].
    pub flows: usize,
    /// The first flow's own port number, and those of the others after it; `None` for any. A load that comes again from the
    /// same numbers has the flows that it had: a relay keeps them for a minute, and has room for so many.
    pub from_port: Option<u16>,
    /// Datagrams of one send call (`UDP_SEGMENT`); 1 for each by itself, as from many machines.
    pub batch: usize,
    /// Time of the measured run.
    pub measured: Duration,
    /// Processes whose CPU time is wanted.
    pub watched: Vec<Watched>,
}

/// What a datagram begins with: number of the run, nanoseconds from the start until it was due.
pub const STAMP: usize = 16;

/// Time between looks at what is due where that is more than twice as often: several datagrams go out at a time then.
const TICK: Duration = Duration::from_micros(100);

/// A datagram that is sent so long after it was due is late by our own fault.
const LATE: Duration = Duration::from_millis(1);

/// Time behind schedule that is not made up for; what was due in it is counted ([`Outcome::omitted`]).
const LATE_MAX: Duration = Duration::from_millis(20);

/// How long echoes may take after the last datagram of a run.
const DRAIN: Duration = Duration::from_millis(250);

/// How long a flow may take until its first echo; the first datagrams may be lost where a flow is set up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Share of the wanted rate that must really have been sent: below it, the load is at its own end.
pub const SENT_MIN: f64 = 0.95;

/// Sends in the kernel's hands at once.
const SENDS_MAX: usize = 2048;

/// Most sockets.
pub const FLOWS_MAX: usize = 19_000;

/// Flows that wait for their first echo at once: a relay does more for a new flow than for a datagram.
const BEGUN_AT_ONCE: usize = 256;

/// Descriptors beside the flows' own.
const DESCRIPTORS_BESIDE: u64 = 64;

/// One run's figures.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Datagrams sent.
    pub sent: u64,
    /// Echoes that came back.
    pub echoed: u64,
    /// Of those sent, how many were late by our own fault.
    pub late: u64,
    /// Datagrams that were due and not sent, since the load came too late.
    pub omitted: u64,
    /// Time of sending.
    pub time: Duration,
    /// From when a datagram was due until its echo.
    pub round_trips: Samples,
}

impl Outcome {
    /// Share of the datagrams without an echo, 0 to 1.
    pub fn loss(&self) -> f64 {
        1.0 - self.echoed as f64 / self.sent.max(1) as f64
    }

    /// Whether more than [`LATE_SHARE_MAX`] of them were late or left out.
    pub fn is_late(&self) -> bool {
        (self.late + self.omitted) as f64 > (self.sent + self.omitted) as f64 * LATE_SHARE_MAX
    }

    /// Datagrams sent a second.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// The sending end.
pub struct Client {
    settings: Settings,
    ring: Ring,
    flows: Vec<Flow>,
    start: Instant,
    run: u64,
    sends: usize,
    received: Vec<Piece>,
    /// Flows whose receive has ended.
    unarmed: VecDeque<usize>,
}

struct Flow {
    socket: Socket,
    answered: bool,
}

impl Client {
    /// Makes the flows and waits until each has had an echo.
    ///
    /// # Errors
    /// Bad settings, no io_uring, or a flow without an echo.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        ensure!((STAMP..=65_507).contains(&settings.size), "--size is from {STAMP} to 65507 bytes");
        ensure!((1..=FLOWS_MAX).contains(&settings.flows), "--flows is from 1 to {FLOWS_MAX}");
        usage::raise_descriptors(settings.flows as u64 + DESCRIPTORS_BESIDE)?;
        let batch_max = (65_000 / settings.size).clamp(1, 64);
        ensure!((1..=batch_max).contains(&settings.batch), "--batch is from 1 to {batch_max} at that size");
        ensure!(!settings.to.is_empty(), "give at least one --to");
        let flow = |number: usize| {
            let to = settings.to[number % settings.to.len()];
            let any: SocketAddr = match to {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = match settings.from_port {
                None => socket(any, settings.flows)?,
                Some(first) => {
                    let port = usize::from(first) + number;
                    let port = u16::try_from(port).with_context(|| format!("--from-port {first} leaves too few"))?;
                    again_if_taken(|| socket(SocketAddr::new(own_address(any, to)?, port), settings.flows))?
                }
            };
            socket.connect_udp(to).with_context(|| format!("cannot reach {to}"))?;
            Ok(Flow { socket, answered: false })
        };
        let flows: Vec<Flow> = (0..settings.flows).map(flow).collect::<anyhow::Result<_>>()?;
        let unarmed = (0..flows.len()).collect();
        prompt_waits();
        let (ring, start) = (ring(settings.flows)?, Instant::now());
        let mut client = Self { settings, ring, flows, start, run: 0, sends: 0, received: Vec::new(), unarmed };
        client.begin()?;
        Ok(client)
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        let mut deadline = Instant::now() + PATIENCE;
        let mut outcome = Outcome::default();
        let mut silent: Vec<usize> = (0..self.flows.len()).collect();
        while !silent.is_empty() {
            let (missing, to) = (silent.len(), self.settings.to[silent[0] % self.settings.to.len()]);
            ensure!(Instant::now() < deadline, "no echo from {to} within {PATIENCE:?}; {missing} flows are silent");
            let begun = missing.min(BEGUN_AT_ONCE);
            silent[..begun].iter().for_each(|&flow| self.send(flow, 1, Instant::now()));
            let again = Instant::now() + Duration::from_millis(50);
            while Instant::now() < again && silent[..begun].iter().any(|&flow| !self.flows[flow].answered) {
                self.turn(again.saturating_duration_since(Instant::now()), &mut outcome)?;
            }
            silent.retain(|&flow| !self.flows[flow].answered);
            if silent.len() < missing {
                deadline = Instant::now() + PATIENCE;
            }
        }
        Ok(())
    }

    /// Sends `rate` datagrams a second for `time`, and waits for the last echoes.
    ///
    /// # Errors
    /// The ring's.
    pub fn run(&mut self, rate: f64, time: Duration) -> anyhow::Result<Outcome> {
        self.run += 1;
        let mut outcome = Outcome::default();
        let started = Instant::now();
        let mut scheduled_from = started;
        let (mut scheduled, mut next_flow) = (0u64, 0);
        let batch = self.settings.batch as u64;
        let seconds = |datagrams: u64| Duration::from_secs_f64(datagrams as f64 / rate);
        let least = if seconds(batch) < TICK / 2 { TICK } else { Duration::ZERO };
        loop {
            let now = Instant::now();
            let mut due = ((now - scheduled_from).as_secs_f64() * rate) as u64;
            // A pause of ours is not made up for by a burst that no gateway would see otherwise.
            if due.saturating_sub(scheduled) as f64 > (rate * LATE_MAX.as_secs_f64()).max(2.0 * batch as f64) {
                outcome.omitted += due - scheduled;
                (scheduled_from, scheduled, due) = (now, 0, 0);
            }
            while scheduled + batch <= due && self.sends < SENDS_MAX {
                scheduled += batch;
                let due_at = scheduled_from + seconds(scheduled);
                self.send(next_flow, self.settings.batch, due_at);
                next_flow = (next_flow + 1) % self.flows.len();
                outcome.sent += batch;
                outcome.late += if Instant::now() > due_at + LATE { batch } else { 0 };
            }
            outcome.time = now - started;
            if outcome.time >= time {
                break;
            }
            let next = scheduled_from + seconds(scheduled + batch);
            let gap = next.saturating_duration_since(Instant::now()).max(least);
            self.turn(gap.min(time.saturating_sub(outcome.time)), &mut outcome)?;
        }
        let last = Instant::now() + DRAIN;
        while outcome.echoed < outcome.sent && Instant::now() < last {
            self.turn(last.saturating_duration_since(Instant::now()), &mut outcome)?;
        }
        Ok(outcome)
    }

    /// [`Client::run`] for the settings' time with CPU times, as a line.
    ///
    /// # Errors
    /// As there, or a watched process is gone.
    pub fn measure(&mut self, rate: f64) -> anyhow::Result<(Outcome, Line)> {
        let watched = std::mem::take(&mut self.settings.watched);
        let (before, own) = (Usage::now(&watched)?, Own::now());
        let outcome = self.run(rate, self.settings.measured)?;
        let (after, share) = (Usage::now(&watched)?, own.since());
        let mut line = Line::default()
            .with("rate", format_args!("{:.0}", outcome.rate()))
            .with("echo_rate", format_args!("{:.0}", outcome.echoed as f64 / outcome.time.as_secs_f64()))
            .with("sent", outcome.sent)
            .with("echoed", outcome.echoed)
            .with("late", outcome.late)
            .with("omitted", outcome.omitted)
            .with("loss_percent", format_args!("{:.3}", outcome.loss() * 100.0))
            .with("seconds", format_args!("{:.3}", outcome.time.as_secs_f64()));
        line.add_percentiles("rtt", &outcome.round_trips);
        let bound = share.saturated(1) || outcome.is_late() || outcome.rate() < rate * SENT_MIN;
        share.report(bound, (&before, &after), &mut line);
        after.report(&before, &watched, &mut line);
        self.settings.watched = watched;
        Ok((outcome, line))
    }

    fn send(&mut self, flow: usize, count: usize, due: Instant) {
        let size = self.settings.size;
        let mut piece = Piece::with_capacity(0, size * count);
        let stamp =
            [self.run.to_be_bytes(), (due.saturating_duration_since(self.start).as_nanos() as u64).to_be_bytes()]
                .concat();
        for _ in 0..count {
            piece.append(size)[..STAMP].copy_from_slice(&stamp);
        }
        let mut batch = self.ring.datagram_batch();
        batch.set_segment((count > 1).then_some(size as u16));
        batch.push(piece);
        self.ring.send_datagrams(&self.flows[flow].socket, batch, 0);
        self.sends += 1;
    }

    /// Submits, waits at most `wait`, and takes what came.
    fn turn(&mut self, wait: Duration, outcome: &mut Outcome) -> anyhow::Result<()> {
        while let Some(flow) = self.unarmed.pop_front() {
            self.ring.recv_datagrams(&self.flows[flow].socket, flow as u64);
        }
        self.ring.enter(Some(wait), || false)?;
        let now = self.start.elapsed();
        let mut received = std::mem::take(&mut self.received);
        while let Some(completion) = self.ring.next(&mut received) {
            match completion {
                // What the system refuses, or ICMP answers, shows as loss.
                Completion::SentDatagrams { .. } => self.sends -= 1,
                Completion::Datagrams { user, result, more } => {
                    let flow = user as usize;
                    if let Ok(datagrams) = result {
                        let step = if datagrams.segment > 0 { usize::from(datagrams.segment) } else { usize::MAX };
                        for datagram in datagrams.payload.chunks(step) {
                            self.flows[flow].answered = true;
                            take(datagram, self.run, now, outcome);
                        }
                    }
                    if !more {
                        self.unarmed.push_back(flow);
                    }
                }
                _ => {}
            }
        }
        self.received = received;
        Ok(())
    }
}

/// The address from which `to` is reached. Other addresses of this machine are other loads'.
fn own_address(any: SocketAddr, to: SocketAddr) -> anyhow::Result<IpAddr> {
    let socket = UdpSocket::bind(any)?;
    socket.connect(to).with_context(|| format!("cannot reach {to}"))?;
    Ok(socket.local_addr()?.ip())
}

/// The kernel closes the sockets of a load that has just ended a little after its end.
fn again_if_taken<T>(mut call: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let taken = |error: &anyhow::Error| {
            error
                .chain()
                .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::AddrInUse))
        };
        match call() {
            Err(error) if taken(&error) && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            result => return result,
        }
    }
}

/// Counts an echo of this run; one of an earlier run came too late.
fn take(datagram: &[u8], run: u64, now: Duration, outcome: &mut Outcome) {
    let Some((head, rest)) = datagram.split_first_chunk() else { return };
    let Some(stamp) = rest.first_chunk() else { return };
    if u64::from_be_bytes(*head) == run {
        outcome.echoed += 1;
        outcome.round_trips.add(now.saturating_sub(Duration::from_nanos(u64::from_be_bytes(*stamp))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::datagram;

    fn settings(to: SocketAddr) -> Settings {
        let measured = Duration::from_millis(100);
        Settings { to: vec![to], size: 200, flows: 3, from_port: None, batch: 1, measured, watched: Vec::new() }
    }

    fn echo() -> SocketAddr {
        datagram::spawn("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    #[test]
    fn every_datagram_of_a_slow_run_comes_back_alone_or_in_batches() {
        let to = echo();
        for batch in [1, 5] {
            let mut client = Client::new(Settings { batch, ..settings(to) }).unwrap();
            let (outcome, line) = client.measure(1000.0).unwrap();
            assert!(outcome.sent >= 10 && outcome.sent.is_multiple_of(batch as u64), "{line}");
            assert_eq!(outcome.echoed, outcome.sent, "{line}");
            assert_eq!(outcome.round_trips.count(), outcome.sent);
        }
    }

    #[test]
    fn thousands_of_flows_all_have_their_echoes() {
        let mut client = Client::new(Settings { flows: 3000, ..settings(echo()) }).unwrap();
        let outcome = client.run(10_000.0, Duration::from_millis(300)).unwrap();
        assert_eq!(outcome.echoed, outcome.sent);
    }

    #[test]
    fn load_is_late_by_what_it_sent_late_and_by_what_it_left_out() {
        let is_late = |sent, late, omitted| Outcome { sent, late, omitted, ..Outcome::default() }.is_late();
        assert!(!is_late(1000, 10, 0) && is_late(1000, 11, 0));
        assert!(!is_late(990, 0, 10) && is_late(980, 9, 20) && !is_late(0, 0, 0));
    }

    /// The load cannot look before all of that is due; only what its patience allows is made up for.
    #[test]
    fn pause_of_the_load_is_counted_and_not_made_up_for() {
        let mut client = Client::new(Settings { batch: 5, ..settings(echo()) }).unwrap();
        let rate = 1e9;
        let outcome = client.run(rate, Duration::from_millis(30)).unwrap();
        assert!(outcome.omitted > outcome.sent && outcome.is_late(), "{outcome:?}");
        assert!(outcome.sent + outcome.omitted <= (outcome.time.as_secs_f64() * rate) as u64 + 1, "{outcome:?}");
    }

    #[test]
    fn late_echo_of_an_earlier_run_counts_for_none() {
        let mut outcome = Outcome::default();
        let datagram = [7u64.to_be_bytes(), 0u64.to_be_bytes()].concat();
        take(&datagram, 8, Duration::ZERO, &mut outcome);
        take(&datagram[..15], 7, Duration::ZERO, &mut outcome);
        assert_eq!(outcome.echoed, 0);
        take(&datagram, 7, Duration::ZERO, &mut outcome);
        assert_eq!(outcome.echoed, 1);
    }

    #[test]
    fn settings_are_checked_on_both_sides_of_their_edges() {
        let to = echo();
        assert!(Client::new(Settings { size: STAMP, ..settings(to) }).is_ok());
        for bad in [
            Settings { size: STAMP - 1, ..settings(to) },
            Settings { flows: 0, ..settings(to) },
            Settings { flows: FLOWS_MAX + 1, ..settings(to) },
            Settings { batch: 65, ..settings(to) },
            Settings { batch: 0, ..settings(to) },
        ] {
            assert!(Client::new(bad.clone()).is_err(), "{bad:?}");
        }
    }
}

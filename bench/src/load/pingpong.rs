//! Ping-pong: small messages on open connections, and their echoes.
//!
//! Open loop: messages are due at a fixed rate, whatever happens to those before, and each one's time counts from when it was
//! due. So a stall shows with all that waited for it, where a closed loop would just send less (coordinated omission).
//! The closed loop, one message at a time, is there to be compared with figures that others publish.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use isthmus_ring::{Completion, Family, Piece, Ring, SendBatch, SendMode, Socket};

use crate::load::own::{LATE_SHARE_MAX, Own, prompt_waits};
use crate::peer::stream::{self, ECHO, no_buffers};
use crate::report::{Line, Samples};
use crate::usage::{self, Usage, Watched};

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The sink, or what leads to it.
    pub to: SocketAddr,
    /// Bytes of each message, from 1 to [`SIZE_MAX`].
    pub size: usize,
    /// How the messages follow each other.
    pub pace: Pace,
    /// Connections, from 1 to [`CONNECTIONS_MAX`]; they take turns.
    pub connections: usize,
    /// Time that is measured.
    pub measured: Duration,
    /// Processes whose CPU time is wanted.
    pub watched: Vec<Watched>,
}

/// How the messages follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// So many a second in all, from 1 to [`RATE_MAX`].
    Open(u32),
    /// The next one of a connection when the echo of the one before is there.
    Closed,
}

/// Most bytes of a message.
pub const SIZE_MAX: usize = 16_000;

/// Most messages a second.
pub const RATE_MAX: u32 = 1_000_000;

/// Most connections.
pub const CONNECTIONS_MAX: usize = 10_000;

/// Time before the measured one.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long the connections and their first echoes may take, and the last echoes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message that is sent so long after it was due is late by our own fault.
const LATE: Duration = Duration::from_micros(200);

/// Descriptors beside the connections' own.
const DESCRIPTORS_BESIDE: u64 = 64;

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Messages sent.
    pub sent: u64,
    /// Messages that came back.
    pub echoed: u64,
    /// Of those sent, how many were late by our own fault.
    pub late: u64,
    /// From when a message was due until its last byte was back.
    pub times: Samples,
}

/// Runs the load: `sent`, `echoed`, `p50_us` …, `late`, and CPU times.
///
/// # Errors
/// Bad settings, a connection that fails or is silent, a watched process is gone, no io_uring.
pub fn run(settings: &Settings) -> anyhow::Result<Line> {
    let mut load = Load::new(settings)?;
    load.go(settings.pace, WARM_UP)?;
    let (usage, own) = (Usage::now(&settings.watched)?, Own::now());
    let outcome = load.go(settings.pace, settings.measured)?;
    let (used, share) = (Usage::now(&settings.watched)?, own.since());
    let mut line = Line::default()
        .with("sent", outcome.sent)
        .with("echoed", outcome.echoed)
        .with("rate", format_args!("{:.0}", outcome.echoed as f64 / settings.measured.as_secs_f64()));
    line.add_percentiles("", &outcome.times);
    line.add("late", outcome.late);
    let bound = outcome.late as f64 > outcome.sent as f64 * LATE_SHARE_MAX;
    share.report(bound || share.saturated(1), (&usage, &used), &mut line);
    used.report(&usage, &settings.watched, &mut line);
    Ok(line)
}

/// Open connections.
pub struct Load {
    size: usize,
    ring: Ring,
    connections: Vec<Connection>,
    connected: usize,
    received: Vec<Piece>,
}

struct Connection {
    socket: Socket,
    /// When those were due that are not back.
    due: VecDeque<Instant>,
    /// Bytes of the first of them that are back.
    partial: usize,
    /// To be sent when the send in flight is done.
    next: Option<SendBatch>,
    sending: bool,
}

impl Load {
    /// Connects, and waits for one echo on each connection.
    ///
    /// # Errors
    /// As [`run`].
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let Settings { to, size, pace, connections, .. } = settings;
        ensure!((1..=SIZE_MAX).contains(size), "--size is from 1 to {SIZE_MAX} bytes");
        ensure!((1..=CONNECTIONS_MAX).contains(connections), "--connections is from 1 to {CONNECTIONS_MAX}");
        ensure!(!matches!(pace, Pace::Open(rate) if !(1..=RATE_MAX).contains(rate)), "--rate is from 1 to {RATE_MAX}");
        usage::raise_descriptors(*connections as u64 + DESCRIPTORS_BESIDE)?;
        prompt_waits();
        let ring = stream::ring()?;
        let mut load = Self { size: *size, ring, connections: Vec::new(), connected: 0, received: Vec::new() };
        for index in 0..*connections {
            let socket = Socket::tcp(Family::from(*to))?;
            load.ring.connect(&socket, *to, index as u64);
            let (due, partial) = (VecDeque::new(), 0);
            load.connections.push(Connection { socket, due, partial, next: None, sending: false });
        }
        let deadline = Instant::now() + PATIENCE;
        let mut outcome = Outcome::default();
        while load.connected < *connections {
            let connected = load.connected;
            ensure!(Instant::now() < deadline, "{to} takes connections only slowly: {connected} of {connections}");
            load.turn(Duration::from_millis(50), &mut outcome, None)?;
        }
        for index in 0..*connections {
            load.queue(index, Instant::now(), &mut outcome);
        }
        load.drain(&mut outcome, None)?;
        Ok(load)
    }

    /// Sends for some time, and waits for the last echoes.
    ///
    /// # Errors
    /// A connection ends or is silent; the ring's.
    pub fn go(&mut self, pace: Pace, time: Duration) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        let started = Instant::now();
        match pace {
            Pace::Open(rate) => {
                let step = Duration::from_secs(1) / rate;
                let count = (time.as_secs_f64() * f64::from(rate)).max(1.0) as u64;
                for number in 0..count {
                    let due = started + Duration::from_nanos((number as f64 * 1e9 / f64::from(rate)) as u64);
                    loop {
                        let now = Instant::now();
                        if now >= due {
                            outcome.late += u64::from(now - due > LATE.max(step / 2));
                            break;
                        }
                        self.turn(due - now, &mut outcome, None)?;
                    }
                    self.queue(number as usize % self.connections.len(), due, &mut outcome);
                }
                self.drain(&mut outcome, None)?;
            }
            Pace::Closed => {
                for index in 0..self.connections.len() {
                    self.queue(index, Instant::now(), &mut outcome);
                }
                self.drain(&mut outcome, Some(started + time))?;
            }
        }
        Ok(outcome)
    }

    /// Takes echoes until all are back; each is followed by the next message `until` then.
    fn drain(&mut self, outcome: &mut Outcome, until: Option<Instant>) -> anyhow::Result<()> {
        let deadline = until.unwrap_or_else(Instant::now) + PATIENCE;
        while outcome.echoed < outcome.sent {
            let (missing, connections) = (outcome.sent - outcome.echoed, self.connections.len());
            ensure!(Instant::now() < deadline, "{missing} echoes are missing on {connections} connections");
            self.turn(Duration::from_millis(100), outcome, until)?;
        }
        Ok(())
    }

    fn queue(&mut self, index: usize, due: Instant, outcome: &mut Outcome) {
        let connection = &mut self.connections[index];
        connection.due.push_back(due);
        outcome.sent += 1;
        let mut message = self.ring.alloc_stream().unwrap_or_else(|| Piece::with_capacity(0, self.size));
        message.append(self.size).fill(0x5a);
        let mut batch = connection.next.take().unwrap_or_else(|| self.ring.send_batch());
        if batch.is_full() {
            // The batch has room for a piece's worth of small ones less: they are due, and go as one.
            let mut all = Piece::with_capacity(0, batch.bytes() + self.size);
            for piece in batch.drain().chain([message]) {
                all.append(piece.len()).copy_from_slice(&piece);
            }
            message = all;
        }
        batch.push(message);
        connection.next = Some(batch);
        self.send(index);
    }

    fn send(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !connection.sending
            && let Some(batch) = connection.next.take()
        {
            connection.sending = true;
            self.ring.send(&connection.socket, batch, SendMode::WaitAll, index as u64);
        }
    }

    fn turn(&mut self, wait: Duration, outcome: &mut Outcome, again: Option<Instant>) -> anyhow::Result<()> {
        self.ring.enter(Some(wait), || false)?;
        let mut received = std::mem::take(&mut self.received);
        let mut result = Ok(());
        while let Some(completion) = self.ring.next(&mut received) {
            match completion {
                Completion::Connect { result: Ok(()), user } => self.on_connected(user as usize),
                Completion::Connect { result: Err(error), .. } => result = Err(error),
                Completion::Recv { result: Ok(bytes @ 1..), user, .. } => {
                    self.on_echo(user as usize, bytes, outcome, again);
                }
                Completion::Recv { result: Err(error), user, .. } if no_buffers(&error) => {
                    self.ring.recv_stream(&self.connections[user as usize].socket, 0, false, user);
                }
                Completion::Recv { result: ended, .. } => {
                    result = Err(ended.err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into()));
                }
                Completion::Send { result: Ok(_), user, .. } => {
                    self.connections[user as usize].sending = false;
                    self.send(user as usize);
                }
                Completion::Send { result: Err(error), .. } => result = Err(error),
                _ => {}
            }
        }
        received.clear();
        self.received = received;
        match result {
            Ok(()) => Ok(()),
            Err(error) => bail!("a connection ended early, or came not about: {error}"),
        }
    }

    fn on_connected(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        self.connected += 1;
        self.ring.recv_stream(&connection.socket, 0, false, index as u64);
        let mut batch = self.ring.send_batch();
        batch.push(Piece::copy_from(&[ECHO], 0, 0));
        connection.next = Some(batch);
        self.send(index);
    }

    fn on_echo(&mut self, index: usize, bytes: usize, outcome: &mut Outcome, again: Option<Instant>) {
        let now = Instant::now();
        let connection = &mut self.connections[index];
        self.ring.recv_stream(&connection.socket, 0, false, index as u64);
        connection.partial += bytes;
        while connection.partial >= self.size
            && let Some(due) = connection.due.pop_front()
        {
            connection.partial -= self.size;
            outcome.echoed += 1;
            outcome.times.add(now - due);
            if again.is_some_and(|until| now < until) {
                return self.queue(index, now, outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pace: Pace) -> Settings {
        let to = stream::spawn("127.0.0.1:0".parse().unwrap()).unwrap();
        Settings { to, size: 64, pace, connections: 3, measured: Duration::from_millis(100), watched: Vec::new() }
    }

    #[test]
    fn open_loop_sends_what_is_due_and_has_it_all_back() {
        let mut load = Load::new(&settings(Pace::Open(1000))).unwrap();
        let outcome = load.go(Pace::Open(1000), Duration::from_millis(100)).unwrap();
        assert_eq!((outcome.sent, outcome.echoed, outcome.times.count()), (100, 100, 100));
    }

    #[test]
    fn stall_counts_for_all_that_were_due_meanwhile() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        const STALL: Duration = Duration::from_millis(200);
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_nodelay(true).unwrap();
            let mut bytes = [0; 1 + 8];
            socket.read_exact(&mut bytes).unwrap();
            socket.write_all(&bytes[1..]).unwrap();
            for number in 0.. {
                if socket.read_exact(&mut bytes[1..]).is_err() {
                    return;
                }
                if number == 10 {
                    std::thread::sleep(STALL);
                }
                let _ = socket.write_all(&bytes[1..]);
            }
        });
        let settings = Settings { to, size: 8, connections: 1, ..settings(Pace::Open(1000)) };
        let mut load = Load::new(&settings).unwrap();
        let outcome = load.go(Pace::Open(1000), Duration::from_millis(400)).unwrap();
        assert_eq!(outcome.echoed, 400);
        // The first that waited did so for the whole stall, and those after it for ever less: a quarter for at least half.
        assert!(outcome.times.percentile(1.0).unwrap() >= 200_000.0);
        assert!(outcome.times.percentile(0.8).unwrap() >= 90_000.0);
    }

    #[test]
    fn closed_loop_keeps_one_on_its_way_on_each_connection() {
        let line = run(&settings(Pace::Closed)).unwrap().to_string();
        assert!(line.contains(" late=0 ") && line.contains(" p999_us="), "{line}");
    }

    #[test]
    fn settings_are_checked_and_an_early_end_is_told() {
        let good = settings(Pace::Open(1));
        for bad in [
            Settings { size: 0, ..good.clone() },
            Settings { size: SIZE_MAX + 1, ..good.clone() },
            Settings { connections: 0, ..good.clone() },
            Settings { pace: Pace::Open(0), ..good.clone() },
        ] {
            assert!(Load::new(&bad).is_err(), "{bad:?}");
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        std::thread::spawn(move || while listener.accept().is_ok() {});
        let error = run(&Settings { to, ..good }).unwrap_err().to_string();
        assert!(error.contains("ended early"), "{error}");
    }
}

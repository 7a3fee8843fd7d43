//! New connections: connect, a few bytes and their echo, the end; so many at once, each followed by the next.
//!
//! The far end ends each connection first ([`ONCE`]), with an orderly FIN that has to travel the whole way before ours is
//! sent. So no port number of ours stays taken, every system on the way does the same work, and nobody sees a reset.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_ring::{Completion, Family, OpId, Piece, Ring, SendMode, Socket};

use crate::load::own::Own;
use crate::load::preface::{BadReply, Dialogue, Heard, Target};
use crate::peer::stream::{self, ONCE, ONCE_BYTES, no_buffers};
use crate::report::{Line, Samples};
use crate::usage::{self, Usage, Watched};

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sinks, or what leads to them, at least one; the connections take turns.
    pub to: Vec<Target>,
    /// Connections at once, from 1 to [`AT_ONCE_MAX`].
    pub at_once: usize,
    /// Time that is measured.
    pub measured: Duration,
    /// Processes whose CPU time is wanted.
    pub watched: Vec<Watched>,
}

/// Most connections at once.
pub const AT_ONCE_MAX: usize = 16_384;

/// Time before the measured one.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long one connection may take; then it has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often connections that take too long are looked for, and those that failed are followed by others: so a closed door
/// is not hammered at.
const SWEEP: Duration = Duration::from_millis(50);

/// Descriptors beside the connections' own.
const DESCRIPTORS_BESIDE: u64 = 64;

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Connections that had their echo and their end.
    pub connects: u64,
    /// Others.
    pub failed: u64,
    /// From the call to connect until the whole echo was there.
    pub times: Samples,
    /// The last failure.
    pub why: Option<String>,
}

/// Runs the load: `rate`, `connects`, `p50_us` …, `failed`, and CPU times.
///
/// # Errors
/// Bad settings, no connection at all, a watched process is gone, no io_uring.
pub fn run(settings: &Settings) -> anyhow::Result<Line> {
    ensure!((1..=AT_ONCE_MAX).contains(&settings.at_once), "--at-once is from 1 to {AT_ONCE_MAX}");
    let first = settings.to.first().context("give at least one --to")?.address;
    usage::raise_descriptors(settings.at_once as u64 + DESCRIPTORS_BESIDE)?;
    let slots = (0..settings.at_once).map(|_| None).collect();
    let free = (0..settings.at_once).collect();
    let ring = stream::ring()?;
    let (to, outcome) = (settings.to.clone(), Outcome::default());
    let mut load = Load { to, turn: 0, ring, slots, free, outcome, received: Vec::new() };
    load.go(WARM_UP)?;
    load.outcome = Outcome::default();
    let (usage, own, started) = (Usage::now(&settings.watched)?, Own::now(), Instant::now());
    load.go(settings.measured)?;
    let (used, share, seconds) = (Usage::now(&settings.watched)?, own.since(), started.elapsed().as_secs_f64());
    let outcome = load.outcome;
    let why = outcome.why.as_deref().unwrap_or("none ended in time");
    ensure!(outcome.connects > 0, "no connection to {} had its echo: {why}", first);
    let mut line = Line::default()
        .with("rate", format_args!("{:.0}", outcome.connects as f64 / seconds))
        .with("connects", outcome.connects)
        .with("failed", outcome.failed)
        .with("seconds", format_args!("{seconds:.3}"));
    line.add_percentiles("", &outcome.times);
    share.report(share.saturated(1), (&usage, &used), &mut line);
    used.report(&usage, &settings.watched, &mut line);
    if let Some(why) = &outcome.why {
        tracing::warn!(failed = outcome.failed, "connections failed; the last one: {why}");
    }
    Ok(line)
}

struct Load {
    to: Vec<Target>,
    /// The next connection's target.
    turn: usize,
    ring: Ring,
    slots: Vec<Option<Connection>>,
    /// Slots for which a connection can be begun.
    free: Vec<usize>,
    outcome: Outcome,
    received: Vec<Piece>,
}

struct Connection {
    socket: Socket,
    /// Its target's place.
    to: usize,
    dialogue: Dialogue,
    /// The door has heard all, and the echo is awaited.
    through: bool,
    begun: Instant,
    echoed: usize,
    /// Connecting or receiving.
    op: OpId,
    /// Sends in the kernel's hands. A reply may be here before the completion of what it answers.
    sending: usize,
    /// Why it came to nothing.
    failed: Option<String>,
    /// Nothing more is expected.
    over: bool,
}

impl Load {
    fn go(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        let mut swept = Instant::now();
        let mut failed = Vec::new();
        loop {
            let now = Instant::now();
            if now >= until {
                // Those that failed are not left out of the next run.
                self.free.append(&mut failed);
                return Ok(());
            }
            if now - swept >= SWEEP {
                swept = now;
                self.free.append(&mut failed);
                self.sweep(now);
            }
            while let Some(slot) = self.free.pop() {
                if let Err(error) = self.begin(slot) {
                    self.outcome.failed += 1;
                    self.outcome.why = Some(error.to_string());
                    failed.push(slot);
                }
            }
            self.ring.enter(Some(SWEEP), || false)?;
            let mut received = std::mem::take(&mut self.received);
            while let Some(completion) = self.ring.next(&mut received) {
                self.on_completion(completion, &mut received, &mut failed);
            }
            self.received = received;
        }
    }

    fn begin(&mut self, slot: usize) -> std::io::Result<()> {
        let begun = Instant::now();
        let to = self.turn % self.to.len();
        self.turn = to + 1;
        let address = self.to[to].address;
        let socket = Socket::tcp(Family::from(address))?;
        let op = self.ring.connect(&socket, address, slot as u64);
        let dialogue = Dialogue::default();
        self.slots[slot] = Some(Connection {
            socket,
            to,
            dialogue,
            through: false,
            begun,
            echoed: 0,
            op,
            sending: 0,
            failed: None,
            over: false,
        });
        Ok(())
    }

    fn sweep(&mut self, now: Instant) {
        for connection in self.slots.iter_mut().flatten() {
            if now - connection.begun > PATIENCE && connection.failed.is_none() {
                connection.failed = Some(format!("it took longer than {PATIENCE:?}"));
                self.ring.cancel(connection.op);
                // Ends a send, too; an error means that the connection is gone.
                let _ = connection.socket.shutdown_both();
            }
        }
    }

    fn on_completion(&mut self, completion: Completion, received: &mut Vec<Piece>, failed: &mut Vec<usize>) {
        let (Completion::Connect { user, .. } | Completion::Recv { user, .. } | Completion::Send { user, .. }) =
            completion
        else {
            return;
        };
        let slot = user as usize;
        let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let mut receive = false;
        match completion {
            Completion::Connect { result: Ok(()), .. } => {
                connection.say(&mut self.ring, &self.to, user);
                receive = true;
            }
            Completion::Recv { result: Ok(0), .. } => {
                connection.over = true;
                if connection.echoed != ONCE_BYTES {
                    let echoed = connection.echoed;
                    let why = || format!("it ended after {echoed} of {ONCE_BYTES} bytes");
                    connection.failed.get_or_insert_with(why);
                }
            }
            Completion::Recv { result: Ok(_), .. } if !connection.through => {
                match connection.hear(&self.to, received) {
                    Ok(Heard::Part) => {}
                    Ok(Heard::Whole) => connection.say(&mut self.ring, &self.to, user),
                    Err(bad) => connection.fail(bad.to_string()),
                }
                receive = true;
            }
            Completion::Recv { result: Ok(bytes), .. } => {
                received.clear();
                connection.echoed += bytes;
                if connection.echoed == ONCE_BYTES {
                    self.outcome.times.add(connection.begun.elapsed());
                }
                receive = true;
            }
            Completion::Recv { result: Err(error), .. } if no_buffers(&error) => receive = true,
            Completion::Connect { result: Err(error), .. } | Completion::Recv { result: Err(error), .. } => {
                connection.over = true;
                connection.failed.get_or_insert_with(|| error.to_string());
            }
            Completion::Send { result, .. } => {
                connection.sending -= 1;
                if let Err(error) = result {
                    connection.failed.get_or_insert_with(|| error.to_string());
                }
            }
            _ => {}
        }
        if receive {
            connection.op = self.ring.recv_stream(&connection.socket, 0, false, user);
        }
        if connection.over && connection.sending == 0 {
            self.end(slot, failed);
        }
    }

    fn end(&mut self, slot: usize, failed: &mut Vec<usize>) {
        let Some(connection) = self.slots[slot].take() else { return };
        match connection.failed {
            None => {
                self.outcome.connects += 1;
                self.free.push(slot);
            }
            Some(why) => {
                self.outcome.failed += 1;
                self.outcome.why = Some(why);
                failed.push(slot);
            }
        }
        self.ring.close(connection.socket);
    }
}

impl Connection {
    /// Sends what is its turn to say.
    fn say(&mut self, ring: &mut Ring, to: &[Target], user: u64) {
        let said = self.dialogue.say(&to[self.to].preface, &[ONCE; 1 + ONCE_BYTES]);
        let message = ring.alloc_stream().filter(|message| message.tailroom() >= said.bytes.len());
        let mut message = message.unwrap_or_else(|| Piece::with_capacity(0, said.bytes.len()));
        message.append(said.bytes.len()).copy_from_slice(&said.bytes);
        let mut batch = ring.send_batch();
        batch.push(message);
        ring.send(&self.socket, batch, SendMode::WaitAll, user);
        self.sending += 1;
        self.through = said.last;
    }

    /// Takes a door's reply.
    fn hear(&mut self, to: &[Target], received: &mut Vec<Piece>) -> Result<Heard, BadReply> {
        let preface = &to[self.to].preface;
        received.drain(..).try_fold(Heard::Part, |_, piece| self.dialogue.hear(preface, &piece))
    }

    /// Ends it from this side; the receive that is armed next tells when it is over.
    fn fail(&mut self, why: String) {
        self.failed.get_or_insert(why);
        // An error means that the connection is gone.
        let _ = self.socket.shutdown_both();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn settings(to: SocketAddr, at_once: usize) -> Settings {
        Settings { to: vec![to.into()], at_once, measured: Duration::from_millis(100), watched: Vec::new() }
    }

    #[test]
    fn connections_follow_each_other_alone_and_many_at_once() {
        let to = stream::spawn("127.0.0.1:0".parse().unwrap()).unwrap();
        for at_once in [1, 16] {
            let line = run(&settings(to, at_once)).unwrap().to_string();
            assert!(
                line.contains(" failed=0 ") && line.contains(" p50_us=") && !line.contains("connects=0 "),
                "{line}"
            );
        }
    }

    #[test]
    fn closed_port_and_early_end_are_failures_with_a_reason() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten().take(1) {
                drop(socket);
            }
        });
        let error = format!("{:#}", run(&settings(to, 1)).unwrap_err());
        assert!(error.contains("had its echo: "), "{error}");
        assert!(run(&settings(to, 0)).is_err() && run(&settings(to, AT_ONCE_MAX + 1)).is_err());
    }
}

//! The background task of one connection: bytes between the socket and the link, and timers.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::Code;
use isthmus_proto::link::{LinkConfig, Maintain, Side};
use isthmus_proto::record::{Opened, RecordError, Session, parse_header};
use isthmus_proto::wire::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::channel::{Channels, Incoming};
use crate::dial::Dialled;
use crate::handle::Handle;
use crate::shared::Shared;
use crate::state::State;
use crate::transmit::Egress;
use crate::{Config, Error};

/// Bytes of one read: several records, so that the cost of a wake-up is shared.
const READ_MAX: usize = 256 * 1024;

/// How long the last records may take to arrive.
const FAREWELL: Duration = Duration::from_secs(5);

/// Starts the driver of a greeted connection.
///
/// # Errors
/// [`Error::Io`] when the channels' sockets cannot be made.
pub(crate) async fn start(config: &Config, dialled: Dialled, generation: u64) -> Result<Handle, Error> {
    let Dialled { socket, session, welcome, udp_secret, frames, input } = dialled;
    let relay = socket.peer_addr().map_err(|source| Error::io("the relay's address is gone", source))?;
    let (channels, incoming) = match udp_secret {
        Some(secret) => Channels::open(&welcome, &secret, relay).await?,
        None => (Channels::default(), Vec::new()),
    };
    let origin = tokio::time::Instant::now();
    let millis = |n: u32| Duration::from_millis(n.into());
    let maintain = Maintain::Caller { interval: millis(welcome.keepalive_tcp_ms), dead: millis(welcome.dead_ms) };
    let link = LinkConfig { side: Side::Requester, ports_max: welcome.ports_max, maintain };
    let state = State::new(link, welcome.report.clone(), isthmus_proto::Instant::ZERO);
    let shared = Arc::new(Shared::new(state, origin, channels, config.connect_timeout, generation, &welcome));
    let driver =
        Driver { shared: shared.clone(), socket, session, egress: Egress::default(), input, filled: 0, alerted: false };
    tokio::spawn(driver.run(frames, incoming));
    Ok(Handle::new(shared))
}

struct Driver {
    shared: Arc<Shared>,
    socket: TcpStream,
    session: Session,
    egress: Egress,
    /// Received bytes; the first `filled` are not yet opened: at most a part of one record between turns.
    input: Vec<u8>,
    filled: usize,
    /// A fatal alert was written, after which nothing may come.
    alerted: bool,
}

/// Tells the sockets even when the runtime drops the driver.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(Error::Closed);
        self.0.finish();
    }
}

impl Driver {
    async fn run(mut self, frames: Vec<u8>, incoming: Vec<Incoming>) {
        let shared = self.shared.clone();
        let _guard = EndOnDrop(shared.clone());
        let mut channels = JoinSet::new();
        for one in incoming {
            channels.spawn(Channels::run(shared.clone(), one));
        }
        let error = match self.drive(&frames).await {
            Ok(()) => Error::Closed,
            Err(error) => error,
        };
        tracing::debug!(%error, "the connection to the relay ended");
        // First those who wait, then the relay: it may be slow to take the last bytes.
        shared.end(error);
        self.say_goodbye().await;
        shared.finish();
    }

    /// Until the connection ends, or (`Ok`) nobody needs it any more.
    async fn drive(&mut self, frames: &[u8]) -> Result<(), Error> {
        let shared = self.shared.clone();
        self.filled = self.input.len();
        self.input.resize(READ_MAX.max(self.filled), 0);
        shared.with(|state| state.on_frames(frames, shared.now()))?;
        self.open_records()?;
        let mut timer = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut timer_expired = true;
        loop {
            if timer_expired {
                timer.as_mut().reset(self.on_deadline()?);
                timer_expired = false;
            }
            self.flush()?;
            let blocked = !self.egress.unwritten().is_empty() || self.egress.has_more();
            if !blocked && shared.with(|state| state.is_over(shared.now())) {
                return Ok(());
            }
            let interest = if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            tokio::select! {
                ready = self.socket.ready(interest) => {
                    if ready.map_err(lost)?.is_readable() {
                        self.read()?;
                    }
                }
                () = shared.driver_wanted() => {
                    // What a handle changed may have made a deadline: a lingering stream's.
                    timer_expired = shared.with(|state| state.abandoned);
                }
                () = &mut timer => timer_expired = true,
            }
        }
    }

    /// Writes what is left of the last batch, and the next one as far as the socket takes it.
    fn flush(&mut self) -> Result<(), Error> {
        self.write()?;
        if !self.egress.unwritten().is_empty() {
            return Ok(());
        }
        if self.session.key_update_due() {
            self.egress.write_key_update(&mut self.session).map_err(Error::protocol)?;
        }
        let tail = self.session.tail();
        let egress = &mut self.egress;
        self.shared.with(|state| {
            egress.gather(state, tail);
            // From here on, whoever adds to the link wakes us; unless we come back by ourselves. Between two
            // batches this must always be decided anew, with the link empty or `has_more` true.
            state.driver_awake = egress.has_more();
        });
        self.egress.seal(&mut self.session).map_err(Error::protocol)?;
        self.write()
    }

    fn write(&mut self) -> Result<(), Error> {
        if self.egress.unwritten().is_empty() {
            return Ok(());
        }
        match self.socket.try_write(self.egress.unwritten()) {
            Ok(n) => self.egress.on_written(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(lost(error)),
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Error> {
        match self.socket.try_read(self.input.get_mut(self.filled..).unwrap_or_default()) {
            Ok(0) => {
                let text = "the relay closed it without a word".to_owned();
                Err(Error::Lost { code: Code::ConnectionLost, text })
            }
            Ok(n) => {
                self.filled += n;
                self.open_records()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(lost(error)),
        }
    }

    /// Opens the whole records in place, hands their frames over under one lock, and moves the part of a
    /// record at the end to the front.
    fn open_records(&mut self) -> Result<(), Error> {
        let mut opened: Vec<Range<usize>> = Vec::new();
        let mut at = 0;
        let end = loop {
            let bytes = self.input.get_mut(at..self.filled).unwrap_or_default();
            let len = match parse_header(bytes) {
                Ok(Some(len)) => len,
                Ok(None) => break Ok(()),
                Err(error) => break Err(self.refuse(error)),
            };
            let Some(record) = bytes.get_mut(..len) else { break Ok(()) };
            match self.session.open(record) {
                Ok(Opened::Data(range)) => opened.push(at + range.start..at + range.end),
                Ok(Opened::KeyUpdate { .. } | Opened::Ignored) => {}
                Ok(Opened::CloseNotify) => break Err(Error::Lost { code: Code::PeerClosed, text: String::new() }),
                Ok(Opened::Alert(alert)) => {
                    break Err(Error::Lost { code: Code::TlsFailed, text: format!("TLS alert {alert}") });
                }
                Err(error) => break Err(self.refuse(error)),
            }
            at += len;
        };
        let (input, now) = (&self.input, self.shared.now());
        // A full buffer means that more waits.
        let full = self.filled == input.len();
        if !opened.is_empty() {
            // What came before a bad record was good, and may say why.
            self.shared.with(|state| {
                state.link.note_backlog(full);
                opened
                    .iter()
                    .try_for_each(|range| state.on_frames(input.get(range.clone()).unwrap_or_default(), now))?;
                if state.link.is_overrun() { Err(overrun()) } else { Ok(()) }
            })?;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        end
    }

    /// The next time to look.
    fn on_deadline(&mut self) -> Result<tokio::time::Instant, Error> {
        let now = self.shared.now();
        self.shared.with(|state| {
            state.link.on_deadline(now).map_err(|code| Error::Lost { code, text: String::new() })?;
            let mut next = state.link.deadline();
            if let Some(lingering) = state.expire_lingering(now) {
                next = next.min(lingering);
            }
            Ok(self.shared.time_of(next))
        })
    }

    fn refuse(&mut self, error: RecordError) -> Error {
        // If even the alert cannot be sealed, the connection just ends.
        self.alerted = true;
        let _ = self.egress.write_alert(&mut self.session, error.alert());
        Error::protocol(error)
    }

    /// Best effort, for a bounded time.
    async fn say_goodbye(&mut self) {
        if !self.alerted && self.write_goodbye().is_err() {
            return;
        }
        let Self { socket, egress, input, .. } = self;
        let leave = async {
            socket.write_all(egress.unwritten()).await?;
            socket.shutdown().await?;
            // To close while something unread lies here or is on its way would be a reset, which takes what
            // we have sent along (RFC 1122 4.2.2.13). The relay closes when it has read our goodbye.
            while socket.read(input).await? > 0 {}
            io::Result::Ok(())
        };
        // Too late, or gone already: nothing more can be done.
        let _ = tokio::time::timeout(FAREWELL, leave).await;
    }

    fn write_goodbye(&mut self) -> Result<(), RecordError> {
        let tail = self.session.tail();
        let egress = &mut self.egress;
        self.shared.with(|state| {
            state.link.control().push(&Frame::Goodbye { code: Some(Code::PeerClosed), retry_after_ms: 0, text: "" });
            egress.gather(state, tail);
        });
        self.egress.seal(&mut self.session)?;
        self.egress.write_close_notify(&mut self.session)
    }
}

fn lost(error: io::Error) -> Error {
    Error::Lost { code: Code::ConnectionLost, text: error.to_string() }
}

fn overrun() -> Error {
    Error::Lost { code: Code::Overloaded, text: "the relay asks without reading the answers".into() }
}

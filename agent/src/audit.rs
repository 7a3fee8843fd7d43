//! The audit: each operation that the mediator carries out or refuses, and for whom, as a JSON object a line.
//!
//! ```text
//! {"time":"2026-01-02T03:04:05.678Z","mediator":"cpe-1","op":"connect","asker":"terminal desk","port":"2.1",
//!  "to":"10.0.0.5:22","result":"ok"}
//! ```
//!
//! A thread of its own writes, behind a bounded queue: a full disk or a slow reader costs lines, never the loop's time.
//! Lost lines are counted, and a line `"op":"lost"` tells how many once there is room. The file is opened again where it
//! was moved away, and on SIGHUP.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use isthmus_proto::Code;
use isthmus_proto::link::Slot;
use serde::Serialize;

/// Lines that may wait for the disk.
const QUEUE_MAX: usize = 4096;

/// Lines that are written at once.
const BATCH_MAX: usize = 256;

/// Names that a relay may give numbers to.
const ASKERS_MAX: u16 = 1024;

/// Between two looks whether the file is still where it was opened.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Between two lines about refused datagrams.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);

/// Between two words in the log about lost lines.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// How long the last lines may take at the end.
const FLUSH: Duration = Duration::from_secs(1);

/// Where the audit goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// To standard output.
    Stdout,
    /// To a file, made with mode 0600, appended to.
    File(PathBuf),
}

impl FromStr for AuditTarget {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Stdout } else { Self::File(text.into()) })
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    Open,
    Redirect,
    Connect,
    Listen,
    Accept,
    Close,
    Switch,
    /// Datagrams to where the owner does not allow.
    Datagram,
    /// A connection or port ended, since the owner does not allow it any more.
    Cut,
}

/// Asked by nobody that the relay named.
const UNTOLD: &str = "relay";

/// Who asks for what, and the way to the writer.
pub(crate) struct Audit {
    mediator: RefCell<String>,
    target: RefCell<Option<AuditTarget>>,
    writer: RefCell<Option<Writer>>,
    /// What the relay calls its askers, by number less one.
    names: RefCell<Vec<Rc<str>>>,
    /// On whose behalf a port was opened: identifier and asker by the port's place, so that as much is kept as there
    /// are places. The name itself, since the relay gives a number to another name while the port lives.
    ports: RefCell<HashMap<u32, (u32, Rc<str>)>>,
    untold: Rc<str>,
    refused: Cell<Refused>,
}

/// Datagrams refused since the last line about them: a flood of them is a line a second.
#[derive(Clone, Copy, Default)]
struct Refused {
    told: Option<Instant>,
    untold: u64,
}

struct Writer {
    queue: SyncSender<Message>,
    done: Receiver<()>,
    lost: Cell<u64>,
    warned: Cell<Option<Instant>>,
}

enum Message {
    Line(String),
    /// The queue was full for so many.
    Lost(u64),
    Reopen,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    mediator: &'a str,
    op: Operation,
    asker: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<String>,
    #[serde(flatten)]
    ends: Ends<'a>,
    /// Refused datagrams: this one, and those since the line before.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    result: &'static str,
}

/// Between whom.
#[derive(Clone, Copy, Default, Serialize)]
struct Ends<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<SocketAddr>,
}

impl Audit {
    /// Opens the target and starts its writer; without a target operations go to the log, at level debug.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn start(target: Option<AuditTarget>, mediator: String) -> anyhow::Result<Self> {
        let writer = RefCell::new(target.clone().map(Writer::start).transpose()?);
        let mediator = RefCell::new(mediator);
        let target = RefCell::new(target);
        Ok(Self {
            mediator,
            target,
            writer,
            names: RefCell::default(),
            ports: RefCell::default(),
            untold: UNTOLD.into(),
            refused: Cell::default(),
        })
    }

    /// The token may name another mediator than before.
    pub(crate) fn set_mediator(&self, mediator: &str) {
        if *self.mediator.borrow() != mediator {
            *self.mediator.borrow_mut() = mediator.to_owned();
        }
    }

    /// The relay tells whom a number means.
    pub(crate) fn name(&self, asker: u16, name: &str) {
        if !(1..=ASKERS_MAX).contains(&asker) {
            return;
        }
        let mut names = self.names.borrow_mut();
        let place = usize::from(asker) - 1;
        if names.len() <= place {
            names.resize(place + 1, self.untold.clone());
        }
        names[place] = name.into();
    }

    /// A port is opened on behalf of whom the relay means by that number now.
    pub(crate) fn opened(&self, slot: Slot, asker: u16) {
        let named = usize::from(asker).checked_sub(1).and_then(|place| self.names.borrow().get(place).cloned());
        self.keep(slot, named.unwrap_or_else(|| self.untold.clone()));
    }

    /// A connection is accepted on behalf of its server port's asker.
    pub(crate) fn accepted(&self, slot: Slot, parent: Slot) {
        self.keep(slot, self.asker(parent));
    }

    fn keep(&self, slot: Slot, asker: Rc<str>) {
        let id = slot.id().0;
        self.ports.borrow_mut().insert(place(id), (id, asker));
    }

    /// On whose behalf a port was opened.
    fn asker(&self, slot: Slot) -> Rc<str> {
        let id = slot.id().0;
        match self.ports.borrow().get(&place(id)) {
            Some((known, asker)) if *known == id => asker.clone(),
            _ => self.untold.clone(),
        }
    }

    /// The tunnel is gone: the next one numbers anew.
    pub(crate) fn forget(&self) {
        *self.names.borrow_mut() = Vec::new();
        *self.ports.borrow_mut() = HashMap::new();
    }

    /// Writes an operation on a port down, and how it went.
    pub(crate) fn record(
        &self,
        op: Operation,
        slot: Slot,
        to: Option<SocketAddr>,
        local: Option<SocketAddr>,
        code: Code,
    ) {
        self.record_ends(op, slot, Ends { name: None, to, local }, code);
    }

    /// Writes down a connect, which was asked for by a name perhaps; then `to` is the one of its addresses that was
    /// tried, if any was.
    pub(crate) fn record_connect(
        &self,
        slot: Slot,
        name: Option<&str>,
        to: Option<SocketAddr>,
        local: Option<SocketAddr>,
        code: Code,
    ) {
        self.record_ends(Operation::Connect, slot, Ends { name, to, local }, code);
    }

    fn record_ends(&self, op: Operation, slot: Slot, ends: Ends<'_>, code: Code) {
        self.write(op, &self.asker(slot), Some(slot.id().to_string()), ends, code);
    }

    /// A datagram was dropped at `now`, since its destination is not allowed. At most one line a second tells of such,
    /// with how many there were since the one before: whoever sends them must not push other lines out of the queue.
    pub(crate) fn refused_datagram(&self, to: SocketAddr, now: Instant) {
        let Refused { told, untold } = self.refused.get();
        if told.is_some_and(|told| now.saturating_duration_since(told) < REFUSED_AGAIN) {
            return self.refused.set(Refused { told, untold: untold + 1 });
        }
        self.refused.set(Refused { told: Some(now), untold: 0 });
        let ends = Ends { to: Some(to), ..Ends::default() };
        self.write_counted(Operation::Datagram, UNTOLD, None, ends, Some(untold + 1), Code::Denied);
    }

    fn write(&self, op: Operation, asker: &str, port: Option<String>, ends: Ends<'_>, code: Code) {
        self.write_counted(op, asker, port, ends, None, code);
    }

    fn write_counted(
        &self,
        op: Operation,
        asker: &str,
        port: Option<String>,
        ends: Ends<'_>,
        count: Option<u64>,
        code: Code,
    ) {
        let result = code.word();
        let shown = ends.to.map(tracing::field::display);
        tracing::debug!(?op, asker, port, name = ends.name, to = shown, result, "operation");
        let writer = self.writer.borrow();
        let Some(writer) = &*writer else { return };
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        // On the wire IPv4 stands in IPv6's form.
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let ends = Ends { name: ends.name, to: ends.to.map(plain), local: ends.local.map(plain) };
        let line = Line { time, mediator: &self.mediator.borrow(), op, asker, port, ends, count, result };
        // Plain data: it always serialises.
        writer.send(serde_json::to_string(&line).unwrap_or_default());
    }

    /// Goes on to another target, or opens the same one's file again. What was sent is still written to the former one.
    ///
    /// # Errors
    /// The new file cannot be opened: the audit stays where it is.
    pub(crate) fn set_target(&self, target: Option<AuditTarget>) -> anyhow::Result<()> {
        if *self.target.borrow() == target {
            self.reopen();
            return Ok(());
        }
        let writer = target.clone().map(Writer::start).transpose()?;
        if let Some(former) = self.writer.replace(writer) {
            former.tell_lost();
        }
        *self.target.borrow_mut() = target;
        Ok(())
    }

    /// Opens the file again.
    pub(crate) fn reopen(&self) {
        if let Some(writer) = &*self.writer.borrow() {
            // A full queue is written to a file that may have been moved, which is noticed anyway.
            let _ = writer.queue.try_send(Message::Reopen);
        }
    }

    /// Waits, for a bounded time, until what was sent is written.
    pub(crate) fn finish(&self) {
        if let Some(writer) = self.writer.take() {
            writer.tell_lost();
            let Writer { queue, done, .. } = writer;
            drop(queue);
            let _ = done.recv_timeout(FLUSH);
        }
    }
}

/// A port's place and maker, without the count of its reuse.
fn place(id: u32) -> u32 {
    id & 0x000f_ffff
}

impl Writer {
    fn start(target: AuditTarget) -> anyhow::Result<Self> {
        let mut output = Output::open(target)?;
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let (tell, done) = sync_channel(1);
        let run = move || {
            output.run(&messages);
            let _ = tell.send(());
        };
        thread::Builder::new().name("audit".into()).spawn(run).context("cannot start the audit's thread")?;
        Ok(Self { queue, done, lost: Cell::new(0), warned: Cell::new(None) })
    }

    /// At the end, if there is room.
    fn tell_lost(&self) {
        if self.lost.get() > 0 {
            let _ = self.queue.try_send(Message::Lost(self.lost.get()));
        }
    }

    fn may_warn(&self, now: Instant) -> bool {
        let may = self.warned.get().is_none_or(|warned| now.saturating_duration_since(warned) >= WARN_AGAIN);
        if may {
            self.warned.set(Some(now));
        }
        may
    }

    fn send(&self, line: String) {
        let lost = self.lost.get();
        if lost > 0 {
            match self.queue.try_send(Message::Lost(lost)) {
                Ok(()) => self.lost.set(0),
                Err(_) => return self.lost.set(lost + 1),
            }
        }
        match self.queue.try_send(Message::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                // A queue that is full again and again would fill the log as well.
                if self.may_warn(Instant::now()) {
                    tracing::warn!("the audit's writer cannot keep up: lines are lost; is its disk slow?");
                }
                self.lost.set(self.lost.get() + 1);
            }
        }
    }
}

/// The writer's end.
struct Output {
    target: AuditTarget,
    file: Option<File>,
    looked: Instant,
    /// Lines that were not written, or not queued, and not told yet.
    lost: u64,
    /// The last write failed: that was said, and there may be half a line.
    failing: bool,
}

impl Output {
    fn open(target: AuditTarget) -> anyhow::Result<Self> {
        let file = match &target {
            AuditTarget::Stdout => None,
            AuditTarget::File(path) => {
                let opened = open(path).with_context(|| {
                    format!(
                        "--audit: cannot append to {}; give a file in a directory that this program may write",
                        path.display()
                    )
                })?;
                Some(opened)
            }
        };
        Ok(Self { target, file, looked: Instant::now(), lost: 0, failing: false })
    }

    /// Writes what comes until nobody can send any more.
    fn run(&mut self, messages: &Receiver<Message>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            // Lost lines are told within a second of there being room, even if nothing more happens.
            match messages.recv_timeout(LOOK_AGAIN) {
                Ok(message) => batch.push(message),
                Err(RecvTimeoutError::Timeout) if self.lost > 0 => {}
                Err(RecvTimeoutError::Timeout) => match messages.recv() {
                    Ok(message) => batch.push(message),
                    Err(_) => return,
                },
                Err(RecvTimeoutError::Disconnected) => return,
            }
            batch.extend(messages.try_iter().take(BATCH_MAX - 1));
            self.write_batch(&mut batch);
        }
    }

    fn write_batch(&mut self, batch: &mut Vec<Message>) {
        let (mut text, mut lines) = (String::new(), 0);
        let mut reopen = false;
        for message in batch.drain(..) {
            match message {
                Message::Line(line) => {
                    text.push_str(&line);
                    text.push('\n');
                    lines += 1;
                }
                Message::Lost(count) => self.lost += count,
                Message::Reopen => reopen = true,
            }
        }
        if reopen || self.looked.elapsed() >= LOOK_AGAIN || self.failing {
            self.follow(reopen);
        }
        let told = self.lost;
        if told > 0 {
            let time = humantime::format_rfc3339_millis(SystemTime::now());
            // What a failed write left may be half a line.
            let begin = if self.failing { "\n" } else { "" };
            text = format!("{begin}{{\"time\":\"{time}\",\"op\":\"lost\",\"count\":{told}}}\n{text}");
        }
        match self.write(text.as_bytes()) {
            Ok(()) => {
                self.lost -= told;
                if std::mem::take(&mut self.failing) {
                    tracing::warn!(lost = told, "the audit can be written again");
                }
            }
            Err(error) => {
                self.lost += lines;
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "the audit cannot be written: lines are lost until there is room; free space, or move --audit");
                }
            }
        }
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        match (&self.target, &mut self.file) {
            (AuditTarget::Stdout, _) => {
                let mut out = io::stdout().lock();
                out.write_all(text).and_then(|()| out.flush())
            }
            (AuditTarget::File(_), Some(file)) => file.write_all(text),
            (AuditTarget::File(path), None) => {
                let mut file = open(path)?;
                let written = file.write_all(text);
                self.file = Some(file);
                written
            }
        }
    }

    /// Opens the file again if another one, or none, is in its place.
    fn follow(&mut self, always: bool) {
        self.looked = Instant::now();
        let AuditTarget::File(path) = &self.target else { return };
        let there = std::fs::metadata(path).ok().map(|there| (there.dev(), there.ino()));
        let ours = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|ours| (ours.dev(), ours.ino()));
        if always || there.is_none() || there != ours {
            match open(path) {
                Ok(file) => self.file = Some(file),
                // It goes on in the one that is open.
                Err(error) => tracing::warn!(%error, file = %path.display(), "the audit's file cannot be opened again"),
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn slot() -> Slot {
        Slot::NONE
    }

    fn start(path: &Path) -> Audit {
        Audit::start(Some(AuditTarget::File(path.to_owned())), "cpe-1".into()).unwrap()
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn operations_are_written_with_who_asked_and_how_they_went() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let audit = start(&path);
        audit.name(1, "terminal \"desk\"");
        audit.opened(slot(), 1);
        let to = "10.0.0.5:22".parse().unwrap();
        audit.record(Operation::Connect, slot(), Some(to), None, Code::Ok);
        audit.opened(slot(), 0);
        audit.record(Operation::Open, slot(), None, Some("10.0.0.2:80".parse().unwrap()), Code::Denied);
        audit.refused_datagram(to, Instant::now());
        audit.finish();
        let lines = lines(&path);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!((&lines[0]["op"], &lines[0]["asker"]), (&"connect".into(), &"terminal \"desk\"".into()));
        assert_eq!((&lines[0]["to"], &lines[0]["result"]), (&"10.0.0.5:22".into(), &"ok".into()));
        assert_eq!((&lines[1]["asker"], &lines[1]["result"]), (&"relay".into(), &"denied".into()));
        assert_eq!(lines[2]["op"], "datagram");
        assert!(lines.iter().all(|line| line["mediator"] == "cpe-1" && line["time"].as_str().unwrap().ends_with('Z')));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn connects_by_name_tell_name_and_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let audit = start(&path);
        audit.record_connect(slot(), Some("db.local"), Some("10.0.0.5:22".parse().unwrap()), None, Code::Ok);
        audit.record_connect(slot(), Some("none.local"), None, None, Code::NameNotFound);
        audit.finish();
        let lines = lines(&path);
        assert_eq!((&lines[0]["name"], &lines[0]["to"]), (&"db.local".into(), &"10.0.0.5:22".into()));
        assert_eq!((&lines[1]["name"], &lines[1]["to"]), (&"none.local".into(), &serde_json::Value::Null));
        assert_eq!((&lines[1]["op"], &lines[1]["result"]), (&"connect".into(), &"name-not-found".into()));
    }

    #[test]
    fn another_target_takes_what_comes_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        let audit = start(&one);
        let to = |n: u16| Some(SocketAddr::from(([10, 0, 0, 5], n)));
        audit.record(Operation::Connect, slot(), to(1), None, Code::Ok);
        let nowhere = AuditTarget::File(dir.path().join("none/audit"));
        assert!(audit.set_target(Some(nowhere)).is_err());
        audit.record(Operation::Connect, slot(), to(2), None, Code::Ok);
        audit.set_target(Some(AuditTarget::File(two.clone()))).unwrap();
        audit.record(Operation::Connect, slot(), to(3), None, Code::Ok);
        audit.finish();
        assert_eq!(lines(&two).len(), 1);
        assert_eq!(lines(&two)[0]["to"], "10.0.0.5:3");
        let deadline = Instant::now() + FLUSH;
        while fs::read_to_string(&one).unwrap().lines().count() < 2 {
            assert!(Instant::now() < deadline, "the former target lacks its last lines");
            thread::yield_now();
        }
    }

    #[test]
    fn refused_datagrams_are_a_line_a_second_whatever_their_destinations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let audit = start(&path);
        let (begin, to) = (Instant::now(), |n| SocketAddr::from(([10, 0, 0, 5], n)));
        for n in 1..=5000 {
            audit.refused_datagram(to(n), begin);
        }
        audit.refused_datagram(to(6000), begin + REFUSED_AGAIN);
        audit.finish();
        let lines = lines(&path);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!((&lines[0]["to"], &lines[0]["count"]), (&"10.0.0.5:1".into(), &1.into()));
        assert_eq!((&lines[1]["to"], &lines[1]["count"]), (&"10.0.0.5:6000".into(), &5000.into()));
    }

    #[test]
    fn names_end_with_their_tunnel_and_impossible_numbers_are_passed_over() {
        let audit = Audit::start(None, "cpe-1".into()).unwrap();
        audit.name(0, "nobody");
        audit.name(ASKERS_MAX + 1, "nobody");
        assert!(audit.names.borrow().is_empty());
        audit.name(ASKERS_MAX, "last");
        audit.opened(slot(), ASKERS_MAX);
        assert_eq!(&*audit.asker(slot()), "last");
        audit.forget();
        assert_eq!((&*audit.asker(slot()), audit.names.borrow().len()), (UNTOLD, 0));
    }

    #[test]
    fn a_port_keeps_its_askers_name_when_the_number_is_given_to_another() {
        let audit = Audit::start(None, "cpe-1".into()).unwrap();
        audit.name(1, "terminal desk");
        audit.opened(slot(), 1);
        audit.name(1, "name evil.example.net");
        assert_eq!(&*audit.asker(slot()), "terminal desk");
        audit.accepted(slot(), slot());
        assert_eq!(&*audit.asker(slot()), "terminal desk");
        audit.opened(slot(), 1);
        assert_eq!(&*audit.asker(slot()), "name evil.example.net");
    }

    #[test]
    fn moved_file_is_made_anew_and_reopening_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("audit"), dir.path().join("audit.1"));
        let mut output = Output::open(AuditTarget::File(path.clone())).unwrap();
        output.write_batch(&mut vec![Message::Line("{\"n\":1}".into())]);
        fs::rename(&path, &moved).unwrap();
        output.write_batch(&mut vec![Message::Line("{\"n\":2}".into()), Message::Reopen]);
        assert_eq!((lines(&moved).len(), lines(&path).len()), (1, 1));
        assert_eq!(lines(&path)[0]["n"], 2);
    }

    #[test]
    fn lost_lines_are_told_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        // Every write to it fails as on a full disk.
        let mut output = Output::open(AuditTarget::File("/dev/full".into())).unwrap();
        output.write_batch(&mut vec![Message::Line("{}".into()), Message::Line("{}".into())]);
        assert_eq!((output.lost, output.failing), (2, true));
        output.target = AuditTarget::File(path.clone());
        output.write_batch(&mut vec![Message::Lost(3), Message::Line("{\"n\":1}".into())]);
        assert_eq!((output.lost, output.failing), (0, false));
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["op"], &lines[0]["count"], &lines[1]["n"]), (&"lost".into(), &5.into(), &1.into()));
    }

    #[test]
    fn a_stuck_writer_costs_lines_and_no_time() {
        let (queue, messages) = sync_channel(2);
        let (_tell, done) = sync_channel(1);
        let writer = Writer { queue, done, lost: Cell::new(0), warned: Cell::new(None) };
        for n in 0..5 {
            writer.send(n.to_string());
        }
        assert_eq!(writer.lost.get(), 3);
        assert_eq!(messages.try_iter().count(), 2);
        let warned = writer.warned.get().unwrap();
        assert!(!writer.may_warn(warned + WARN_AGAIN / 2), "the log is not filled");
        assert!(writer.may_warn(warned + WARN_AGAIN));
        writer.send("more".into());
        assert!(matches!(messages.try_recv(), Ok(Message::Lost(3))));
        assert_eq!(writer.lost.get(), 0);
    }
}

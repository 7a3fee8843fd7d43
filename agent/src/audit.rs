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

mod writer;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use isthmus_proto::Code;
use isthmus_proto::link::Slot;
use serde::Serialize;

use writer::Writer;

/// Names that a relay may give numbers to.
const ASKERS_MAX: u16 = 1024;

/// Between two lines about refused datagrams.
const REFUSED_AGAIN: Duration = Duration::from_secs(1);

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
            writer.reopen();
        }
    }

    /// Waits, for a bounded time, until what was sent is written.
    pub(crate) fn finish(&self) {
        if let Some(writer) = self.writer.take() {
            writer.finish();
        }
    }
}

/// A port's place and maker, without the count of its reuse.
fn place(id: u32) -> u32 {
    id & 0x000f_ffff
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;
    use std::thread;

    use super::writer::FLUSH;
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
}

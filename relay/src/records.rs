//! Session records: one line of JSON for each tunnel, terminal, stream and flow that has ended, for billing and inquiries.
//!
//! A shard hands a record over by a bounded queue and never waits; a thread of its own writes. What finds the queue full, and
//! what the disk does not take, is counted as lost. Files are turned over by size, and only so many are kept.

mod file;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use isthmus_proto::{Code, MediatorId};
use serde::Serialize;

use file::Turning;

/// Records that may wait for the disk.
const QUEUE: usize = 16_384;

/// Lines that are written at once.
const BATCH: usize = 512;

/// Between two looks whether the file is still where it was opened.
const LOOK: Duration = Duration::from_secs(1);

/// Between two words in the log about what could not be written.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// What kind of session a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A mediator's tunnel.
    Tunnel,
    /// A terminal's connection.
    Terminal,
    /// A TCP connection through a mediator.
    Stream,
    /// A UDP flow through a mediator.
    Flow,
}

/// A session that has ended. "In" is what came from the public side: from the visitor, or in a tunnel's own record to the
/// relay from the mediator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of what.
    pub kind: Kind,
    /// How it came in: `published …`, `name …`, `socks …`, `exposed …`, `service`.
    pub door: Box<str>,
    /// Whose machine was used.
    pub mediator: Option<MediatorId>,
    /// By whom: the token's name, where there was one.
    pub who: Option<Box<str>>,
    /// From where.
    pub from: Option<SocketAddr>,
    /// To which host, as it was asked for.
    pub to: Option<Box<str>>,
    /// When it began.
    pub began: SystemTime,
    /// How long it was.
    pub lasted: Duration,
    /// Payload bytes.
    pub bytes_in: u64,
    /// Payload bytes.
    pub bytes_out: u64,
    /// Of flows and tunnels.
    pub datagrams: Option<(u64, u64)>,
    /// Why it ended.
    pub end: Code,
}

/// A record as it is written; docs/records.md.
#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    kind: Kind,
    began: String,
    duration_ms: u64,
    door: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mediator: Option<&'a MediatorId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    who: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    datagrams_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    datagrams_out: Option<u64>,
    end: &'static str,
}

impl Record {
    fn line(&self) -> Vec<u8> {
        let line = Line {
            v: 1,
            kind: self.kind,
            began: humantime::format_rfc3339_millis(self.began).to_string(),
            duration_ms: self.lasted.as_millis() as u64,
            door: &self.door,
            mediator: self.mediator.as_ref(),
            who: self.who.as_deref(),
            from: self.from.map(|from| SocketAddr::new(from.ip().to_canonical(), from.port())),
            to: self.to.as_deref(),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            datagrams_in: self.datagrams.map(|(received, _)| received),
            datagrams_out: self.datagrams.map(|(_, sent)| sent),
            end: self.end.word(),
        };
        // Plain data: it always serialises.
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// Where records go, and how many files of which size there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordsConfig {
    /// The file that is written; older ones are beside it, with `.1` for the youngest.
    pub path: PathBuf,
    /// Bytes after which another file is begun.
    pub size_max: u64,
    /// Files in all.
    pub files_max: u32,
}

/// What became of records.
#[derive(Debug, Default)]
struct Tally {
    written: AtomicU64,
    lost: AtomicU64,
    errors: AtomicU64,
    reopen: AtomicBool,
}

/// The way to the writer; each shard has one.
#[derive(Clone, Debug)]
pub struct Records {
    queue: Sender<Record>,
    tally: Arc<Tally>,
}

impl Records {
    /// Opens the file, and starts the writer's thread, which ends when the last [`Records`] is gone and all is written.
    ///
    /// # Errors
    /// The file or the thread cannot be had.
    pub fn start(config: RecordsConfig) -> anyhow::Result<(Self, JoinHandle<()>)> {
        use anyhow::Context;
        let shown = config.path.display().to_string();
        let file = Turning::open(config).with_context(|| format!("--records: cannot write {shown}"))?;
        let (queue, received) = crossbeam_channel::bounded(QUEUE);
        let tally = Arc::new(Tally::default());
        let (told, writer) = (tally.clone(), Writer { file, received, tally: tally.clone(), warned: None });
        let thread = std::thread::Builder::new()
            .name("records".into())
            .spawn(move || writer.run())
            .context("cannot start the records' thread")?;
        Ok((Self { queue, tally: told }, thread))
    }

    /// Hands a record over, or counts it as lost.
    pub fn write(&self, record: Record) {
        if self.queue.try_send(record).is_err() {
            self.tally.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file again at the writer's next look, as after it was moved.
    pub fn reopen(&self) {
        self.tally.reopen.store(true, Ordering::Relaxed);
    }

    /// Each figure with its name.
    pub fn fields(&self) -> [(&'static str, u64); 3] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tally = &self.tally;
        [
            ("records_written", get(&tally.written)),
            ("records_lost", get(&tally.lost)),
            ("records_write_errors", get(&tally.errors)),
        ]
    }
}

struct Writer {
    file: Turning,
    received: Receiver<Record>,
    tally: Arc<Tally>,
    warned: Option<std::time::Instant>,
}

impl Writer {
    fn run(mut self) {
        loop {
            let first = match self.received.recv_timeout(LOOK) {
                Ok(record) => Some(record),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if self.tally.reopen.swap(false, Ordering::Relaxed) {
                self.file.close();
            }
            self.file.close_if_moved();
            let records: Vec<Record> = first.into_iter().chain(self.received.try_iter()).take(BATCH).collect();
            if !records.is_empty() {
                self.write(&records);
            }
        }
    }

    fn write(&mut self, records: &[Record]) {
        let lines: Vec<Vec<u8>> = records.iter().map(Record::line).collect();
        let (whole, error) = self.file.write(&lines);
        self.tally.written.fetch_add(whole as u64, Ordering::Relaxed);
        let Some(error) = error else { return };
        self.tally.lost.fetch_add((lines.len() - whole) as u64, Ordering::Relaxed);
        self.tally.errors.fetch_add(1, Ordering::Relaxed);
        let now = std::time::Instant::now();
        if self.warned.is_none_or(|at| now >= at + WARN_AGAIN) {
            self.warned = Some(now);
            let lost = self.tally.lost.load(Ordering::Relaxed);
            let path = self.file.path().display();
            tracing::error!(%error, lost, "records cannot be written to {path}; make room, or give --records elsewhere");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u64) -> Record {
        Record {
            kind: Kind::Stream,
            door: "published tcp:0.0.0.0:80".into(),
            mediator: Some("cpe-1".parse().unwrap()),
            who: None,
            from: Some("[::ffff:192.0.2.7]:40000".parse().unwrap()),
            to: Some("10.0.0.5:80".into()),
            began: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            lasted: Duration::from_millis(2_750),
            bytes_in: n,
            bytes_out: 20,
            datagrams: None,
            end: Code::Closed,
        }
    }

    fn lines(path: &std::path::Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn record_is_the_line_that_the_documentation_shows() {
        let line = String::from_utf8(record(10).line()).unwrap();
        assert_eq!(
            line,
            "{\"v\":1,\"kind\":\"stream\",\"began\":\"1970-01-01T00:00:01.500Z\",\"duration_ms\":2750,\
             \"door\":\"published tcp:0.0.0.0:80\",\"mediator\":\"cpe-1\",\"from\":\"192.0.2.7:40000\",\
             \"to\":\"10.0.0.5:80\",\"bytes_in\":10,\"bytes_out\":20,\"end\":\"closed\"}\n"
        );
        let page = include_str!("../../docs/records.md");
        for field in serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&line).unwrap().keys() {
            assert!(page.contains(&format!("`{field}`")), "docs/records.md says nothing of {field}");
        }
    }

    #[test]
    fn files_turn_over_by_size_and_are_few() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        let size = 3 * record(0).line().len() as u64;
        let (records, thread) =
            Records::start(RecordsConfig { path: path.clone(), size_max: size, files_max: 3 }).unwrap();
        (0..10).for_each(|n| records.write(record(n)));
        drop(records);
        thread.join().unwrap();
        let found = |name: &str| {
            lines(&dir.path().join(name)).iter().map(|l| l["bytes_in"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(found("records.jsonl"), [9]);
        assert_eq!(found("records.jsonl.1"), [6, 7, 8]);
        assert_eq!(found("records.jsonl.2"), [3, 4, 5]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn full_disk_costs_lines_that_are_counted_and_nothing_more() {
        // Writing there fails as on a full disk.
        let full = RecordsConfig { path: "/dev/full".into(), size_max: 1 << 20, files_max: 2 };
        let (records, thread) = Records::start(full).unwrap();
        (0..5).for_each(|n| records.write(record(n)));
        let tally = records.tally.clone();
        drop(records);
        thread.join().unwrap();
        assert_eq!((tally.lost.load(Ordering::Relaxed), tally.written.load(Ordering::Relaxed)), (5, 0));
        assert!(tally.errors.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn file_that_was_moved_away_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        let config = RecordsConfig { path: path.clone(), size_max: 1 << 20, files_max: 2 };
        let (records, thread) = Records::start(config).unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        records.reopen();
        records.write(record(1));
        drop(records);
        thread.join().unwrap();
        assert_eq!((lines(&path).len(), lines(&dir.path().join("moved")).len()), (1, 0));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

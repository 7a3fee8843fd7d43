//! The audit's thread: lines come by a bounded queue, and go to a file that may be moved, or to standard output.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;

use super::AuditTarget;

/// How long the last lines may take at the end.
pub(super) const FLUSH: Duration = Duration::from_secs(1);

/// Lines that may wait for the disk.
const QUEUE_MAX: usize = 4096;

/// Lines that are written at once.
const BATCH_MAX: usize = 256;

/// Between two looks whether the file is still where it was opened.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Between two words in the log about lost lines.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// The way to the writer's thread.
pub(super) struct Writer {
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

impl Writer {
    /// Opens the target, and starts its thread.
    pub(super) fn start(target: AuditTarget) -> anyhow::Result<Self> {
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

    /// Opens the file again.
    pub(super) fn reopen(&self) {
        // A full queue is written to a file that may have been moved, which is noticed anyway.
        let _ = self.queue.try_send(Message::Reopen);
    }

    /// Waits, for a bounded time, until what was sent is written.
    pub(super) fn finish(self) {
        self.tell_lost();
        let Self { queue, done, .. } = self;
        drop(queue);
        let _ = done.recv_timeout(FLUSH);
    }

    /// At the end, if there is room.
    pub(super) fn tell_lost(&self) {
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

    /// Hands a line over, or counts it as lost.
    pub(super) fn send(&self, line: String) {
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

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
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

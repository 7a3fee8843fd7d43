//! A process that lives as long as its guard, and whose output can be awaited.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Lines kept of one process, the latest.
const LINES_MAX: usize = 10_000;

/// A running process. Dropping it kills it, by its identifier, and waits until it is gone.
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
}

impl Process {
    /// Starts a command with both outputs captured.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(name: impl Into<String>, mut command: Command) -> anyhow::Result<Self> {
        let name = name.into();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let log = Arc::new(Log::default());
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|output| Box::new(output) as _),
            child.stderr.take().map(|output| Box::new(output) as _),
        ];
        log.lock().open = outputs.len();
        for output in outputs.into_iter().flatten() {
            let log = Arc::clone(&log);
            thread::spawn(move || log.follow(output));
        }
        Ok(Self { name, child, log })
    }

    /// What it is, and where.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its identifier.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for a line that contains `text`, on either output, and returns it. Lines that came before count.
    ///
    /// # Errors
    /// It does not come within `limit`, or the outputs end without it; with its last words.
    pub fn wait_for(&self, text: &str, limit: Duration) -> anyhow::Result<String> {
        self.wait_for_after(0, text, limit)
    }

    /// The same for lines after a [`Process::mark`].
    ///
    /// # Errors
    /// As there.
    pub fn wait_for_after(&self, mark: usize, text: &str, limit: Duration) -> anyhow::Result<String> {
        let deadline = Instant::now() + limit;
        let mut log = self.log.lock();
        loop {
            let skip = mark.saturating_sub(log.dropped);
            if let Some(line) = log.lines.iter().skip(skip).find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if log.open == 0 || left.is_zero() {
                let why = if log.open == 0 { "ended" } else { "still runs" };
                drop(log);
                bail!("{} {why}, and did not say '{text}': {}", self.name, self.last_words());
            }
            log = self.log.changed.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How many lines it has written so far.
    pub fn mark(&self) -> usize {
        let log = self.log.lock();
        log.dropped + log.lines.len()
    }

    /// What it wrote last, on one line.
    pub fn last_words(&self) -> String {
        let log = self.log.lock();
        super::last_lines(log.lines.iter().map(String::as_str), "it said nothing")
    }

    /// Kills it as a crash would (SIGKILL), and waits until it is gone.
    pub fn kill(&mut self) {
        // It may be gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: VecDeque<String>,
    /// Older lines that are not kept.
    dropped: usize,
    /// Outputs that have not ended.
    open: usize,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, output: impl Read) {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
            let mut state = self.lock();
            if state.lines.len() == LINES_MAX {
                state.lines.pop_front();
                state.dropped += 1;
            }
            state.lines.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
            drop(state);
            self.changed.notify_all();
            line.clear();
        }
        self.lock().open -= 1;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn sh(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("sh", command).unwrap()
    }

    #[test]
    fn lines_of_both_outputs_are_awaited() {
        let process = sh("echo one; echo two is here >&2; sleep 600");
        assert_eq!(process.wait_for("two", LONG).unwrap(), "two is here");
        assert_eq!(process.wait_for("one", LONG).unwrap(), "one");
        assert_eq!(process.mark(), 2);
        assert!(process.wait_for_after(2, "one", Duration::from_millis(1)).is_err());
    }

    #[test]
    fn end_without_the_line_tells_the_last_words_at_once() {
        let process = sh("echo no such option >&2; exit 2");
        let error = process.wait_for("ready", LONG * 100).unwrap_err().to_string();
        assert!(error.contains("ended") && error.contains("no such option"), "{error}");
    }

    #[test]
    fn dropped_process_is_gone() {
        let mut process = sh("exec sleep 600");
        assert!(process.runs());
        let entry = format!("/proc/{}", process.pid());
        drop(process);
        assert!(!std::path::Path::new(&entry).exists());
    }
}

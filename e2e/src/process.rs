//! A process that lives as long as its guard, and whose output can be awaited.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Lines kept of one process: enough for any test, and a bound for a process that goes astray.
const LINES_MAX: usize = 50_000;
/// Lines shown when a test fails.
const LINES_SHOWN: usize = 60;
/// How often the end of a process is looked for: std has no wait with a time limit.
const POLL: Duration = Duration::from_millis(10);

/// A running process. Dropping it kills that process (by its identifier, nothing else); when the test is failing, what
/// it wrote last is shown.
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
}

/// What a process left that was run to its end.
#[derive(Debug)]
pub struct Finished {
    /// How it ended; `timeout`'s code 124 when it took too long.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Both outputs as one text, for tests that do not care where a message goes.
    pub fn all(&self) -> String {
        format!("{}{}", self.text(), self.stderr)
    }

    /// Itself, if it ended well.
    ///
    /// # Panics
    /// If it did not, with all that it wrote.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "ended with {}:\n{}", self.status, self.all());
        self
    }

    /// Itself, if it ended with a failure of its own: not by a time limit, nor by a signal.
    ///
    /// # Panics
    /// If it did not, with all that it wrote.
    #[track_caller]
    pub fn failed(self) -> Self {
        let own = self.status.code().is_some_and(|code| code != 0 && code != 124);
        assert!(own, "should have failed, but ended with {}:\n{}", self.status, self.all());
        self
    }
}

impl Process {
    /// Starts `command` with both outputs captured and standard input open.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(name: impl Into<String>, mut command: Command) -> Self {
        let name = name.into();
        // Colours would stand between the words that a test looks for.
        command.env("NO_COLOR", "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
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
        Self { name, child, log }
    }

    /// The process's identifier.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many lines it has written: a place in its output for [`Process::wait_for_line_after`].
    pub fn mark(&self) -> usize {
        self.log.lock().lines.len()
    }

    /// All lines so far, of both outputs, in the order of their arrival.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// Whether a line after `mark` matches, now.
    pub fn said_after(&self, mark: usize, pattern: &str) -> bool {
        self.log.lock().lines.iter().skip(mark).any(|line| matches(line, pattern))
    }

    /// Waits for a line that matches `pattern` and returns it: `tunnel ended mediator=cpe .. reason=killed` is two texts
    /// in that order with anything between. The search starts with the first line ever written.
    ///
    /// # Panics
    /// If it does not come within `timeout`, or the process ends without it.
    #[track_caller]
    pub fn wait_for_line(&self, pattern: &str, timeout: Duration) -> String {
        self.wait_for_line_after(0, pattern, timeout)
    }

    /// The same for the lines after [`Process::mark`].
    ///
    /// # Panics
    /// As [`Process::wait_for_line`].
    #[track_caller]
    pub fn wait_for_line_after(&self, mark: usize, pattern: &str, timeout: Duration) -> String {
        self.wait_for_any_after(mark, &[pattern], timeout)
    }

    /// The same with several patterns, any of which will do.
    ///
    /// # Panics
    /// As [`Process::wait_for_line`].
    #[track_caller]
    pub fn wait_for_any_after(&self, mark: usize, patterns: &[&str], timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        let mut seen = mark;
        let mut log = self.log.lock();
        loop {
            if let Some(line) = log.lines.iter().skip(seen).find(|line| patterns.iter().any(|p| matches(line, p))) {
                return line.clone();
            }
            seen = log.lines.len().max(mark);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || log.open == 0 {
                let why = if log.open == 0 { "ended without" } else { "did not say in time" };
                drop(log);
                panic!("{} {why}: {patterns:?}", self.name);
            }
            log = self.log.changed.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes to its standard input.
    ///
    /// # Panics
    /// If it was closed.
    pub fn write(&mut self, bytes: &[u8]) {
        let input = self.child.stdin.as_mut().expect("standard input is open");
        input.write_all(bytes).and_then(|()| input.flush()).expect("the process reads its standard input");
    }

    /// Closes its standard input: the end of the file, to the process.
    pub fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Asks it to end, as a service manager does (SIGTERM).
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may be gone already, which is what a terminating signal is for.
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it still runs after `timeout`.
    #[track_caller]
    pub fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} still runs after {timeout:?}", self.name);
            thread::sleep(POLL);
        }
    }

    /// Whether it has not ended yet.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let lines = self.lines();
            let first = lines.len().saturating_sub(LINES_SHOWN);
            eprintln!("--- {} wrote {} lines, at last:", self.name, lines.len());
            for line in &lines[first..] {
                eprintln!("    {line}");
            }
        }
    }
}

#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    /// Outputs that have not ended.
    open: usize,
}

impl Log {
    /// A test that panics with the lock held has poisoned nothing: lines are only ever added.
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self, output: impl Read) {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
            let mut state = self.lock();
            if state.lines.len() < LINES_MAX {
                state.lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            drop(state);
            self.changed.notify_all();
            line.clear();
        }
        self.lock().open -= 1;
        self.changed.notify_all();
    }
}

/// Whether `line` contains the parts of `pattern` (between `..`) in their order. Quotes in the line do not count, since
/// the log puts some values into them.
fn matches(line: &str, pattern: &str) -> bool {
    let line = line.replace('"', "");
    let mut rest = line.as_str();
    pattern.split("..").map(str::trim).all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn("sh", command)
    }

    #[test]
    fn parts_match_whole_and_in_their_order_only() {
        assert!(matches("INFO tunnel down: by hand reason=\"killed\"", "tunnel down .. reason=killed"));
        assert!(!matches("reason=killed tunnel down", "tunnel down .. reason=killed"));
        assert!(!matches("tunnel down was_up=true", "tunnel up"));
    }

    #[test]
    fn lines_are_awaited_on_both_outputs_and_after_a_mark() {
        let mut process = sh("echo one; echo two >&2; read line; echo one again");
        process.wait_for_line("one", SECONDS);
        process.wait_for_line("two", SECONDS);
        let mark = process.mark();
        assert!(!process.said_after(mark, "one"));
        process.write(b"go\n");
        assert_eq!(process.wait_for_line_after(mark, "one", SECONDS), "one again");
        assert!(process.wait_exit(SECONDS).success());
    }

    #[test]
    #[should_panic(expected = "ended without")]
    fn a_process_that_ends_fails_the_wait_at_once() {
        sh("echo other").wait_for_line("never", SECONDS * 100);
    }

    const SECONDS: Duration = Duration::from_secs(10);
}

//! `isthmus-relay ctl`: one command to a running relay, its answer to standard output.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::answer::ERROR;
use crate::config::CtlArgs;

/// The relay answers sooner or says that it cannot.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest answer taken: the longest page of tunnels with the longest reports fits many times.
const ANSWER_MAX: u64 = 256 * 1024 * 1024;

/// Runs the command; the exit code is 1 if any of its answers is an error.
///
/// # Errors
/// No relay runs there, or the connection is lost.
pub fn run(args: &CtlArgs) -> anyhow::Result<ExitCode> {
    let command = args.command.join(" ");
    if watches(&command) {
        return watch(&args.stats_socket_path(), &command);
    }
    let answer = ask(&args.stats_socket_path(), &command)?;
    let failed = answers(&answer).any(|text| text.starts_with(ERROR));
    let shown: Vec<&str> = answers(&answer).collect();
    match writeln!(io::stdout(), "{}", shown.join("\n\n")) {
        // Nobody reads on, as with `| head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result.context("cannot write the answer")?,
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Whether a line's answer goes on, so that it is shown as it comes.
fn watches(command: &str) -> bool {
    command.split_whitespace().any(|word| word == "-w")
}

/// Shows what comes, until the relay ends or nobody reads any more.
fn watch(path: &Path, command: &str) -> anyhow::Result<ExitCode> {
    let mut stream = connect(path, command)?;
    // Our end stays open: its end would end the answer.
    stream.write_all(command.as_bytes()).and_then(|()| stream.write_all(b"\n")).context("cannot send the command")?;
    let (mut out, mut chunk, mut first) = (io::stdout().lock(), [0; 4096], true);
    let mut failed = false;
    loop {
        let length = stream.read(&mut chunk).context("the answer did not come to its end")?;
        failed |= std::mem::take(&mut first) && chunk[..length].starts_with(ERROR.as_bytes());
        if length == 0 || (failed && chunk[..length].ends_with(b"\n\n")) {
            return Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        match out.write_all(&chunk[..length]).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            result => result.context("cannot write the answer")?,
        }
    }
}

fn connect(path: &Path, command: &str) -> anyhow::Result<UnixStream> {
    let shown = path.display();
    ensure!(!command.contains('\n'), "a command is one line; separate commands with ';'");
    match UnixStream::connect(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            bail!("no relay runs with the stats socket {shown}; start it, or give its --stats-socket or --state")
        }
        result => result.with_context(|| format!("cannot connect to the stats socket {shown}")),
    }
}

/// Sends one line of commands and reads all answers, blank lines included.
pub(crate) fn ask(path: &Path, command: &str) -> anyhow::Result<String> {
    let mut stream = connect(path, command)?;
    stream.set_read_timeout(Some(READ_TIMEOUT)).context("cannot set a timeout")?;
    // A relay that refuses the connection closes before it reads: what it says is worth more than our EPIPE.
    let sent = stream.write_all(command.as_bytes()).and_then(|()| stream.write_all(b"\n"));
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_MAX).read_to_end(&mut answer);
    if answer.is_empty() {
        sent.context("cannot send the command")?;
    }
    match read {
        // The rest of our line was not read, as behind `quit`; the answers before are whole.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset && answer.ends_with(b"\n\n") => {}
        result => {
            result.context("the answer did not come to its end")?;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The single answers: each ends with a blank line.
pub(crate) fn answers(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").filter(|answer| !answer.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_relay_is_named_with_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        let error = ask(&dir.path().join("none"), "help").unwrap_err().to_string();
        assert!(error.contains("no relay runs") && error.contains("--stats-socket"), "{error}");
    }

    #[test]
    fn commands_of_two_lines_are_refused_before_anything_is_sent() {
        assert!(ask(Path::new("/"), "help\nquit").unwrap_err().to_string().contains("one line"));
    }

    #[test]
    fn answers_are_told_apart_by_blank_lines() {
        assert_eq!(answers("a\nb\n\nerror: c\n\n").collect::<Vec<_>>(), ["a\nb", "error: c"]);
        assert_eq!(answers("").count(), 0);
    }
}

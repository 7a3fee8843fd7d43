//! Bulk TCP: so many streams with large writes or reads, for so many seconds, against [`crate::peer`].

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::load::own::Own;
use crate::load::preface::Target;
use crate::peer::stream::{self, BLOCK};
use crate::report::Line;
use crate::usage::{Usage, Watched};

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sinks, or what leads to them, at least one; the streams take turns.
    pub to: Vec<Target>,
    /// Streams at once.
    pub streams: usize,
    /// Time that is measured.
    pub measured: Duration,
    /// Time before it, for windows to grow.
    pub warm_up: Duration,
    /// `true`: from us to the sink.
    pub up: bool,
    /// Processes whose CPU time is wanted.
    pub watched: Vec<Watched>,
}

/// How long a stream may take to begin, and at the end to notice that it is over.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the load: `gbit_s`, `bytes`, the slowest and fastest stream's share, and CPU times.
///
/// # Errors
/// A stream cannot be made or ends early; a watched process is gone.
pub fn run(settings: &Settings) -> anyhow::Result<Line> {
    let moved: Vec<AtomicU64> = (0..settings.streams).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    let sockets = (0..settings.streams).map(|number| connect(settings, number)).collect::<anyhow::Result<Vec<_>>>()?;
    let (failed, failures) = mpsc::channel();
    thread::scope(|scope| {
        for (socket, moved) in sockets.iter().zip(&moved) {
            let (failed, stop) = (failed.clone(), &stop);
            scope.spawn(move || {
                let result = if settings.up { push(socket, moved) } else { pull(socket, moved) };
                if let Err(error) = result
                    && !stop.load(Ordering::Relaxed)
                {
                    // Nobody listens any more when it is over.
                    let _ = failed.send(error);
                }
            });
        }
        let result = measure(settings, &moved, &failures);
        stop.store(true, Ordering::Relaxed);
        for socket in &sockets {
            // Ends the threads' calls; an error means that the connection is gone, which ends them too.
            let _ = socket.shutdown(Shutdown::Both);
        }
        result
    })
}

fn connect(settings: &Settings, number: usize) -> anyhow::Result<TcpStream> {
    let to = settings.to.get(number % settings.to.len().max(1)).context("give at least one --to")?;
    let Target { address, preface } = to;
    let socket =
        TcpStream::connect_timeout(address, PATIENCE).with_context(|| format!("cannot connect to {address}"))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let wish = if settings.up { stream::SINK } else { stream::SOURCE };
    preface.speak(&socket, &[wish]).with_context(|| format!("no way through {address}"))?;
    Ok(socket)
}

fn push(mut socket: &TcpStream, moved: &AtomicU64) -> std::io::Result<()> {
    let block = vec![0x5a; BLOCK];
    loop {
        let sent = socket.write(&block)?;
        moved.fetch_add(sent as u64, Ordering::Relaxed);
    }
}

fn pull(mut socket: &TcpStream, moved: &AtomicU64) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        match socket.read(&mut block)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            received => moved.fetch_add(received as u64, Ordering::Relaxed),
        };
    }
}

fn measure(
    settings: &Settings,
    moved: &[AtomicU64],
    failures: &mpsc::Receiver<std::io::Error>,
) -> anyhow::Result<Line> {
    pass(settings.warm_up, failures)?;
    let counts = || moved.iter().map(|moved| moved.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (before, usage, own, started) = (counts(), Usage::now(&settings.watched)?, Own::now(), Instant::now());
    pass(settings.measured, failures)?;
    let (after, used, seconds) = (counts(), Usage::now(&settings.watched)?, started.elapsed().as_secs_f64());
    let share = own.since();
    let each: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    let bytes: u64 = each.iter().sum();
    let gbit_s = |bytes: Option<&u64>| bytes.copied().unwrap_or(0) as f64 * 8.0 / seconds / 1e9;
    let mut line = Line::default()
        .with("gbit_s", format_args!("{:.3}", bytes as f64 * 8.0 / seconds / 1e9))
        .with("bytes", bytes)
        .with("seconds", format_args!("{seconds:.3}"))
        .with("slowest_gbit_s", format_args!("{:.3}", gbit_s(each.iter().min())))
        .with("fastest_gbit_s", format_args!("{:.3}", gbit_s(each.iter().max())));
    share.report(share.saturated(settings.streams), (&usage, &used), &mut line);
    used.report(&usage, &settings.watched, &mut line);
    Ok(line)
}

/// Lets time pass, unless a stream fails.
fn pass(time: Duration, failures: &mpsc::Receiver<std::io::Error>) -> anyhow::Result<()> {
    match failures.recv_timeout(time) {
        Ok(error) => Err(error).context("a stream ended early"),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn settings(to: SocketAddr, up: bool) -> Settings {
        let time = Duration::from_millis(300);
        Settings { to: vec![to.into()], streams: 3, measured: time, warm_up: time, up, watched: Vec::new() }
    }

    #[test]
    fn both_directions_move_bytes_on_every_stream() {
        let to = stream::spawn("127.0.0.1:0".parse().unwrap()).unwrap();
        let other = stream::spawn("127.0.0.1:0".parse().unwrap()).unwrap();
        // What precedes a stream led by a name does not change it.
        let named: Target = format!("{other},tls=www.example.net").parse().unwrap();
        for up in [true, false] {
            let line = run(&Settings { to: vec![to.into(), named.clone()], ..settings(to, up) }).unwrap().to_string();
            let value = |key: &str| {
                let word = line.split(' ').find_map(|word| word.strip_prefix(key)).unwrap();
                word.parse::<f64>().unwrap()
            };
            assert!(value("bytes=") > 0.0 && value("slowest_gbit_s=") > 0.0, "{line}");
        }
    }

    #[test]
    fn stream_that_ends_early_is_a_failure() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        thread::spawn(move || while listener.accept().is_ok() {});
        let long = Settings { warm_up: Duration::from_secs(60), ..settings(to, false) };
        assert!(format!("{:#}", run(&long).unwrap_err()).contains("ended early"));
    }
}

//! How streams end: orderly in one direction at a time, or by a reset.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use isthmus_e2e::noise;

use crate::{Outcome, during};

/// Longest silence on a connection before a test counts as failed.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(crate) struct Echo {
    /// Where to listen
    address: SocketAddr,
}

#[derive(Args)]
pub(crate) struct Ping {
    /// The echo server
    address: SocketAddr,
    /// Bytes to send
    #[arg(long, default_value_t = 100_000)]
    bytes: usize,
}

#[derive(Args)]
pub(crate) struct Pipe {
    /// Where to connect
    address: SocketAddr,
}

#[derive(Args)]
pub(crate) struct HalfCloseServe {
    /// Where to listen
    address: SocketAddr,
    /// Send this many bytes and end before reading anything
    #[arg(long, default_value_t = 0)]
    first: usize,
}

#[derive(Args)]
pub(crate) struct HalfCloseCall {
    /// The server
    address: SocketAddr,
    /// Bytes to send
    #[arg(long, default_value_t = 1_000_000)]
    bytes: usize,
    /// Bytes that the server sends first; its end is awaited before the first byte is sent
    #[arg(long, default_value_t = 0)]
    first: usize,
}

/// What one side of a connection does, after a byte each way has shown that it is established end to end.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum End {
    /// Close in an orderly way
    Fin,
    /// Reset
    Reset,
    /// Read to the end and print `end fin` or `end reset`
    Watch,
}

#[derive(Args)]
pub(crate) struct EndServe {
    /// Where to listen
    address: SocketAddr,
    /// What to do with each connection
    #[arg(long)]
    how: End,
}

#[derive(Args)]
pub(crate) struct EndCall {
    /// The server
    address: SocketAddr,
    /// What to do
    #[arg(long)]
    how: End,
}

pub(crate) fn echo(args: &Echo) -> Outcome {
    accept_each(args.address, |mut stream| {
        let mut reader = stream.try_clone().map_err(during("clone"))?;
        std::io::copy(&mut reader, &mut stream).map_err(during("echo"))?;
        stream.shutdown(Shutdown::Write).map_err(during("end"))
    })
}

pub(crate) fn ping(args: &Ping) -> Outcome {
    let stream = connect(args.address)?;
    let payload = noise(args.bytes as u64, args.bytes);
    let mut answer = Vec::new();
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            (&stream).write_all(&payload).map_err(during("send"))?;
            stream.shutdown(Shutdown::Write).map_err(during("end"))
        });
        let received = (&stream).read_to_end(&mut answer).map_err(during("receive"));
        sender.join().map_err(|_| "the sender panicked".to_owned())?.and(received)
    })?;
    if answer != payload {
        return Err(format!("{} bytes came back for {}, or others", answer.len(), payload.len()));
    }
    println!("{} bytes echoed", payload.len());
    Ok(())
}

pub(crate) fn pipe(args: &Pipe) -> Outcome {
    let stream = TcpStream::connect(args.address).map_err(during("connect"))?;
    println!("connected");
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            std::io::copy(&mut std::io::stdin(), &mut &stream).map_err(during("send"))?;
            stream.shutdown(Shutdown::Write).map_err(during("end"))
        });
        // Standard output is flushed at each end of a line.
        let received = std::io::copy(&mut &stream, &mut std::io::stdout()).map_err(during("receive"));
        println!("{}", if received.is_ok() { "end fin" } else { "end reset" });
        sender.join().map_err(|_| "the sender panicked".to_owned())?.and(received.map(drop))
    })
}

pub(crate) fn half_close_serve(args: &HalfCloseServe) -> Outcome {
    let first = args.first;
    accept_each(args.address, move |mut stream| {
        if first > 0 {
            stream.write_all(&noise(first as u64, first)).map_err(during("send"))?;
            stream.shutdown(Shutdown::Write).map_err(during("end"))?;
        }
        let mut received = Vec::new();
        stream.read_to_end(&mut received).map_err(during("receive"))?;
        let summary = summary(&received);
        println!("received {summary}");
        if first == 0 {
            stream.write_all(summary.as_bytes()).map_err(during("answer"))?;
        }
        Ok(())
    })
}

pub(crate) fn half_close_call(args: &HalfCloseCall) -> Outcome {
    let mut stream = connect(args.address)?;
    let mut answer = Vec::new();
    if args.first > 0 {
        stream.read_to_end(&mut answer).map_err(during("receive before sending"))?;
        if answer != noise(args.first as u64, args.first) {
            return Err(format!("{} other bytes than the {} expected came first", answer.len(), args.first));
        }
    }
    let payload = noise(args.bytes as u64, args.bytes);
    stream.write_all(&payload).map_err(during("send"))?;
    stream.shutdown(Shutdown::Write).map_err(during("end"))?;
    if args.first == 0 {
        stream.read_to_end(&mut answer).map_err(during("receive after the end"))?;
        if answer != summary(&payload).as_bytes() {
            return Err(format!("the server got something else: {}", String::from_utf8_lossy(&answer)));
        }
    }
    println!("sent {}", summary(&payload));
    Ok(())
}

pub(crate) fn end_serve(args: &EndServe) -> Outcome {
    let how = args.how;
    accept_each(args.address, move |stream| end(stream, how))
}

pub(crate) fn end_call(args: &EndCall) -> Outcome {
    let stream = match TcpStream::connect(args.address) {
        // The port that is connected to may refuse on behalf of its target: to the caller that is a reset too.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused && matches!(args.how, End::Watch) => {
            println!("end reset");
            return Ok(());
        }
        other => limit(other.map_err(during("connect"))?)?,
    };
    end(stream, args.how)
}

fn end(mut stream: TcpStream, how: End) -> Outcome {
    match stream.write_all(b"x") {
        // The system tells of a reset once: what reads afterwards would see an ordinary end.
        Err(error) if is_reset(error.kind()) && matches!(how, End::Watch) => {
            println!("end reset");
            return Ok(());
        }
        other => other.map_err(during("send"))?,
    }
    let mut byte = [0];
    match how {
        End::Reset => {
            // Closing a socket with unread bytes resets the connection, so the byte is looked at and left there.
            if stream.peek(&mut byte).map_err(during("peek"))? == 0 {
                return Err("the connection ended before it could be reset".into());
            }
            drop(stream);
            Ok(())
        }
        End::Fin => {
            stream.read_exact(&mut byte).map_err(during("receive"))?;
            stream.shutdown(Shutdown::Write).map_err(during("end"))?;
            match stream.read_to_end(&mut Vec::new()) {
                Err(error) => Err(format!("receive after the end: {error}")),
                Ok(_) => Ok(()),
            }
        }
        End::Watch => match stream.read_to_end(&mut Vec::new()) {
            Ok(len) => {
                println!("end fin after {len} bytes");
                Ok(())
            }
            Err(error) if is_reset(error.kind()) => {
                println!("end reset");
                Ok(())
            }
            Err(error) => Err(format!("receive: {error}")),
        },
    }
}

fn is_reset(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Accepts for ever, with a thread for each connection; what goes wrong on one is printed and ends only that one.
pub(crate) fn accept_each(
    address: SocketAddr,
    handle: impl Fn(TcpStream) -> Outcome + Send + Sync + 'static,
) -> Outcome {
    let listener = TcpListener::bind(address).map_err(during("bind"))?;
    println!("ready {}", listener.local_addr().map_err(during("local address"))?);
    let handle = std::sync::Arc::new(handle);
    loop {
        let (stream, peer) = listener.accept().map_err(during("accept"))?;
        let handle = std::sync::Arc::clone(&handle);
        thread::spawn(move || {
            println!("connection from {peer}");
            if let Err(text) = limit(stream).and_then(|stream| handle(stream)) {
                println!("connection from {peer}: {text}");
            }
        });
    }
}

pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    limit(TcpStream::connect(address).map_err(during("connect"))?)
}

/// Bounds every wait on `stream`.
fn limit(stream: TcpStream) -> Result<TcpStream, String> {
    stream.set_read_timeout(Some(SILENCE_MAX)).map_err(during("time limit"))?;
    stream.set_write_timeout(Some(SILENCE_MAX)).map_err(during("time limit"))?;
    stream.set_nodelay(true).map_err(during("nodelay"))?;
    Ok(stream)
}

/// Length and FNV-1a checksum.
fn summary(bytes: &[u8]) -> String {
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{} bytes {sum:016x}", bytes.len())
}

//! Streams on one connection of the tunnel, as Isthmus has it: each end has a thread that gathers from all sockets what it
//! sends on it, and one that spreads what comes. No windows: who does not read stops all others, so this is for loads that read.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use super::spawn;
use super::streams::{BYTES, bind, connect};

/// What stands before each part of a stream: its number, and how many bytes follow. None: its end.
const HEADER: usize = 8;

/// A stream with its number.
type Newcomer = (u32, Arc<TcpStream>);

/// What both threads of an end know.
struct End {
    streams: Mutex<HashMap<u32, Arc<TcpStream>>>,
    /// To the thread that gathers; a byte wakes it.
    newcomers: Sender<Newcomer>,
    wake: UnixStream,
}

impl End {
    /// One of this tunnel, with the thread that gathers.
    fn gathering(tunnel: &TcpStream) -> anyhow::Result<Arc<Self>> {
        tunnel.set_nodelay(true)?;
        let (wake, woken) = UnixStream::pair().context("cannot make a pair of sockets")?;
        let (newcomers, take) = mpsc::channel();
        let tunnel = tunnel.try_clone()?;
        spawn("gather", move || gather(&tunnel, &take, &woken))?;
        Ok(Arc::new(Self { streams: Mutex::default(), newcomers, wake }))
    }

    fn add(&self, number: u32, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(number, stream.clone());
        // The thread that gathers ends with the process only.
        let _ = self.newcomers.send((number, stream));
        let _ = (&self.wake).write_all(&[1]);
    }

    fn get(&self, number: u32) -> Option<Arc<TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// The other end sends nothing more on it; this one still may.
    fn finish(&self, number: u32) {
        if let Some(stream) = self.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&number) {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}

pub(super) fn relay(tunnel: SocketAddr, visitors: SocketAddr, ready: impl FnOnce()) -> anyhow::Result<()> {
    let (tunnel, visitors) = (bind(tunnel)?, bind(visitors)?);
    ready();
    let (connection, _) = tunnel.accept().context("no tunnel comes")?;
    let end = End::gathering(&connection)?;
    {
        let end = end.clone();
        spawn("scatter", move || drop(scatter(&connection, &end, |_| Ok(()))))?;
    }
    for (number, visitor) in (0..).zip(visitors.incoming()) {
        end.add(number, visitor.context("cannot accept visitors any more")?);
    }
    Ok(())
}

pub(super) fn mediator(tunnel: SocketAddr, host: SocketAddr, ready: impl FnOnce()) -> anyhow::Result<()> {
    let connection = connect(tunnel)?;
    let end = End::gathering(&connection)?;
    ready();
    scatter(&connection, &end, |number| {
        end.add(number, TcpStream::connect(host).with_context(|| format!("cannot connect to {host}"))?);
        Ok(())
    })
}

/// Sends on what any of the streams gives, until the tunnel ends.
fn gather(mut tunnel: &TcpStream, newcomers: &Receiver<Newcomer>, mut woken: &UnixStream) {
    let mut streams: Vec<Newcomer> = Vec::new();
    let mut bytes = vec![0; HEADER + BYTES];
    loop {
        let mut waits: Vec<_> = streams.iter().map(|(_, stream)| PollFd::new(stream, PollFlags::IN)).collect();
        waits.push(PollFd::new(woken, PollFlags::IN));
        if poll(&mut waits, None).is_err() {
            continue;
        }
        let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        let mut ended = Vec::new();
        for (place, _) in ready.iter().enumerate().filter(|&(place, &ready)| ready && place < streams.len()) {
            let (number, stream) = &streams[place];
            // A reset ends it like a FIN.
            let length = (&**stream).read(&mut bytes[HEADER..]).unwrap_or(0);
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            bytes[4..HEADER].copy_from_slice(&(length as u32).to_be_bytes());
            if tunnel.write_all(&bytes[..HEADER + length]).is_err() {
                return;
            }
            if length == 0 {
                ended.push(*number);
            }
        }
        streams.retain(|(number, _)| !ended.contains(number));
        if ready.last() == Some(&true) {
            let _ = woken.read(&mut [0; 64]);
            streams.extend(newcomers.try_iter());
        }
    }
}

/// Sends to each stream what comes for it; `meet` gets the number of one that is new.
///
/// # Errors
/// The tunnel has ended, or `meet` failed.
fn scatter(mut tunnel: &TcpStream, end: &End, meet: impl Fn(u32) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut bytes = vec![0; BYTES];
    // At the front of `bytes`: a part of a header.
    let mut held = 0;
    let mut left: Option<(Arc<TcpStream>, usize)> = None;
    loop {
        let read = tunnel.read(&mut bytes[held..]).context("the tunnel ended")?;
        ensure!(read > 0, "the tunnel ended");
        let mut rest = &bytes[..held + read];
        loop {
            if let Some((stream, length)) = left.take() {
                let (now, later) = rest.split_at(length.min(rest.len()));
                // Whoever went away meanwhile reads nothing.
                let _ = (&*stream).write_all(now);
                rest = later;
                if now.len() < length {
                    left = Some((stream, length - now.len()));
                    break;
                }
            }
            let Some((&[a, b, c, d, e, f, g, h], later)) = rest.split_first_chunk::<HEADER>() else { break };
            let (number, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]) as usize);
            rest = later;
            if end.get(number).is_none() {
                meet(number)?;
            }
            match end.get(number) {
                Some(_) if length == 0 => end.finish(number),
                Some(stream) => left = Some((stream, length)),
                None => anyhow::bail!("bytes for a stream that has ended"),
            }
        }
        let end_of_read = held + read;
        held = rest.len();
        bytes.copy_within(end_of_read - held..end_of_read, 0);
    }
}

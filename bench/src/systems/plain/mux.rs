//! Streams on one connection of the tunnel, as Isthmus has it: each end has a thread that gathers from all sockets what it
//! sends on it, and one that spreads what comes. No windows: who does not read stops all others, so this is for loads that read.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use super::spawn;
use super::streams::{BYTES, bind, connect};

/// What stands before each part of a stream: its number, and how many bytes follow, or [`FIN`] or [`RESET`].
const HEADER: usize = 8;

/// The end of one direction.
const FIN: u32 = 0;

/// The end of both.
const RESET: u32 = u32::MAX;

/// What the thread that gathers is told: a stream of its own from now on, or, without one, that the number is given up.
type Newcomer = (u32, Option<Arc<TcpStream>>);

/// A stream, and which of its directions have ended: from it, and to it.
type Entry = (Arc<TcpStream>, [bool; 2]);

/// What both threads of an end know.
struct End {
    streams: Mutex<HashMap<u32, Entry>>,
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
        let end = Arc::new(Self { streams: Mutex::default(), newcomers, wake });
        {
            let end = end.clone();
            spawn("gather", move || gather(&tunnel, &end, &take, &woken))?;
        }
        Ok(end)
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, newcomer: Newcomer) {
        // The thread that gathers ends with the process only.
        let _ = self.newcomers.send(newcomer);
        let _ = (&self.wake).write_all(&[1]);
    }

    fn add(&self, number: u32, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        self.streams().insert(number, (stream.clone(), [false; 2]));
        self.tell((number, Some(stream)));
    }

    fn get(&self, number: u32) -> Option<Arc<TcpStream>> {
        self.streams().get(&number).map(|(stream, _)| stream.clone())
    }

    /// One direction has ended; forgets the stream with the second one.
    fn finish(&self, number: u32, direction: usize) {
        let mut streams = self.streams();
        let Some((_, ended)) = streams.get_mut(&number) else { return };
        ended[direction] = true;
        if *ended == [true; 2] {
            streams.remove(&number);
        }
    }

    /// Both have.
    fn reset(&self, number: u32) {
        if let Some((stream, _)) = self.streams().remove(&number) {
            let _ = stream.shutdown(Shutdown::Both);
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
fn gather(mut tunnel: &TcpStream, end: &End, newcomers: &Receiver<Newcomer>, mut woken: &UnixStream) {
    let mut streams: Vec<(u32, Arc<TcpStream>)> = Vec::new();
    let mut bytes = vec![0; HEADER + BYTES];
    let mut send = |bytes: &mut [u8], number: u32, what: u32| {
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes[4..HEADER].copy_from_slice(&what.to_be_bytes());
        tunnel.write_all(bytes).is_ok()
    };
    loop {
        let mut waits: Vec<_> = streams.iter().map(|(_, stream)| PollFd::new(stream, PollFlags::IN)).collect();
        waits.push(PollFd::new(woken, PollFlags::IN));
        if poll(&mut waits, None).is_err() {
            continue;
        }
        let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        let mut gone = Vec::new();
        for ((number, stream), _) in streams.iter().zip(&ready).filter(|&(_, &ready)| ready) {
            let (length, what) = match (&**stream).read(&mut bytes[HEADER..]) {
                Ok(0) => (0, FIN),
                Ok(length) => (length, length as u32),
                Err(_) => (0, RESET),
            };
            if !send(&mut bytes[..HEADER + length], *number, what) {
                return;
            }
            match what {
                FIN => end.finish(*number, 0),
                RESET => end.reset(*number),
                _ => continue,
            }
            gone.push(*number);
        }
        streams.retain(|(number, _)| !gone.contains(number));
        if ready.last() == Some(&true) {
            let _ = woken.read(&mut [0; 64]);
            for (number, stream) in newcomers.try_iter() {
                match stream {
                    Some(stream) => streams.push((number, stream)),
                    None if !send(&mut bytes[..HEADER], number, RESET) => return,
                    None => streams.retain(|&(other, _)| other != number),
                }
            }
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
    // What is to come of a part, and for whom; for nobody after a reset.
    let mut left: Option<(u32, Option<Arc<TcpStream>>, usize)> = None;
    let mut met = HashSet::new();
    loop {
        let read = tunnel.read(&mut bytes[held..]).context("the tunnel ended")?;
        ensure!(read > 0, "the tunnel ended");
        let mut rest = &bytes[..held + read];
        loop {
            if let Some((number, stream, length)) = left.take() {
                let (now, later) = rest.split_at(length.min(rest.len()));
                if stream.as_deref().is_some_and(|mut stream| stream.write_all(now).is_err())
                    && end.get(number).is_some()
                {
                    end.reset(number);
                    end.tell((number, None));
                }
                rest = later;
                if now.len() < length {
                    left = Some((number, stream, length - now.len()));
                    break;
                }
            }
            let Some((&[a, b, c, d, e, f, g, h], later)) = rest.split_first_chunk::<HEADER>() else { break };
            let (number, what) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            rest = later;
            if met.insert(number) {
                meet(number)?;
            }
            let stream = end.get(number);
            match what {
                RESET => end.reset(number),
                FIN => {
                    let _ = stream.map(|stream| stream.shutdown(Shutdown::Write));
                    end.finish(number, 1);
                }
                length => left = Some((number, stream, length as usize)),
            }
        }
        let end_of_read = held + read;
        held = rest.len();
        bytes.copy_within(end_of_read - held..end_of_read, 0);
    }
}

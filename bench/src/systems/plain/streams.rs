//! Streams: a connection of the tunnel for each visitor's, with a thread for each direction.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use anyhow::Context;

use super::spawn;

/// Connections that wait for visitors: more than the largest case has streams.
const WAITING: usize = 300;

/// Bytes of one receive, as many as Isthmus takes.
pub(super) const BYTES: usize = 512 * 1024;

/// What the relay's end says when a visitor takes a connection.
const TAKEN: [u8; 1] = [1];

pub(super) fn relay(tunnel: SocketAddr, visitors: SocketAddr, ready: impl FnOnce()) -> anyhow::Result<()> {
    let (tunnel, visitors) = (bind(tunnel)?, bind(visitors)?);
    let (give, take) = mpsc::channel::<TcpStream>();
    spawn("tunnel", move || {
        for waiting in tunnel.incoming().flatten() {
            if give.send(waiting).is_err() {
                break;
            }
        }
    })?;
    ready();
    for visitor in visitors.incoming() {
        let visitor = visitor.context("cannot accept visitors any more")?;
        let mut waiting = take.recv().context("no connection comes any more")?;
        // The other end may have gone while it waited: its visitor goes, too.
        if waiting.set_nodelay(true).and_then(|()| waiting.write_all(&TAKEN)).is_ok() {
            spawn("pair", move || both_ways(visitor, waiting))?;
        }
    }
    Ok(())
}

pub(super) fn mediator(tunnel: SocketAddr, host: SocketAddr, ready: impl FnOnce()) -> anyhow::Result<()> {
    let (fail, failed) = mpsc::channel();
    for _ in 0..WAITING {
        let (fail, first) = (fail.clone(), connect(tunnel)?);
        spawn("pair", move || {
            // Whoever listens no more has ended already.
            let _ = fail.send(serve(first, tunnel, host));
        })?;
    }
    ready();
    failed.recv().context("all threads ended")?
}

/// Carries one visitor after the other.
fn serve(first: TcpStream, tunnel: SocketAddr, host: SocketAddr) -> anyhow::Result<()> {
    let mut waiting = first;
    loop {
        waiting.read_exact(&mut [0; TAKEN.len()]).context("the relay's end has gone")?;
        if let Ok(host) = TcpStream::connect(host) {
            both_ways(host, waiting);
        }
        waiting = connect(tunnel)?;
    }
}

pub(super) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))
}

pub(super) fn connect(tunnel: SocketAddr) -> anyhow::Result<TcpStream> {
    TcpStream::connect(tunnel).with_context(|| format!("cannot connect to {tunnel}"))
}

/// Until both directions have ended.
fn both_ways(one: TcpStream, other: TcpStream) {
    let (Ok(one_too), Ok(other_too)) = (one.try_clone(), other.try_clone()) else { return };
    if one.set_nodelay(true).and_then(|()| other.set_nodelay(true)).is_err() {
        return;
    }
    let Ok(back) = spawn("back", move || copy(&other_too, &one_too)) else { return };
    copy(&one, &other);
    // It cannot panic.
    let _ = back.join();
}

/// Until the end, which is passed on; after an error there is nobody to pass on anything to.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut bytes = vec![0; BYTES];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return drop(to.shutdown(Shutdown::Write)),
            Ok(length) if to.write_all(&bytes[..length]).is_ok() => {}
            _ => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

//! A UDP port of the mediator.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::limits::{DATAGRAM_MAX, FRAME_PAYLOAD_MAX};
use isthmus_proto::link::Slot;
use isthmus_proto::wire::{ADDR_LEN, HEADER_LEN, write_datagram_header};
use isthmus_proto::{Code, Instant};
use tokio::sync::Notify;

use crate::Error;
use crate::channel::Channels;
use crate::error::kind_of;
use crate::handle::{Held, gone};
use crate::line::Subscription;
use crate::port::switch;
use crate::shared::Shared;
use crate::state::{Body, Entry, State, UDP_UNSENT_MAX, Udp, UdpEvent};

/// Largest part of a datagram in one frame.
const PART_MAX: usize = FRAME_PAYLOAD_MAX - ADDR_LEN;

/// How long a new connection's channels may take to answer their first pings: two of them, with a second between.
const CHANNEL_WAIT: Duration = Duration::from_millis(2500);

/// A UDP port of the mediator: its datagrams are sent and received there. Dropping it closes the port.
///
/// A socket of [`crate::Mediator::udp_bind`], [`crate::Mediator::udp_redirect`] or [`crate::Mediator::udp`]
/// outlives a lost connection to the relay: it is opened again in the same mode as soon as that is back,
/// with the same number where that is obligatory (see [`crate::TcpListener`]). Datagrams that were on their
/// way, or received and not yet read, are lost with their connection.
///
/// Methods take `&self`: one task may send while others receive.
///
/// ```no_run
/// use isthmus_terminal::{Importance, Mediator};
///
/// async fn ask(mediator: &Mediator) -> Result<(), Box<dyn std::error::Error>> {
///     let socket = mediator.udp_redirect("0.0.0.0:0".parse()?, Importance::Desired, true).await?;
///     socket.send_to(b"hello", "10.0.0.5:7".parse()?).await?;
///     let mut answer = [0; 1500];
///     let (len, from) = socket.recv_from(&mut answer).await?;
///     println!("{len} bytes from {from}");
///     Ok(())
/// }
/// ```
pub struct UdpSocket {
    subscription: Arc<Subscription>,
}

/// Where a datagram goes.
enum Step {
    /// It went, or was queued.
    Done,
    /// Too much waits for the TCP channel.
    Wait(Arc<Notify>),
    Channel {
        slot: Slot,
        fallback: bool,
    },
}

impl UdpSocket {
    pub(crate) fn new(subscription: Arc<Subscription>) -> Self {
        Self { subscription }
    }

    /// Sends one datagram to a host of the private network.
    ///
    /// Over the TCP channel it waits for room; over a UDP channel it may be lost, as any. What does not
    /// fit a UDP channel travels over TCP. While the connection to the relay is lost it waits for that, up
    /// to [`crate::Config::link_timeout`].
    ///
    /// # Cancel safety
    /// A dropped future sent the whole datagram or nothing of it; which of the two is not told.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] over 65,507 bytes; [`io::ErrorKind::NetworkUnreachable`]
    /// when no UDP channel works and the fallback was not allowed; [`Error::NotConnected`] within
    /// [`io::ErrorKind::NotConnected`]; the port's or the connection's end.
    pub async fn send_to(&self, payload: &[u8], to: SocketAddr) -> io::Result<usize> {
        if payload.len() > DATAGRAM_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a UDP payload has at most 65,507 bytes"));
        }
        tokio::task::coop::consume_budget().await;
        loop {
            let held = self.subscription.port_soon().await?;
            match send_on(&held, payload, to).await {
                Err(_) if self.subscription.survives(&held) => {}
                result => return result.map(|()| payload.len()),
            }
        }
    }

    /// Sends one datagram to the only party of a port that was opened with one. As cancel safe as
    /// [`UdpSocket::send_to`].
    ///
    /// # Errors
    /// As [`UdpSocket::send_to`]; [`io::ErrorKind::NotConnected`] without such a party.
    pub async fn send(&self, payload: &[u8]) -> io::Result<usize> {
        let peer = self.peer_addr().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        self.send_to(payload, peer).await
    }

    /// Receives one datagram and its sender. What is longer than `buf` is cut off, as with any UDP socket.
    /// While the connection to the relay is lost it just waits on.
    ///
    /// # Cancel safety
    /// A dropped future loses no datagram: the next call takes it. Several may wait at once; each
    /// datagram goes to one of them.
    ///
    /// # Errors
    /// With a [`crate::Unreachable`] within: a datagram that was sent met an ICMP error, and the socket
    /// is as good as before. Else the port's or the connection's end.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (payload, from) = self.recv_datagram().await?;
        let len = payload.len().min(buf.len());
        if let (Some(to), Some(bytes)) = (buf.get_mut(..len), payload.get(..len)) {
            to.copy_from_slice(bytes);
        }
        Ok((len, from))
    }

    /// As [`UdpSocket::recv_from`], with the whole payload in memory of its own. As cancel safe.
    ///
    /// # Errors
    /// As there.
    pub async fn recv_datagram(&self) -> io::Result<(Vec<u8>, SocketAddr)> {
        tokio::task::coop::consume_budget().await;
        loop {
            let held = self.subscription.port().await?;
            match receive_on(&held).await {
                Err(_) if self.subscription.survives(&held) => {}
                Ok(UdpEvent::Datagram { remote, payload }) => return Ok((payload, remote)),
                Ok(UdpEvent::Unreachable(error)) => return Err(io::Error::new(kind_of(error.code), error)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Its address and assigned number on the mediator; the last ones while the connection is lost.
    pub fn local_addr(&self) -> SocketAddr {
        self.subscription.local_addr()
    }

    /// The only party of a port that was opened with one.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.look(|udp| udp.peer).flatten()
    }

    /// Received datagrams that were dropped since too many waited, on the present connection.
    pub fn dropped(&self) -> u64 {
        self.look(|udp| udp.dropped).unwrap_or_default()
    }

    /// Switches the live port: from now on its datagrams travel over UDP channels, or over TCP. With
    /// `fallback`, a redirected port's may travel over TCP while no UDP channel works.
    ///
    /// # Cancel safety
    /// A dropped future leaves the port in either mode.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::NoUdpChannel`]; the port's or the connection's end.
    pub async fn set_redirect(&self, redirect: bool, fallback: bool) -> Result<(), Error> {
        let held = self.subscription.port_soon().await?;
        switch(&held, redirect, fallback).await?;
        self.subscription.remember_redirect(redirect, fallback);
        Ok(())
    }

    fn look<T>(&self, look: impl FnOnce(&Udp) -> T) -> Option<T> {
        self.subscription.now()?.with(|state, key| match state.entries.get(key).map(|entry| &entry.body) {
            Some(Body::Udp(udp)) => Some(look(udp)),
            _ => None,
        })
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket").field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}

async fn send_on(held: &Held, payload: &[u8], to: SocketAddr) -> io::Result<()> {
    let shared = held.shared();
    let mut by_tcp = false;
    loop {
        let now = shared.now();
        match held.with(|state, key| step(state, key, payload, to, by_tcp, now))? {
            Step::Done => return Ok(()),
            Step::Wait(writable) => until_writable(held, &writable).await,
            Step::Channel { slot, fallback } => {
                if shared.channels.send(slot.id(), to, payload, now).await? {
                    return Ok(());
                }
                if !fallback {
                    return Err(Error::Refused(Code::NoUdpChannel).into());
                }
                by_tcp = true;
            }
        }
    }
}

async fn until_writable(held: &Held, writable: &Notify) {
    let mut notified = std::pin::pin!(writable.notified());
    notified.as_mut().enable();
    let still_full = held
        .with(|state, key| state.entries.get(key).is_some_and(|entry| entry.live && entry.unsent >= UDP_UNSENT_MAX));
    if still_full {
        notified.await;
    }
}

async fn receive_on(held: &Held) -> Result<UdpEvent, Error> {
    let readable = held.with(|state, key| match state.entries.get(key).map(|entry| &entry.body) {
        Some(Body::Udp(udp)) => Some(udp.readable.clone()),
        _ => None,
    });
    let Some(readable) = readable else { return Err(gone(held.shared())) };
    let mut notified = std::pin::pin!(readable.notified());
    loop {
        notified.as_mut().enable();
        if let Some(event) = held.with(pop)? {
            return Ok(event);
        }
        notified.as_mut().await;
        notified.set(readable.notified());
    }
}

/// What to do with a datagram now.
fn step(
    state: &mut State,
    key: usize,
    payload: &[u8],
    to: SocketAddr,
    by_tcp: bool,
    now: Instant,
) -> Result<Step, Error> {
    state.check()?;
    let State { entries, link, counts, .. } = state;
    let Some(Entry { slot, live: true, unsent, body: Body::Udp(udp), .. }) = entries.get_mut(key) else {
        return Err(Error::Refused(Code::UnknownPort));
    };
    let fits = Channels::fits(payload.len());
    if udp.redirect && !by_tcp && fits {
        link.count_datagram_out(Some(payload.len()), false, now);
        return Ok(Step::Channel { slot: *slot, fallback: udp.fallback });
    }
    if *unsent >= UDP_UNSENT_MAX {
        return Ok(Step::Wait(udp.writable.clone()));
    }
    counts.datagrams_by_tcp += u64::from(udp.redirect);
    let frames = datagram_frames(*slot, to, payload);
    let len: usize = frames.iter().map(Vec::len).sum();
    if link.enqueue_datagram(*slot, frames.into_iter(), now) {
        *unsent += len;
        if !by_tcp {
            link.count_datagram_out(None, udp.redirect && !fits, now);
        }
    }
    Ok(Step::Done)
}

/// The whole frames of one datagram: the first one tells the address.
fn datagram_frames(slot: Slot, to: SocketAddr, payload: &[u8]) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(PART_MAX).max(1);
    let mut parts = payload.chunks(PART_MAX);
    (0..count)
        .map(|n| {
            let part = parts.next().unwrap_or_default();
            let remote = (n == 0).then_some(to);
            let mut frame = vec![0; HEADER_LEN + if n == 0 { ADDR_LEN } else { 0 }];
            write_datagram_header(&mut frame, slot.id(), remote, n + 1 < count, part.len() as u16);
            frame.extend_from_slice(part);
            frame
        })
        .collect()
}

fn pop(state: &mut State, key: usize) -> Result<Option<UdpEvent>, Error> {
    let Some(Entry { live, body: Body::Udp(udp), .. }) = state.entries.get_mut(key) else {
        return Err(Error::Refused(Code::UnknownPort));
    };
    match udp.pop() {
        Some(event) => Ok(Some(event)),
        None if *live => Ok(None),
        None => state.check().and(Err(Error::Refused(Code::UnknownPort))),
    }
}

/// Waits for a UDP channel to answer, unless TCP will do as well.
pub(crate) async fn channel_works(shared: &Shared, fallback: bool) -> Result<(), Error> {
    if fallback {
        return Ok(());
    }
    let wait = async {
        let mut notified = std::pin::pin!(shared.channels.changed.notified());
        loop {
            notified.as_mut().enable();
            shared.with(|state| state.check())?;
            if shared.channels.live(shared.now()) > 0 {
                return Ok(());
            }
            notified.as_mut().await;
            notified.set(shared.channels.changed.notified());
        }
    };
    let none = Error::Refused(Code::NoUdpChannel);
    if shared.channels.len() == 0 {
        return Err(none);
    }
    tokio::time::timeout(CHANNEL_WAIT, wait).await.unwrap_or(Err(none))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_parted_at_the_frames_limit_and_only_its_first_part_has_the_address() {
        let to: SocketAddr = "10.0.0.5:53".parse().unwrap();
        for (len, parts) in [(0, 1), (1, 1), (PART_MAX, 1), (PART_MAX + 1, 2), (DATAGRAM_MAX, 5)] {
            let frames = datagram_frames(Slot::NONE, to, &vec![7; len]);
            assert_eq!(frames.len(), parts, "{len}");
            let heads = HEADER_LEN * parts + ADDR_LEN;
            assert_eq!(frames.iter().map(Vec::len).sum::<usize>(), len + heads);
            assert!(frames.iter().all(|frame| frame.len() <= HEADER_LEN + FRAME_PAYLOAD_MAX));
        }
    }
}

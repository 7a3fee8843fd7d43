//! Datagrams: a binding of the gateway for each flow, made in advance.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context;

use super::spawn;

/// Bindings that wait for flows: more than the cases with few flows have. The flow that came first gives way.
pub(super) const BINDINGS: usize = 128;

/// How often a binding without answers is used, so that the gateway keeps it.
const GREETING_EVERY: Duration = Duration::from_secs(10);

/// Bytes of a socket's buffers, as the loads' ends have.
const SOCKET_BUFFER: usize = 4 << 20;

const DATAGRAM_MAX: usize = 65_535;

/// Which visitor has which binding.
#[derive(Debug, Default)]
struct Flows {
    bindings: HashMap<SocketAddr, SocketAddr>,
    visitors: HashMap<SocketAddr, SocketAddr>,
    /// Bindings; the one that has been taken longest ago comes first.
    line: VecDeque<SocketAddr>,
}

impl Flows {
    /// A binding's first greeting, or a later one.
    fn greet(&mut self, binding: SocketAddr) {
        if !self.line.contains(&binding) {
            self.line.push_front(binding);
        }
    }

    /// A binding for a new flow; `None` if there is none at all.
    fn take(&mut self, visitor: SocketAddr) -> Option<SocketAddr> {
        let binding = self.line.pop_front()?;
        self.line.push_back(binding);
        if let Some(former) = self.visitors.insert(binding, visitor) {
            self.bindings.remove(&former);
        }
        self.bindings.insert(visitor, binding);
        Some(binding)
    }
}

pub(super) fn relay(tunnel: SocketAddr, visitors: SocketAddr) -> anyhow::Result<()> {
    let (tunnel, visitors) = (Arc::new(bind(tunnel)?), Arc::new(bind(visitors)?));
    let flows = Arc::new(RwLock::new(Flows::default()));
    {
        let (tunnel, visitors, flows) = (tunnel.clone(), visitors.clone(), flows.clone());
        spawn("up", move || up(&visitors, &tunnel, &flows))?;
    }
    spawn("down", move || down(&tunnel, &visitors, &flows))?;
    Ok(())
}

fn up(visitors: &UdpSocket, tunnel: &UdpSocket, flows: &RwLock<Flows>) {
    let mut bytes = vec![0; DATAGRAM_MAX];
    loop {
        // What ICMP says of somebody that is gone is no reason to end.
        let Ok((length, visitor)) = visitors.recv_from(&mut bytes) else { continue };
        let known = flows.read().ok().and_then(|flows| flows.bindings.get(&visitor).copied());
        let binding = known.or_else(|| flows.write().ok()?.take(visitor));
        if let Some(binding) = binding {
            let _ = tunnel.send_to(&bytes[..length], binding);
        }
    }
}

fn down(tunnel: &UdpSocket, visitors: &UdpSocket, flows: &RwLock<Flows>) {
    let mut bytes = vec![0; DATAGRAM_MAX];
    loop {
        let Ok((length, binding)) = tunnel.recv_from(&mut bytes) else { continue };
        if length == 0 {
            if let Ok(mut flows) = flows.write() {
                flows.greet(binding);
            }
            continue;
        }
        let visitor = flows.read().ok().and_then(|flows| flows.visitors.get(&binding).copied());
        if let Some(visitor) = visitor {
            let _ = visitors.send_to(&bytes[..length], visitor);
        }
    }
}

pub(super) fn mediator(tunnel: SocketAddr, host: SocketAddr) -> anyhow::Result<()> {
    for _ in 0..BINDINGS {
        let (near, far) = (Arc::new(connected(tunnel)?), Arc::new(connected(host)?));
        far.set_read_timeout(Some(GREETING_EVERY))?;
        near.send(&[]).with_context(|| format!("cannot send to {tunnel}"))?;
        {
            let (near, far) = (near.clone(), far.clone());
            spawn("down", move || pass(&near, &far, false))?;
        }
        spawn("up", move || pass(&far, &near, true))?;
    }
    Ok(())
}

/// Passes datagrams on; `greets` where none came for a while.
fn pass(from: &UdpSocket, to: &UdpSocket, greets: bool) {
    let mut bytes = vec![0; DATAGRAM_MAX];
    loop {
        match from.recv(&mut bytes) {
            Ok(length) => drop(to.send(&bytes[..length])),
            Err(_) if greets => drop(to.send(&[])),
            Err(_) => {}
        }
    }
}

fn connected(to: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = bind(any)?;
    socket.connect(to).with_context(|| format!("no way to {to}"))?;
    Ok(socket)
}

fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind UDP {address}"))?;
    // The system may allow less: then more is lost at high rates.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
    Ok(socket)
}

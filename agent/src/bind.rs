//! Binding local addresses as a request wants them: obligatory, or the first free number from one on.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use isthmus_proto::Code;
use isthmus_proto::wire::OpenFlags;
use isthmus_ring::{BindOptions, Family, Socket, UdpOptions};

use crate::policy::Policy;

/// Numbers that are tried from a desired one on.
const TRIES_MAX: u16 = 1024;

/// Binds a socket of the kind that `make` gives.
///
/// # Errors
/// [`Code::AddressNotLocal`], [`Code::Denied`] (loopback without a rule), [`Code::Privileged`],
/// [`Code::AddressInUse`] (obligatory), [`Code::NoFreePort`] (desired), or what the system says.
pub(crate) fn bind(
    policy: &Policy,
    flags: OpenFlags,
    local: SocketAddr,
    make: impl Fn(SocketAddr) -> io::Result<Socket>,
) -> Result<Socket, Code> {
    if !policy.may_bind(local.ip()) {
        return Err(if local.ip().to_canonical().is_loopback() { Code::Denied } else { Code::AddressNotLocal });
    }
    if local.port() == 0 || flags.has(OpenFlags::OBLIGATORY) {
        return attempt(local, &make).map_err(|error| code_of(&error));
    }
    let last = local.port().saturating_add(TRIES_MAX);
    for port in local.port()..=last {
        match attempt(SocketAddr::new(local.ip(), port), &make).map_err(|error| code_of(&error)) {
            Err(Code::AddressInUse) => {}
            result => return result,
        }
    }
    Err(Code::NoFreePort)
}

/// Where IPv6 is switched off, any address means any IPv4 one.
fn attempt(local: SocketAddr, make: &impl Fn(SocketAddr) -> io::Result<Socket>) -> io::Result<Socket> {
    match make(local) {
        Err(error) if local.is_ipv6() && local.ip().is_unspecified() && error.raw_os_error() == Some(EAFNOSUPPORT) => {
            make(SocketAddr::from((Ipv4Addr::UNSPECIFIED, local.port())))
        }
        result => result,
    }
}

pub(crate) fn tcp(local: SocketAddr, congestion: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::tcp(Family::from(local))?;
    if let Some(name) = congestion {
        socket.set_congestion(name)?;
    }
    socket.bind(local, BindOptions { reuse_address: true, ..BindOptions::default() })?;
    Ok(socket)
}

pub(crate) fn udp(local: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::udp(local, UdpOptions { gro: true, recverr: true, ..UdpOptions::default() })?;
    // Larger buffers are a help, not a need.
    let _ = socket.set_buffers(Some(1 << 20), Some(1 << 20));
    Ok(socket)
}

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const EAFNOSUPPORT: i32 = 97;
const EADDRINUSE: i32 = 98;
const EADDRNOTAVAIL: i32 = 99;
const ENETUNREACH: i32 = 101;
const ENOBUFS: i32 = 105;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;
const ECANCELED: i32 = 125;

/// The code for what the system said to a bind.
pub(crate) fn code_of(error: &io::Error) -> Code {
    match error.raw_os_error() {
        Some(EADDRINUSE) => Code::AddressInUse,
        Some(EADDRNOTAVAIL | EAFNOSUPPORT) => Code::AddressNotLocal,
        Some(EACCES | EPERM) => Code::Privileged,
        Some(EMFILE | ENFILE | ENOBUFS) => Code::NoResources,
        _ => Code::Failed,
    }
}

/// The code for what the system said to a connect. A connect that takes too long is cancelled by us.
pub(crate) fn connect_code(error: &io::Error) -> Code {
    match error.raw_os_error() {
        Some(ECONNREFUSED) => Code::Refused,
        Some(EHOSTUNREACH) => Code::HostUnreachable,
        Some(ENETUNREACH | EAFNOSUPPORT) => Code::NetworkUnreachable,
        Some(ETIMEDOUT | ECANCELED) => Code::TimedOut,
        // A local firewall rule.
        Some(EACCES | EPERM) => Code::Denied,
        Some(EADDRINUSE | EADDRNOTAVAIL) => Code::AddressInUse,
        Some(EMFILE | ENFILE | ENOBUFS) => Code::NoResources,
        _ => Code::Failed,
    }
}

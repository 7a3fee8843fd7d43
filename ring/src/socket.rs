//! Sockets and their options, by plain system calls.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl From<SocketAddr> for Family {
    fn from(addr: SocketAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl From<Family> for Domain {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::IPV4,
            Family::V6 => Self::IPV6,
        }
    }
}

/// An option of a TCP connection that may change while it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionOption {
    /// The connection ends when sent data stays unacknowledged for that long (`TCP_USER_TIMEOUT`, milliseconds).
    UserTimeout(Duration),
    /// A send waits while the kernel has so many bytes that it has not sent yet (`TCP_NOTSENT_LOWAT`), and goes on when it is
    /// half as many.
    UnsentMax(u32),
}

impl ConnectionOption {
    pub(crate) fn number(self) -> libc::c_int {
        match self {
            Self::UserTimeout(_) => libc::TCP_USER_TIMEOUT,
            Self::UnsentMax(_) => libc::TCP_NOTSENT_LOWAT,
        }
    }

    pub(crate) fn value(self) -> libc::c_uint {
        match self {
            Self::UserTimeout(timeout) => timeout.as_millis().min(i32::MAX as u128) as libc::c_uint,
            Self::UnsentMax(bytes) => bytes,
        }
    }
}

/// How [`Socket::bind`] takes an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindOptions {
    /// Leave the choice of port 0 to `connect`, so that one port serves many destinations (`IP_BIND_ADDRESS_NO_PORT`).
    pub no_port: bool,
    /// Take an address that no interface has yet (`IP_FREEBIND`).
    pub freebind: bool,
    /// Share the port with other sockets of the same user that ask for it (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// Take the port though old connections on it linger (`SO_REUSEADDR`).
    pub reuse_address: bool,
}

/// An owned socket: close-on-exec, in blocking mode (a ring does not need the other).
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// A TCP socket, neither bound nor connected, without Nagle's delay.
    pub fn tcp(family: Family) -> io::Result<Self> {
        let socket = Self::new(family, Type::STREAM, Protocol::TCP)?;
        socket.set_nodelay()?;
        Ok(socket)
    }

    /// A listening TCP socket. `[::]` serves IPv4, too; any other IPv6 address takes IPv6 only.
    pub fn tcp_listener(addr: SocketAddr, reuse_port: bool, backlog: u32) -> io::Result<Self> {
        let socket = Self::tcp(addr.into())?;
        if addr.is_ipv6() {
            socket.options().set_only_v6(!addr.ip().is_unspecified())?;
        }
        socket.bind(addr, BindOptions { reuse_port, reuse_address: true, ..BindOptions::default() })?;
        socket.listen(backlog)?;
        Ok(socket)
    }

    pub(crate) fn new(family: Family, kind: Type, protocol: Protocol) -> io::Result<Self> {
        let socket = socket2::Socket::new_raw(family.into(), kind.cloexec(), Some(protocol))?;
        Ok(Self { fd: socket.into() })
    }

    /// Binds to an address; port 0 asks for a free one.
    pub fn bind(&self, addr: SocketAddr, options: BindOptions) -> io::Result<()> {
        let socket = self.options();
        if options.no_port {
            self.set_option(libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        }
        if options.freebind {
            // The IPv4 option rules both families' sockets.
            socket.set_freebind_v4(true)?;
        }
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if options.reuse_address {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&addr.into())
    }

    /// Begins to listen; `backlog` is capped by `net.core.somaxconn`.
    pub fn listen(&self, backlog: u32) -> io::Result<()> {
        self.options().listen(backlog.min(i32::MAX as u32) as i32)
    }

    /// The address that the socket is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.options().local_addr().and_then(inet)
    }

    /// The address that the socket is connected to.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.options().peer_addr().and_then(inet)
    }

    /// Sends small segments at once (`TCP_NODELAY`).
    pub fn set_nodelay(&self) -> io::Result<()> {
        self.options().set_tcp_nodelay(true)
    }

    /// Finds a peer that is gone without a word: probes after `idle`, then each `interval`, and gives up after `count` of
    /// them without an answer (`SO_KEEPALIVE`).
    pub fn set_keepalive(&self, idle: Duration, interval: Duration, count: u32) -> io::Result<()> {
        let keepalive = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(count);
        self.options().set_tcp_keepalive(&keepalive)
    }

    /// Makes closing send a reset and discard what is unsent (`SO_LINGER` of 0).
    pub fn set_reset_on_close(&self) -> io::Result<()> {
        self.options().set_linger(Some(Duration::ZERO))
    }

    /// Ends the outgoing direction: the peer sees the end of the stream.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.options().shutdown(Shutdown::Write)
    }

    /// Ends both directions, also for operations that are in flight.
    pub fn shutdown_both(&self) -> io::Result<()> {
        self.options().shutdown(Shutdown::Both)
    }

    /// Sets the kernel's buffers in bytes, each if given; capped by `net.core.rmem_max` and `wmem_max`.
    pub fn set_buffers(&self, recv: Option<usize>, send: Option<usize>) -> io::Result<()> {
        let limit = i32::MAX as usize;
        if let Some(bytes) = recv {
            self.options().set_recv_buffer_size(bytes.min(limit))?;
        }
        if let Some(bytes) = send {
            self.options().set_send_buffer_size(bytes.min(limit))?;
        }
        Ok(())
    }

    /// Chooses the congestion control by name.
    ///
    /// # Errors
    /// `ENOENT` when the kernel has none of that name, `EPERM` when `tcp_allowed_congestion_control` lacks it.
    pub fn set_congestion(&self, name: &str) -> io::Result<()> {
        self.options().set_tcp_congestion(name.as_bytes())
    }

    pub(crate) fn set_connection_option(&self, option: ConnectionOption) -> io::Result<()> {
        match option {
            ConnectionOption::UserTimeout(timeout) => self.options().set_tcp_user_timeout(Some(timeout)),
            ConnectionOption::UnsentMax(bytes) => self.options().set_tcp_notsent_lowat(bytes),
        }
    }

    /// Takes the pending error (`SO_ERROR`).
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.options().take_error()
    }

    /// Options by the safe crate for them.
    pub(crate) fn options(&self) -> SockRef<'_> {
        SockRef::from(&self.fd)
    }

    /// Sets an integer option.
    pub(crate) fn set_option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        // SAFETY: an `int` is what these options take; the pointer is good for the call.
        unsafe { self.set_raw_option(level, name, &value) }
    }

    /// Sets an option of any type.
    ///
    /// # Safety
    /// `value` must be of the type that the option takes, with pointers that are good for the call.
    pub(crate) unsafe fn set_raw_option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        let (pointer, len) = (&raw const *value, size_of::<T>() as libc::socklen_t);
        // SAFETY: by the caller's promise.
        let result = unsafe { libc::setsockopt(self.as_raw_fd(), level, name, pointer.cast(), len) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn inet(addr: SockAddr) -> io::Result<SocketAddr> {
    addr.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

impl FromRawFd for Socket {
    unsafe fn from_raw_fd(fd: RawFd) -> Self {
        // SAFETY: by the caller's promise.
        Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } }
    }
}

impl IntoRawFd for Socket {
    fn into_raw_fd(self) -> RawFd {
        self.fd.into_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket({})", self.fd.as_raw_fd())
    }
}

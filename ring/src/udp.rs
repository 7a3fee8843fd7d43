//! UDP sockets: batching options, errors that ICMP brings, and steering by the first byte.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{Protocol, Type};

use crate::batch::empty_message;
use crate::control::{Messages, read_i32};
use crate::datagram::read_address;
use crate::socket::{BindOptions, Family, Socket};

/// How a UDP socket is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpOptions {
    /// Share the port (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// Receive trains of datagrams as one (`UDP_GRO`).
    pub gro: bool,
    /// Tell the local address of each datagram (`IP_PKTINFO`).
    pub pktinfo: bool,
    /// Keep ICMP errors for [`Socket::take_udp_error`] (`IP_RECVERR`).
    pub recverr: bool,
    /// IPv6 only; else an IPv6 socket serves IPv4, too, with mapped addresses.
    pub v6only: bool,
}

/// An error that ICMP, or the local stack, reported for a datagram that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpError {
    /// `errno`: `ECONNREFUSED`, `EHOSTUNREACH`, `EMSGSIZE` …
    pub code: i32,
    /// Where the datagram was sent.
    pub destination: SocketAddr,
}

impl Socket {
    /// A bound UDP socket.
    pub fn udp(addr: SocketAddr, options: UdpOptions) -> io::Result<Self> {
        let socket = Self::new(Family::from(addr), Type::DGRAM, Protocol::UDP)?;
        if addr.is_ipv6() {
            socket.options().set_only_v6(options.v6only)?;
        }
        if options.gro {
            socket.set_option(libc::SOL_UDP, libc::UDP_GRO, 1)?;
        }
        if options.pktinfo {
            let (level, name) = match addr {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            };
            socket.set_option(level, name, 1)?;
        }
        if options.recverr {
            // On a dual-stack socket the IPv4 option rules the mapped peers.
            socket.set_option(libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
            if addr.is_ipv6() {
                socket.set_option(libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
            }
        }
        socket.bind(addr, BindOptions { reuse_port: options.reuse_port, ..BindOptions::default() })?;
        Ok(socket)
    }

    /// Fixes the peer: only its datagrams are received, and sends need no destination.
    pub fn connect_udp(&self, to: SocketAddr) -> io::Result<()> {
        self.options().connect(&to.into())
    }

    /// Undoes [`Socket::connect_udp`]. The local address may become unspecified again.
    pub fn disconnect_udp(&self) -> io::Result<()> {
        // SAFETY: zeros are a valid `sockaddr`; the family says that there is no address.
        let mut name: libc::sockaddr = unsafe { std::mem::zeroed() };
        name.sa_family = libc::AF_UNSPEC as _;
        // SAFETY: the pointer and the length are those of `name`.
        let result = unsafe { libc::connect(self.as_raw_fd(), &name, size_of_val(&name) as _) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes the next ICMP error, if there is one; for sockets made with `recverr`. Does not wait.
    pub fn take_udp_error(&self) -> Option<UdpError> {
        // Each turn takes one message off the queue; those of other origins (time stamps) are passed over.
        loop {
            let (name, control) = self.receive_error()?;
            if let Some(code) = error_code(&control)
                && let Some(destination) = read_address(&name)
            {
                return Some(UdpError { code, destination });
            }
        }
    }

    /// The next message of the error queue: name and control bytes.
    fn receive_error(&self) -> Option<([u8; 32], [u8; 256])> {
        let (mut name, mut control, mut payload) = ([0u8; 32], [0u8; 256], [0u8; 1]);
        let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
        let mut message = empty_message();
        (message.msg_name, message.msg_namelen) = (name.as_mut_ptr().cast(), name.len() as _);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), control.len() as _);
        (message.msg_iov, message.msg_iovlen) = (&raw mut vector, 1);
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        // SAFETY: name, control and payload are live, and their lengths are given.
        let result = unsafe { libc::recvmsg(self.as_raw_fd(), &raw mut message, flags) };
        (result >= 0).then_some((name, control))
    }

    /// Lets the first byte of each datagram choose, modulo `sockets`, which socket of this reuseport group receives it:
    /// index 0 is the socket that was bound first. Empty datagrams go to index 0. One call serves the whole group.
    ///
    /// # Errors
    /// `EINVAL` when `sockets` is 0, or the socket was not made with `reuse_port`.
    pub fn attach_reuseport_steering(&self, sockets: u8) -> io::Result<()> {
        if sockets == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let instruction = |code: u32, k: u8| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: k.into() };
        let reduce = match sockets.is_power_of_two() {
            true => instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, sockets - 1),
            false => instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets),
        };
        let mut program = [
            instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0),
            reduce,
            instruction(libc::BPF_RET | libc::BPF_A, 0),
        ];
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: `sock_fprog` is what the option takes, and the program outlives the call.
        unsafe { self.set_raw_option(libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &filter) }
    }
}

/// `ee_errno` of a `sock_extended_err` in the control bytes, if it is of ICMP's or local origin.
fn error_code(control: &[u8]) -> Option<i32> {
    // struct sock_extended_err { u32 ee_errno; u8 ee_origin, ee_type, ee_code, ee_pad; u32 ee_info, ee_data; }
    let message = Messages(control).find(|m| {
        (m.level, m.kind) == (libc::IPPROTO_IP, libc::IP_RECVERR)
            || (m.level, m.kind) == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    })?;
    let origin = *message.data.get(4)?;
    let known = [libc::SO_EE_ORIGIN_LOCAL, libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6];
    known.contains(&origin).then(|| read_i32(message.data, 0))?
}

/// Whether this kernel cuts a payload into datagrams (`UDP_SEGMENT`).
pub fn udp_gso_supported() -> bool {
    Socket::new(Family::V4, Type::DGRAM, Protocol::UDP)
        .and_then(|socket| socket.set_option(libc::SOL_UDP, libc::UDP_SEGMENT, 1200))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disconnected_socket_has_no_peer() {
        let socket = Socket::udp("127.0.0.1:0".parse().unwrap(), UdpOptions::default()).unwrap();
        let to = socket.local_addr().unwrap();
        socket.connect_udp(to).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), to);
        socket.disconnect_udp().unwrap();
        assert!(socket.peer_addr().is_err());
    }

    #[test]
    fn steering_without_a_group_or_sockets_is_refused() {
        let socket = Socket::udp("127.0.0.1:0".parse().unwrap(), UdpOptions::default()).unwrap();
        assert!(socket.attach_reuseport_steering(0).is_err());
        assert!(socket.attach_reuseport_steering(1).is_err());
    }
}

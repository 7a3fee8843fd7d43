//! Published ports' sockets: bound before any shard hears of them, so that of several ports all are taken or none.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use isthmus_ring::{Socket, UdpOptions};
use serde::{Deserialize, Serialize};

use super::{Proto, Publish};

/// Connections that may wait to be accepted; the kernel cuts it to `somaxconn`.
const BACKLOG: u32 = 4096;

/// How long a port may be in use by what is just going: the system takes a moment to end what a relay that was
/// killed had under way, and what was unpublished.
pub(crate) const IN_USE_RETRIES: u32 = 20;
pub(crate) const IN_USE_WAIT: Duration = Duration::from_millis(100);

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// Who published a port: a reload changes what the configuration published, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The command line or the configuration file.
    Config,
    /// An operator, until the relay ends.
    Runtime,
    /// An operator, and it comes back with the relay.
    Kept,
    /// A mediator's own configuration.
    Asked,
}

impl Origin {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Runtime => "runtime",
            Self::Kept => "kept",
            Self::Asked => "asked",
        }
    }
}

/// A published port with its socket, which receives already; a shard makes it serve.
#[derive(Debug)]
pub struct Bound {
    /// With the real port number.
    pub publish: Publish,
    /// The address that was asked for: its port may be 0.
    pub asked: SocketAddr,
    /// Who wants it.
    pub origin: Origin,
    /// Listens, or is bound, by the protocol.
    pub socket: Socket,
}

impl Bound {
    /// Binds a published port.
    ///
    /// # Errors
    /// The system's: [`refusal`] makes a text of it.
    pub fn bind(publish: &Publish, origin: Origin, congestion: Option<&str>) -> io::Result<Self> {
        let asked = publish.listen;
        let socket = match publish.proto {
            Proto::Tcp => tcp_listener(asked, false, congestion)?,
            Proto::Udp => {
                let socket = Socket::udp(asked, UdpOptions { gro: true, ..UdpOptions::default() })?;
                // Smaller ones work as well.
                let _ = socket.set_buffers(Some(4 << 20), Some(4 << 20));
                socket
            }
        };
        let listen = socket.local_addr()?;
        Ok(Self { publish: Publish { listen, ..publish.clone() }, asked, origin, socket })
    }

    /// [`Bound::bind`] at the relay's start, where one that was killed may still be on its way out.
    ///
    /// # Errors
    /// As those, with the cure.
    pub fn bind_patiently(publish: &Publish, origin: Origin, congestion: Option<&str>) -> anyhow::Result<Self> {
        retry_in_use(|| Self::bind(publish, origin, congestion))
            .map_err(|error| anyhow!("--publish {publish}: {}", refusal(publish, &error)))
    }
}

/// Why a port cannot be published, and what to do about it.
pub fn refusal(publish: &Publish, error: &io::Error) -> String {
    let (proto, listen) = (publish.proto, publish.listen);
    let cure = match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::AddrInUse, _) => "the port is taken: see `show publishes` and `ss -lnptu`, or choose another",
        (io::ErrorKind::AddrNotAvailable, _) => "this machine has no such address: see `ip address`",
        (_, Some(EACCES | EPERM)) if listen.port() < 1024 => {
            "the port is privileged: give the relay AmbientCapabilities=CAP_NET_BIND_SERVICE in its unit, or choose one \
             from 1024 on"
        }
        (_, Some(EMFILE | ENFILE)) => "there are no descriptors left: raise LimitNOFILE= in the unit",
        _ => "the system refuses",
    };
    format!("cannot listen on {proto} {listen}: {cure} ({error})")
}

/// A listening socket with the congestion control that was asked for.
pub(crate) fn tcp_listener(addr: SocketAddr, reuse_port: bool, congestion: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::tcp_listener(addr, reuse_port, BACKLOG)?;
    if let Some(name) = congestion {
        // Accepted connections inherit it.
        socket.set_congestion(name).map_err(|error| {
            let text = format!("--congestion {name}: {error}; see /proc/sys/net/ipv4/tcp_allowed_congestion_control");
            io::Error::new(error.kind(), text)
        })?;
    }
    Ok(socket)
}

pub(crate) fn retry_in_use<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..IN_USE_RETRIES {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => thread::sleep(IN_USE_WAIT),
            result => return result,
        }
    }
    bind()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(text: &str) -> Publish {
        text.parse().unwrap()
    }

    #[test]
    fn free_port_is_taken_and_told_and_not_given_twice() {
        for proto in ["tcp", "udp"] {
            let asked = publish(&format!("{proto}:127.0.0.1:0=m/10.0.0.5:80"));
            let bound = Bound::bind(&asked, Origin::Runtime, None).unwrap();
            assert_eq!(bound.asked.port(), 0);
            assert_ne!(bound.publish.listen.port(), 0);
            let error = Bound::bind(&bound.publish, Origin::Runtime, None).unwrap_err();
            assert!(refusal(&bound.publish, &error).contains("is taken"), "{error}");
        }
    }

    #[test]
    fn refusals_name_the_cure() {
        let text = |port: u16, errno| {
            let publish = publish(&format!("tcp:127.0.0.1:{port}=m/10.0.0.5:80"));
            refusal(&publish, &io::Error::from_raw_os_error(errno))
        };
        assert!(text(80, EACCES).contains("CAP_NET_BIND_SERVICE"));
        assert!(!text(8080, EACCES).contains("CAP_NET_BIND_SERVICE"));
        assert!(text(80, EMFILE).contains("LimitNOFILE"));
        let foreign = publish("tcp:192.0.2.77:80=m/10.0.0.5:80");
        let error = Bound::bind(&foreign, Origin::Runtime, None).unwrap_err();
        assert!(refusal(&foreign, &error).contains("ip address"), "{error}");
    }
}

//! UDP: every datagram goes back, in batches where it came in batches.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use isthmus_ring::{Completion, PoolConfig, Ring, RingConfig, Socket, UdpOptions};

/// Buffers of all sockets together, and the least of one: a burst of the load must fit while we are not running.
const SOCKET_BUFFERS: usize = 4 << 20;
const SOCKET_BUFFER_MIN: usize = 64 << 10;

/// How long to wait for sends to give their buffers back.
const STARVED: Duration = Duration::from_millis(1);

/// A ring for datagrams on so many sockets: more buffers at once than a relay's default, so that the load's own ends lose
/// nothing. Datagrams of different sockets share none.
pub(crate) fn ring(sockets: usize) -> anyhow::Result<Ring> {
    let provided_max = if sockets > 64 { 512 } else { 64 };
    let provided_usual = provided_max;
    let datagram = PoolConfig { provided_usual, provided_max, blocks_max: 2048, ..PoolConfig::DATAGRAM };
    Ok(Ring::new(RingConfig { sq_entries: 4096, cq_entries: 16_384, datagram, ..RingConfig::small() })?)
}

/// One of so many sockets, with GRO and large buffers.
pub(crate) fn socket(local: SocketAddr, sockets: usize) -> anyhow::Result<Socket> {
    let socket = Socket::udp(local, UdpOptions { gro: true, ..UdpOptions::default() })
        .with_context(|| format!("cannot bind UDP {local}"))?;
    // The system may allow less: then more is lost at high rates.
    let bytes = (SOCKET_BUFFERS / sockets.max(1)).max(SOCKET_BUFFER_MIN);
    let _ = socket.set_buffers(Some(bytes), Some(bytes));
    Ok(socket)
}

/// Serves from a thread of its own. Returns the real address.
///
/// # Errors
/// The number is taken, no thread can be made, or there is no io_uring.
pub fn spawn(listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("datagrams".into()).spawn(move || {
        let bound = Echo::bind(listen).and_then(|echo| Ok((echo.local_addr()?, echo)));
        // The other end waits for it.
        let served = match bound {
            Ok((address, echo)) => tell.send(Ok(address)).map_or(Ok(()), |()| echo.serve(|| {})),
            Err(error) => return drop(tell.send(Err(error))),
        };
        if let Err(error) = served {
            tracing::error!(%error, "no datagram is served any more: the ring failed");
        }
    })?;
    told.recv().context("the server's thread ended at once")?
}

/// A UDP echo server on a ring of its own.
pub struct Echo {
    ring: Ring,
    socket: Socket,
}

impl Echo {
    /// Binds it, on the thread that will serve.
    ///
    /// # Errors
    /// The number is taken, or there is no io_uring.
    pub fn bind(listen: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { ring: ring(1)?, socket: socket(listen, 1)? })
    }

    /// Its address.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until the ring fails; `ready` is called once it does.
    ///
    /// # Errors
    /// The ring's.
    pub fn serve(mut self, ready: impl FnOnce()) -> anyhow::Result<()> {
        let mut received = Vec::new();
        let mut armed = false;
        let mut ready = Some(ready);
        loop {
            let mut starved = false;
            while let Some(completion) = self.ring.next(&mut received) {
                let Completion::Datagrams { result, more, .. } = completion else { continue };
                armed &= more;
                match result {
                    Ok(datagrams) => {
                        let mut batch = self.ring.datagram_batch();
                        batch.set_to(Some(datagrams.peer));
                        batch.set_segment((datagrams.segment > 0).then_some(datagrams.segment));
                        batch.push(datagrams.payload);
                        self.ring.send_datagrams(&self.socket, batch, 0);
                    }
                    // An empty pool, or what ICMP says of a client that is gone.
                    Err(error) => starved |= error.kind() != ErrorKind::ConnectionRefused,
                }
            }
            if !armed {
                self.ring.recv_datagrams(&self.socket, 0);
                armed = true;
            }
            self.ring.enter(Some(if starved { STARVED } else { Duration::from_secs(1) }), || false)?;
            if let Some(ready) = ready.take() {
                ready();
            }
        }
    }
}

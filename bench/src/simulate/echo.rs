//! The service behind simulated mediators: bytes and datagrams go back to where they came from.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;

use tokio::net::{TcpListener, UdpSocket};

const DATAGRAM_MAX: usize = 65_536;

/// Where it listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Services {
    pub(super) tcp: SocketAddr,
    pub(super) udp: SocketAddr,
}

/// Starts it on a thread of its own, on loopback.
pub(super) fn spawn() -> io::Result<Services> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let any = (Ipv4Addr::LOCALHOST, 0);
    let (tcp, udp) = runtime.block_on(async { tokio::try_join!(TcpListener::bind(any), UdpSocket::bind(any)) })?;
    let services = Services { tcp: tcp.local_addr()?, udp: udp.local_addr()? };
    thread::Builder::new()
        .name("echo".into())
        .spawn(move || runtime.block_on(async { tokio::join!(serve_tcp(tcp), serve_udp(udp)) }))?;
    Ok(services)
}

async fn serve_tcp(listener: TcpListener) {
    loop {
        // Errors are one connection's, or a lack of descriptors that the end of others mends.
        let Ok((mut socket, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        tokio::spawn(async move {
            let (mut reader, mut writer) = socket.split();
            // A reset by the other end is its own affair.
            if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut writer).await;
            }
        });
    }
}

async fn serve_udp(socket: UdpSocket) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        // What ICMP tells of a port that is gone shows as an error of the next call.
        if let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..len], from).await;
        }
    }
}

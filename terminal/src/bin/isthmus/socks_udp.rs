//! UDP ASSOCIATE: a local UDP socket for one client, and a redirected port of the mediator behind it.

use std::io;
use std::net::SocketAddr;

use isthmus_proto::door::proxy::Proxy;
use isthmus_proto::door::socks5::{BadDatagram, read_datagram, write_datagram_head};
use isthmus_proto::door::target::Target;
use isthmus_proto::limits::DATAGRAM_MAX;
use isthmus_terminal::{Mediator, OpenOptions, UdpSocket as Remote, Unreachable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::socks::refuse;

/// Serves an association until its TCP connection ends.
pub(crate) async fn associate(
    mut local: TcpStream,
    proxy: &Proxy,
    target: &Target,
    from: SocketAddr,
    mediator: &Mediator,
) -> io::Result<()> {
    let remote = match mediator.udp(&OpenOptions::udp().redirect(true)).await {
        Ok(remote) => remote,
        Err(error) => return refuse(&mut local, proxy, &error).await,
    };
    let socket = UdpSocket::bind(SocketAddr::new(local.local_addr()?.ip(), 0)).await?;
    local.write_all(&proxy.granted(socket.local_addr()?)).await?;
    let announced = (target.port != 0).then(|| SocketAddr::new(from.ip(), target.port));
    let mut rest = [0; 64];
    tokio::select! {
        carried = carry(&socket, &remote, from, announced) => carried,
        // Nothing is to be said on it; its end is the association's.
        () = async { while local.read(&mut rest).await.is_ok_and(|count| count > 0) {} } => Ok(()),
    }
}

/// Datagrams both ways; only `from`'s address may use it, and of that the first port number that sends.
async fn carry(socket: &UdpSocket, remote: &Remote, from: SocketAddr, announced: Option<SocketAddr>) -> io::Result<()> {
    let (mut client, mut buffer) = (announced, vec![0; DATAGRAM_MAX]);
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An error here is ICMP's about a client that is gone; its TCP connection tells.
                let Ok((len, source)) = received else { continue };
                if client.is_some_and(|client| client != source) || source.ip() != from.ip() {
                    tracing::debug!(%source, "a datagram of somebody else was dropped");
                    continue;
                }
                let (to, payload) = match read_datagram(&buffer[..len]) {
                    Ok((target, payload)) => (target.address(), payload),
                    Err(BadDatagram::Fragment | BadDatagram::Malformed) => (None, &buffer[..0]),
                };
                let Some(to) = to else {
                    tracing::debug!(%source, "a fragment, a malformed datagram or one to a name was dropped");
                    continue;
                };
                client = Some(source);
                if let Err(error) = remote.send_to(payload, to).await {
                    tracing::debug!(%to, %error, "a datagram was not sent");
                }
            }
            received = remote.recv_datagram() => match received {
                Ok((payload, remote)) => {
                    let Some(client) = client else { continue };
                    let mut datagram = Vec::with_capacity(payload.len() + 22);
                    write_datagram_head(&mut datagram, remote);
                    datagram.extend_from_slice(&payload);
                    if let Err(error) = socket.send_to(&datagram, client).await {
                        tracing::debug!(%client, %error, "a datagram was not returned");
                    }
                }
                Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Unreachable>()) => {
                    tracing::debug!(%error, "a datagram was not delivered");
                }
                Err(error) => return Err(error),
            },
        }
    }
}

//! `forward`: ports of this machine that lead into the private network.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use isthmus_terminal::{Config, Mediator, MediatorId};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::forward_udp;
use crate::join::{cut, join};
use crate::output::print;
use crate::spec::ForwardSpec;

/// After an error of accept (out of descriptors): others may give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn run(
    config: Config,
    mediator: MediatorId,
    specs: Vec<ForwardSpec>,
    udp: bool,
) -> anyhow::Result<()> {
    let mut sockets = Vec::new();
    for spec in &specs {
        let bound = if udp {
            UdpSocket::bind(spec.local).await.map(Socket::Udp)
        } else {
            TcpListener::bind(spec.local).await.map(Socket::Tcp)
        };
        sockets.push(bound.with_context(|| format!("cannot bind {}; choose another local port", spec.local))?);
    }
    let mediator = Mediator::attach(&config, mediator).await?;
    for (socket, spec) in sockets.into_iter().zip(specs) {
        print(&format!("forwarding {} -> {}\n", socket.local_addr()?, spec.to))?;
        match socket {
            Socket::Tcp(listener) => drop(tokio::spawn(accept(listener, spec.to, mediator.clone()))),
            Socket::Udp(socket) => drop(tokio::spawn(forward_udp::run(socket, spec.to, mediator.clone()))),
        }
    }
    // Comes back by itself, until an error that waiting does not cure.
    Err(mediator.closed().await.into())
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Socket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, mediator: Mediator) {
    loop {
        match listener.accept().await {
            Ok((local, from)) => drop(tokio::spawn(serve(local, from, to, mediator.clone()))),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a local connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(local: TcpStream, from: SocketAddr, to: SocketAddr, mediator: Mediator) {
    match mediator.connect(to).await {
        Ok(remote) => {
            if let Err(error) = join(local, remote).await {
                tracing::info!(%from, %to, %error, "a connection was cut");
            }
        }
        Err(error) => {
            tracing::warn!(%from, %to, %error, "cannot connect");
            cut(local);
        }
    }
}

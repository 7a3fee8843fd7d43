//! `socks`: a SOCKS5 and HTTP CONNECT proxy on this machine that leads into one private network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use isthmus_proto::Code;
use isthmus_proto::door::proxy::{Command, Proxy, Request, Step};
use isthmus_proto::door::target::{Host, Target};
use isthmus_terminal::{Config, Error, Importance, Mediator, MediatorId, TcpStream as Remote};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::join::join;
use crate::output::print;
use crate::socks_udp;

/// After an error of accept (out of descriptors): others may give some back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client may take to say what it wants, and a host to call back.
const GREETING_TIME: Duration = Duration::from_secs(10);
const BIND_TIME: Duration = Duration::from_secs(180);

pub(crate) async fn run(config: Config, mediator: MediatorId, listen: SocketAddr) -> anyhow::Result<()> {
    let cannot = || format!("cannot listen on {listen}; choose another local port");
    let listener = TcpListener::bind(listen).await.with_context(cannot)?;
    let mediator = Mediator::attach(&config, mediator).await?;
    print(&format!("SOCKS5 and HTTP CONNECT on {}\n", listener.local_addr()?))?;
    tokio::select! {
        // It comes back by itself, until an error that waiting does not cure.
        error = mediator.closed() => Err(error.into()),
        () = accept(listener, mediator.clone()) => Ok(()),
    }
}

async fn accept(listener: TcpListener, mediator: Mediator) {
    loop {
        match listener.accept().await {
            Ok((local, from)) => {
                let mediator = mediator.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(local, from, &mediator).await {
                        tracing::info!(%from, %error, "a client's connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a local connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One client: its greeting, and what it asks for.
async fn serve(mut local: TcpStream, from: SocketAddr, mediator: &Mediator) -> io::Result<()> {
    let greeted = timeout(GREETING_TIME, greet(&mut local)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let Some((proxy, request, early)) = greeted else { return Ok(()) };
    let Request { command, target } = request;
    let asked = match own_target(target, mediator.id()) {
        Some(target) => {
            tracing::debug!(%from, %target, ?command, "request");
            match command {
                Command::Connect => connect(&mut local, &proxy, &target, mediator).await,
                Command::Bind => bind(&mut local, &proxy, &target, mediator).await,
                Command::Associate => return socks_udp::associate(local, &proxy, &target, from, mediator).await,
            }
        }
        None => Err(Error::Refused(Code::TokenMismatch)),
    };
    match asked {
        Ok(mut remote) => {
            remote.write_all(&early).await?;
            join(local, remote).await
        }
        Err(error) => {
            tracing::info!(%from, %error, "request refused");
            refuse(&mut local, &proxy, &error).await
        }
    }
}

/// Reads until the request; `None`: the client was told what is wrong with it, or went.
async fn greet(local: &mut TcpStream) -> io::Result<Option<(Proxy, Request, Vec<u8>)>> {
    let (mut proxy, mut bytes, mut out) = (Proxy::new(true), Vec::new(), Vec::new());
    loop {
        let (count, step) = proxy.feed(&bytes, &mut out);
        bytes.drain(..count);
        match step {
            Step::More if count > 0 => {}
            Step::Login { .. } => proxy.logged_in(true, &mut out),
            Step::More => {
                local.write_all(&std::mem::take(&mut out)).await?;
                if local.read_buf(&mut bytes).await? == 0 {
                    return Ok(None);
                }
            }
            Step::Request(request) => {
                local.write_all(&out).await?;
                return Ok(Some((proxy, request, bytes)));
            }
            Step::Refused(_) => {
                local.write_all(&out).await?;
                return local.shutdown().await.map(|()| None);
            }
        }
    }
}

/// The target without the mediator's name in it; `None` when it names another mediator.
fn own_target(target: Target, own: &MediatorId) -> Option<Target> {
    match target.host.mediator() {
        None => Some(target),
        Some((host, mediator)) => (mediator == *own).then_some(Target { host, ..target }),
    }
}

async fn connect(local: &mut TcpStream, proxy: &Proxy, target: &Target, mediator: &Mediator) -> Result<Remote, Error> {
    let remote = match &target.host {
        Host::Ip(ip) => mediator.connect(SocketAddr::new(*ip, target.port)).await?,
        Host::Name(name) => mediator.connect_name(name, target.port).await?,
    };
    answer(local, &proxy.granted(remote.local_addr())).await?;
    Ok(remote)
}

/// A server for one connection, from the target's address if it is given by one.
async fn bind(local: &mut TcpStream, proxy: &Proxy, target: &Target, mediator: &Mediator) -> Result<Remote, Error> {
    let from = target.address().map(|to| to.ip()).filter(|ip| !ip.is_unspecified());
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let listener = mediator.listen(any, Importance::Desired).await?;
    let bound = SocketAddr::new(own_address(mediator, from), listener.local_addr().port());
    answer(local, &proxy.granted(bound)).await?;
    let called = async {
        loop {
            let (remote, peer) = listener.accept().await?;
            if from.is_none_or(|from| from == peer.ip().to_canonical()) {
                return Ok((remote, peer));
            }
        }
    };
    let mut one = [0];
    let (remote, peer) = tokio::select! {
        called = timeout(BIND_TIME, called) => called.unwrap_or(Err(Error::Refused(Code::TimedOut)))?,
        // What the client sends meanwhile stays where it is; its end ends the server.
        _ = async { while local.peek(&mut one).await.is_ok_and(|count| count > 0) { tokio::time::sleep(BIND_TIME).await } } => {
            return Err(Error::Refused(Code::PeerGone));
        }
    };
    answer(local, &proxy.granted(peer)).await?;
    Ok(remote)
}

/// The mediator's address by which a host reaches it, as far as it has reported.
fn own_address(mediator: &Mediator, towards: Option<IpAddr>) -> IpAddr {
    let report = mediator.report().unwrap_or_default();
    let nets = || report.interfaces.iter().flat_map(|interface| &interface.addresses);
    let near = towards.and_then(|ip| nets().find(|net| net.contains(&ip)));
    let usable = nets().find(|net| !net.addr().is_loopback());
    near.or(usable).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |net| net.addr())
}

async fn answer(local: &mut TcpStream, reply: &[u8]) -> Result<(), Error> {
    // A client that is gone has no use for what it asked for.
    local.write_all(reply).await.map_err(|_| Error::Refused(Code::PeerGone))
}

pub(crate) async fn refuse(local: &mut TcpStream, proxy: &Proxy, error: &Error) -> io::Result<()> {
    local.write_all(&proxy.refused(error.code().unwrap_or(Code::Failed))).await?;
    local.shutdown().await
}

//! `listen`: a port of the mediator that leads to this side.

use std::net::SocketAddr;

use isthmus_terminal::{Config, Error, Importance, Mediator, MediatorId, TcpListener, TcpStream};

use crate::join::join;
use crate::keeper::{Attached, Keeper};
use crate::output::print;

pub(crate) async fn run(
    config: Config,
    mediator: MediatorId,
    at: SocketAddr,
    to: String,
    obligatory: bool,
) -> anyhow::Result<()> {
    let importance = if obligatory { Importance::Obligatory } else { Importance::Desired };
    let (keeper, attached) = Keeper::attach(config, mediator).await?;
    let first = attached.borrow().clone();
    let Some(first) = first else { return Err(keeper.run().await.into()) };
    let listener = first.listen(at, importance).await?;
    // Whoever knows the assigned number finds the listener there again after a reconnect, if it is free.
    let at = SocketAddr::new(at.ip(), listener.local_addr().port());
    print(&format!("listening on {}\n", listener.local_addr()))?;
    tokio::select! {
        error = keeper.run() => Err(error.into()),
        result = serve(listener, attached, at, importance, to) => result,
    }
}

/// Runs until the mediator refuses to listen again.
async fn serve(
    mut listener: TcpListener,
    mut attached: Attached,
    at: SocketAddr,
    importance: Importance,
    to: String,
) -> anyhow::Result<()> {
    loop {
        let error = loop {
            match listener.accept().await {
                Ok((remote, from)) => drop(tokio::spawn(lead(remote, from, to.clone()))),
                Err(error) => break error,
            }
        };
        tracing::warn!(%error, "the mediator's port is gone");
        let told = listener.local_addr();
        listener = loop {
            let open = attached.wait_for(|mediator| mediator.as_ref().is_some_and(is_open)).await?.clone();
            let Some(mediator) = open else { continue };
            match mediator.listen(at, importance).await {
                Ok(listener) => break listener,
                Err(Error::Refused(code)) => return Err(Error::Refused(code).into()),
                // The connection was lost again; the next look finds it closed.
                Err(error) => tracing::debug!(%error, "cannot listen"),
            }
        };
        if listener.local_addr() != told {
            print(&format!("listening on {}\n", listener.local_addr()))?;
        }
    }
}

/// The keeper may not have noticed yet that a connection has ended.
fn is_open(mediator: &Mediator) -> bool {
    !mediator.is_closed()
}

async fn lead(remote: TcpStream, from: SocketAddr, to: String) {
    match tokio::net::TcpStream::connect(&to).await {
        Ok(local) => {
            if let Err(error) = join(local, remote).await {
                tracing::info!(%from, %to, %error, "a connection was cut");
            }
        }
        // Dropping the remote one resets it: the host learns that nobody is there.
        Err(error) => tracing::warn!(%from, %to, %error, "cannot connect"),
    }
}

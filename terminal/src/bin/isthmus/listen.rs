//! `listen`: a port of the mediator that leads to this side.

use std::net::SocketAddr;

use isthmus_terminal::{Config, Error, Importance, Mediator, MediatorId, TcpListener, TcpStream};

use crate::join::join;
use crate::output::print;

/// Runs until the mediator refuses to listen again, or an error that waiting does not cure.
pub(crate) async fn run(
    config: Config,
    mediator: MediatorId,
    at: SocketAddr,
    to: String,
    obligatory: bool,
) -> anyhow::Result<()> {
    let importance = if obligatory { Importance::Obligatory } else { Importance::Desired };
    let mediator = Mediator::attach(&config, mediator).await?;
    let listener = mediator.listen(at, importance).await?;
    tokio::select! {
        told = tell(&listener) => told,
        error = serve(&listener, &to) => Err(error.into()),
    }
}

/// Prints the listener's address, and each new one after a lost connection.
async fn tell(listener: &TcpListener) -> anyhow::Result<()> {
    let mut local = listener.local_addr();
    loop {
        print(&format!("listening on {local}\n"))?;
        local = listener.moved_from(local).await;
    }
}

async fn serve(listener: &TcpListener, to: &str) -> Error {
    loop {
        match listener.accept().await {
            Ok((remote, from)) => drop(tokio::spawn(lead(remote, from, to.to_owned()))),
            Err(error) => return error,
        }
    }
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

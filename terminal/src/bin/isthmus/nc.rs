//! `nc`: the standard input and output, joined to a host in the private network.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use isthmus_terminal::{Config, Mediator, MediatorId, OpenOptions, TcpStream, UdpSocket};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const BUFFER: usize = 64 * 1024;

/// Longest UDP payload.
const DATAGRAM_MAX: usize = 65_507;

/// Ends when both directions have ended; at a terminal, the host's end will do, since nobody wants to
/// type an end of input into a connection that is over.
pub(crate) async fn tcp(config: &Config, mediator: MediatorId, to: SocketAddr) -> anyhow::Result<()> {
    let mediator = Mediator::attach(config, mediator).await?;
    let stream = mediator.connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
    exchange(stream, to).await?;
    // The last bytes may not have left yet.
    mediator.close().await;
    Ok(())
}

async fn exchange(stream: TcpStream, to: SocketAddr) -> anyhow::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let interactive = std::io::stdin().is_terminal();
    let send = async {
        copy(&mut tokio::io::stdin(), &mut write).await.context("cannot send")?;
        write.shutdown().await.context("cannot send")
    };
    let receive = async { copy(&mut read, &mut tokio::io::stdout()).await.with_context(|| format!("from {to}")) };
    tokio::pin!(send, receive);
    tokio::select! {
        sent = &mut send => {
            sent?;
            receive.await
        }
        received = &mut receive => {
            received?;
            if interactive { Ok(()) } else { send.await }
        }
    }
}

/// What was read is written at once: an interactive partner waits for it.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..n]).await?;
        to.flush().await?;
    }
}

/// Each read of the input is a datagram; ends when nothing came for `wait` after the input's end.
pub(crate) async fn udp(
    config: &Config,
    mediator: MediatorId,
    to: SocketAddr,
    redirect: bool,
    wait: Duration,
) -> anyhow::Result<()> {
    let mediator = Mediator::attach(config, mediator).await?;
    let mut options = OpenOptions::udp().peer(to);
    if redirect {
        options = options.redirect(false);
    }
    let socket = mediator.udp(&options).await.context("cannot open a UDP port")?;
    let mut input = tokio::io::stdin();
    let mut output = tokio::io::stdout();
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        tokio::select! {
            read = input.read(&mut buffer) => match read.context("cannot read the standard input")? {
                0 => break,
                n => drop(socket.send(&buffer[..n]).await.context("cannot send")?),
            },
            received = receive(&socket, &mut output) => received?,
        }
    }
    while let Ok(received) = tokio::time::timeout(wait, receive(&socket, &mut output)).await {
        received?;
    }
    drop(socket);
    mediator.close().await;
    Ok(())
}

async fn receive(socket: &UdpSocket, output: &mut tokio::io::Stdout) -> anyhow::Result<()> {
    let (payload, _) = socket.recv_datagram().await?;
    output.write_all(&payload).await.context("cannot write to the standard output")?;
    output.flush().await.context("cannot write to the standard output")
}

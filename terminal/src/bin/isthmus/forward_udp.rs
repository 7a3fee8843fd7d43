//! `forward -U`: a port in the private network for each local party.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_terminal::{Error, Mediator, OpenOptions};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

/// A party that nothing was heard of or for in this time is forgotten.
const IDLE: Duration = Duration::from_secs(60);

/// Most local parties at once; datagrams of further ones are dropped.
const FLOWS_MAX: usize = 4096;

/// Datagrams of one party that may wait while its port is being opened.
const WAITING_MAX: usize = 256;

/// Longest UDP payload.
const DATAGRAM_MAX: usize = 65_507;

/// Receives for ever.
pub(crate) async fn run(socket: UdpSocket, to: SocketAddr, mediator: Mediator) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error of a party that is gone; its flow ends by itself.
            Err(error) => {
                tracing::debug!(%error, "a local datagram was not delivered");
                continue;
            }
        };
        let payload = buffer[..len].to_vec();
        let unsent = match flows.get(&from) {
            Some(flow) => match flow.try_send(payload) {
                // Dropped when full, as any queue of UDP does.
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => continue,
                Err(mpsc::error::TrySendError::Closed(payload)) => payload,
            },
            None => payload,
        };
        if flows.len() >= FLOWS_MAX {
            flows.retain(|_, flow| !flow.is_closed());
        }
        if flows.len() >= FLOWS_MAX && !flows.contains_key(&from) {
            tracing::debug!(%from, "a datagram was dropped: too many parties");
            continue;
        }
        let (flow, waiting) = mpsc::channel(WAITING_MAX);
        // The queue is new and empty.
        let _ = flow.try_send(unsent);
        flows.insert(from, flow);
        let (socket, mediator) = (socket.clone(), mediator.clone());
        tokio::spawn(async move {
            if let Err(error) = carry(&mediator, &socket, from, to, waiting).await {
                tracing::warn!(%from, %to, %error, "cannot redirect a port");
            }
        });
    }
}

/// One party's datagrams, both ways, until it is idle.
async fn carry(
    mediator: &Mediator,
    local: &UdpSocket,
    from: SocketAddr,
    to: SocketAddr,
    mut waiting: mpsc::Receiver<Vec<u8>>,
) -> Result<(), Error> {
    let remote = mediator.udp(&OpenOptions::udp().redirect(true).peer(to)).await?;
    let idle = tokio::time::sleep(IDLE);
    tokio::pin!(idle);
    loop {
        tokio::select! {
            payload = waiting.recv() => {
                let Some(payload) = payload else { return Ok(()) };
                if let Err(error) = remote.send(&payload).await {
                    tracing::debug!(%from, %to, %error, "a datagram was not sent");
                }
            }
            received = remote.recv_datagram() => match received {
                Ok((payload, _)) => {
                    if let Err(error) = local.send_to(&payload, from).await {
                        tracing::debug!(%from, %to, %error, "a datagram was not returned");
                    }
                }
                // An ICMP error leaves the port as good as before; the port's end does not.
                Err(error) if error.get_ref().is_some_and(|inner| inner.is::<isthmus_terminal::Unreachable>()) => {
                    tracing::debug!(%from, %to, %error, "a datagram was not delivered");
                    continue;
                }
                Err(error) => {
                    tracing::debug!(%from, %to, %error, "a redirected port ended");
                    return Ok(());
                }
            },
            () = &mut idle => return Ok(()),
        }
        idle.as_mut().reset(tokio::time::Instant::now() + IDLE);
    }
}

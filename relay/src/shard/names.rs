//! Name listeners: public TCP ports on which the name that a visitor asks for leads to the mediator.
//!
//! Every shard listens, so that whichever core is free accepts and reads; [`super::newcomer`] finds out what a visitor
//! wants, and [`super::lead`] brings it to the shard of its mediator.

use anyhow::Context;
use isthmus_ring::Socket;

use crate::config::Config;
use crate::publish::{retry_in_use, tcp_listener};

/// Each shard's listeners.
///
/// # Errors
/// Names the port, what the system says and the cure.
pub(super) fn listeners(config: &Config, shards: usize) -> anyhow::Result<Vec<Vec<Socket>>> {
    let mut lists: Vec<Vec<Socket>> = (0..shards).map(|_| Vec::new()).collect();
    for &asked in &config.names {
        let cannot = || {
            format!(
                "--names: cannot listen on TCP {asked}; is another program there (`ss -lntp`)? Below 1024 the relay needs \
                 AmbientCapabilities=CAP_NET_BIND_SERVICE"
            )
        };
        if asked.port() != 0 {
            // The shards share the number, as another relay of the same user could: one that shares with nobody
            // finds out.
            drop(retry_in_use(|| tcp_listener(asked, false, None)).with_context(cannot)?);
        }
        let mut listen = asked;
        for list in &mut lists {
            let socket = tcp_listener(listen, true, config.congestion.as_deref()).with_context(cannot)?;
            listen.set_port(socket.local_addr().with_context(cannot)?.port());
            list.push(socket);
        }
        tracing::info!(%listen, routes = config.name.len(), "names lead to mediators");
    }
    Ok(lists)
}

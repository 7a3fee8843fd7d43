//! Starting the shards: sockets first, in order, then the threads.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use crossbeam_channel::{Receiver, Sender};
use isthmus_engine::{Engine, EngineConfig, KeyMap, UdpRole, What};
use isthmus_ring::{PoolConfig, Ring, RingConfig, Socket, UdpOptions, Waker};

use super::handover::{MAIL_MAX, Message, Peer};
use super::tag::TagTable;
use super::{Shard, tag};
use crate::admin::Counters;
use crate::proxy::ProxyPort;
use crate::publish::{Bound, Origin, retry_in_use, tcp_listener};
use crate::run::{RunningShard, ShardSeat, Shards, Shared};

/// Tries to find a number that is free for TCP and for UDP where any was asked for.
const FREE_PORT_TRIES: u32 = 32;

/// A started shard's way to be woken, or why it did not start.
type Started = anyhow::Result<Waker>;

/// Starts one thread per seat. On return every one of them accepts.
///
/// # Errors
/// An address in use or not ours, io_uring not to be had: each with its cure.
pub fn spawn(shared: Arc<Shared>, seats: Vec<ShardSeat>) -> anyhow::Result<Shards> {
    let count = seats.len();
    let (listen, sockets) = service_sockets(shared.config.listen, count, shared.config.congestion.as_deref())?;
    let mut published = published_ports(&shared, count)?;
    let mut names = super::names::listeners(&shared.config, count)?;
    let mut proxies = proxy_ports(&shared, count)?;
    let (senders, mail): (Vec<Sender<Message>>, Vec<Receiver<Message>>) =
        (0..count).map(|_| crossbeam_channel::bounded(MAIL_MAX)).unzip();

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut running = Vec::new();
    let mut wakers = Vec::new();
    let mut peer_lists = Vec::new();
    let (is_ready, ready) = crossbeam_channel::bounded::<()>(count);
    for ((seat, mail), (tcp, udp)) in seats.into_iter().zip(mail).zip(sockets) {
        let (started, wait_started) = crossbeam_channel::bounded::<Started>(1);
        let (give_peers, peers) = crossbeam_channel::bounded::<Vec<Peer>>(1);
        let mine = std::mem::take(&mut published[usize::from(seat.id.0)]);
        let names = std::mem::take(&mut names[usize::from(seat.id.0)]);
        let clients = std::mem::take(&mut proxies[usize::from(seat.id.0)]);
        let (shared, id, is_ready) = (shared.clone(), seat.id, is_ready.clone());
        let thread = std::thread::Builder::new()
            .name(format!("shard-{}", id.0))
            .spawn(move || {
                // A shard without a core of its own works as well, only slower.
                let _ = isthmus_ring::pin_thread_to_core(usize::from(id.0) % cores);
                let ring = match Ring::new(ring_config(count, cores)) {
                    Ok(ring) => ring,
                    Err(error) => {
                        let _ = started.send(Err(anyhow::Error::new(error)));
                        return Ok(());
                    }
                };
                let _ = started.send(Ok(ring.waker()));
                // A thread's first random bytes take some 20 ms, in which the library gathers entropy for them. All shards do so at
                // once, while whoever calls already waits in the service port's queue, and no handshake is held up by it.
                // Where it fails, so does the first handshake, which says so.
                let _ = aws_lc_rs::rand::fill(&mut [0]);
                let _ = is_ready.send(());
                drop(is_ready);
                let Ok(peers) = peers.recv() else { return Ok(()) };
                run_shard(seat, shared, mail, peers, ring, tcp, udp, mine, names, clients)
            })
            .context("cannot start a shard's thread")?;
        let waker = wait_started.recv().context("a shard ended while it started")??;
        wakers.push(waker.clone());
        peer_lists.push(give_peers);
        running.push(RunningShard { wake: Arc::new(move || waker.wake()), thread });
    }
    for give in peer_lists {
        let peers = senders.iter().zip(&wakers).map(|(s, w)| Peer { mail: s.clone(), waker: w.clone() }).collect();
        let _ = give.send(peers);
    }
    drop(is_ready);
    // One that ended instead says so when it is joined.
    ready.iter().take(count).for_each(drop);
    Ok(Shards { listen, running })
}

/// Shards beyond the cores are there for their rings' tables of sockets: they share the cores' caches, and what memory
/// each would hold ready for a core of its own.
fn ring_config(shards: usize, cores: usize) -> RingConfig {
    let config = RingConfig::default();
    if shards <= cores {
        return config;
    }
    let quarter = |blocks: u16| (blocks / 4).max(1);
    let shared = |pool: PoolConfig| PoolConfig {
        provided_usual: quarter(pool.provided_usual),
        provided_max: quarter(pool.provided_max),
        prefault: 0,
        ..pool
    };
    let RingConfig { stream, bulk, datagram, small, .. } = config;
    let [stream, bulk, datagram, small] = [stream, bulk, datagram, small].map(shared);
    RingConfig { stream, bulk, datagram, small, ..config }
}

#[allow(clippy::too_many_arguments)]
fn run_shard(
    seat: ShardSeat,
    shared: Arc<Shared>,
    mail: Receiver<Message>,
    peers: Vec<Peer>,
    ring: Ring,
    tcp: Socket,
    udp: Socket,
    published: Vec<Bound>,
    names: Vec<Socket>,
    proxies: Vec<(ProxyPort, Socket)>,
) -> anyhow::Result<()> {
    let shards = peers.len();
    let config = EngineConfig {
        handshake_timeout: shared.config.handshake_timeout,
        flow_idle: shared.config.udp_idle,
        busy_poll: shared.config.busy_poll,
        silence_max: shared.config.keepalive_udp_max.max(shared.config.keepalive_udp) + shared.config.dead_after,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(ring, config);
    let service_udp = engine.add_udp(udp, UdpRole::Service);
    engine.add_listener(tcp, tag::SERVICE);
    for socket in names {
        engine.add_listener(socket, tag::LED);
    }
    let exposes = super::expose::Exposes::new(&mut engine);
    let asks = super::asks::Asks::new(&mut engine);
    let drain = super::drain::Drain::new(&mut engine);
    // Questions begin with a zero byte, which leads them to the first shard.
    let stun = match (seat.id.0, engine.udp_addr(service_udp)) {
        (0, Some(service)) => super::stun::Stun::new(&mut engine, service),
        _ => super::stun::Stun::default(),
    };
    let expiries = super::session::Expiries::new(&mut engine);
    let checks = super::check::Checks::new(&mut engine);
    let recording = super::record::Recording::new(seat.records.clone());
    if recording.is_on() {
        engine.keep_ended_bridges();
    }
    let mut shard = Shard {
        seat,
        trust: shared.trust.clone(),
        expiries,
        names: shared.names.clone(),
        name_turns: Vec::new(),
        newcomers: HashMap::new(),
        shared,
        mail,
        peers,
        counters: Counters::default(),
        service_udp,
        links: KeyMap::new(What::Link),
        mediators: BTreeMap::new(),
        published: TagTable::new(tag::Door::Published),
        proxies: super::socks::Proxies::new(),
        exposes,
        asks,
        drain,
        stun,
        queries: Default::default(),
        recording,
        checks,
        connects: Default::default(),
        sessions: 0,
        half_open: 0,
        stopping: false,
        parting: false,
    };
    for (port, socket) in proxies {
        shard.add_proxy(&mut engine, port, socket);
    }
    shard.publish(&mut engine, published).map_err(anyhow::Error::msg)?;
    let exposes: Vec<_> = shard.exposes_of_config(shards);
    shard.expose(&mut engine, exposes).map_err(anyhow::Error::msg)?;
    while !(shard.stopping && shard.links.is_empty() && engine.partings() == 0) {
        engine.turn(&mut shard).context("the ring failed")?;
    }
    shard.publish_counters(&engine);
    Ok(())
}

/// A TCP listener and a UDP socket of the service port for each shard. The UDP ones are made in order,
/// since the steering program names them by it.
fn service_sockets(
    asked: SocketAddr,
    shards: usize,
    congestion: Option<&str>,
) -> anyhow::Result<(SocketAddr, Vec<(Socket, Socket)>)> {
    if asked.port() != 0 {
        // The shards share the number among themselves, and the system would let another relay of the same
        // user share it as well: a socket that shares with nobody finds out.
        let alone = retry_in_use(|| tcp_listener(asked, false, None));
        drop(alone.with_context(|| {
            format!("--listen: cannot listen on TCP {asked}; is another relay or program there? Stop it, or give another --listen")
        })?);
    }
    let mut tries = if asked.port() == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match service_sockets_once(asked, shards, congestion) {
            Err(_) if tries > 0 => {}
            result => return result,
        }
    }
}

fn service_sockets_once(
    asked: SocketAddr,
    shards: usize,
    congestion: Option<&str>,
) -> anyhow::Result<(SocketAddr, Vec<(Socket, Socket)>)> {
    let mut listen = asked;
    let mut sockets = Vec::new();
    for n in 0..shards {
        let tcp = tcp_listener(listen, true, congestion)
            .with_context(|| format!("--listen: cannot listen on TCP {listen}"))?;
        if n == 0 {
            // Whoever else listens on the number with SO_REUSEPORT would take connections from us.
            listen = SocketAddr::new(asked.ip(), tcp.local_addr().context("the listener has no address")?.port());
        }
        let udp = Socket::udp(listen, UdpOptions { reuse_port: true, gro: true, ..UdpOptions::default() })
            .with_context(|| format!("--listen: cannot bind UDP {listen}"))?;
        let _ = udp.set_buffers(Some(4 << 20), Some(4 << 20));
        sockets.push((tcp, udp));
    }
    if let (true, Some((_, first))) = (shards > 1, sockets.first()) {
        first.attach_reuseport_steering(shards as u8).context("cannot steer UDP datagrams to their shards")?;
    }
    Ok((listen, sockets))
}

/// The proxies' ports: a mediator's own on the shard that owns it, the others on every shard.
fn proxy_ports(shared: &Shared, shards: usize) -> anyhow::Result<Vec<Vec<(ProxyPort, Socket)>>> {
    let mut lists: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
    let congestion = shared.config.congestion.as_deref();
    for asked in &shared.config.socks {
        let cannot = || format!("--socks {asked}: cannot listen there; is another program there? Choose another port");
        // As for the service port: another relay of the same user must not share it.
        let first = retry_in_use(|| tcp_listener(asked.listen, false, congestion)).with_context(cannot)?;
        let mut port = asked.clone();
        port.listen = first.local_addr().with_context(cannot)?;
        tracing::info!(listen = %port.listen, mediator = port.mediator.as_ref().map(tracing::field::display), "SOCKS5 and HTTP CONNECT");
        match &port.mediator {
            Some(id) => {
                let owner = usize::from(id.shard(shards).0);
                lists.get_mut(owner).context("a mediator's shard is out of range")?.push((port, first));
            }
            None => {
                drop(first);
                for list in &mut lists {
                    let socket = tcp_listener(port.listen, true, congestion).with_context(cannot)?;
                    list.push((port.clone(), socket));
                }
            }
        }
    }
    Ok(lists)
}

/// The configuration's published ports, each for the shard that owns its mediator.
fn published_ports(shared: &Shared, shards: usize) -> anyhow::Result<Vec<Vec<Bound>>> {
    let mut lists: Vec<Vec<_>> = (0..shards).map(|_| Vec::new()).collect();
    for publish in shared.config.publishes() {
        let bound = Bound::bind_patiently(publish, Origin::Config, shared.config.congestion.as_deref())?;
        let Some(list) = lists.get_mut(usize::from(publish.mediator.shard(shards).0)) else {
            bail!("a mediator's shard is out of range");
        };
        list.push(bound);
    }
    Ok(lists)
}

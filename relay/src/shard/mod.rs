//! The shards: pinned threads, each with one ring, its own listeners and its own tables. A mediator
//! belongs to the shard that its name's hash tells; its terminals, visitors and flows live there too.
//!
//! **Invariant:** shards share nothing that is written while they run, but their queues.

mod asker;
mod asks;
mod check;
mod commands;
mod contest;
mod drain;
mod expose;
mod handover;
mod lead;
mod names;
mod newcomer;
mod observe;
mod publish;
mod query;
mod record;
mod service;
mod session;
mod socks;
mod spawn;
mod state;
mod stun;
mod tag;
mod terminal;
mod tunnel;
mod visitor;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crossbeam_channel::Receiver;
use isthmus_engine::{Control, Engine, Event, Key, KeyMap, What};
use isthmus_proto::{Code, MediatorId};

use crate::admin::{Counter, Counters};
use crate::names::Names;
use crate::run::{ShardSeat, Shared};
use crate::trust::{Judges, Trust};
use handover::{Message, Peer};
use newcomer::Newcomer;
use publish::Published;
pub use spawn::spawn;
use tag::{Door, TagTable};
use terminal::Terminal;
use tunnel::Tunnel;

/// One shard's decisions.
struct Shard {
    seat: ShardSeat,
    shared: Arc<Shared>,
    /// Whom to let in, now.
    trust: Arc<Trust>,
    expiries: session::Expiries,
    mail: Receiver<Message>,
    peers: Vec<Peer>,
    counters: Counters,
    service_udp: Key,
    /// Every link, in whatever state.
    links: KeyMap<Party>,
    /// This shard's mediators that are connected.
    mediators: BTreeMap<MediatorId, Key>,
    published: TagTable<Published>,
    /// Where names lead.
    names: Arc<Names>,
    /// By route: how many visitors it has led.
    name_turns: Vec<u32>,
    /// Visitors of whom something is still to be read.
    newcomers: HashMap<Key, Newcomer>,
    proxies: socks::Proxies,
    exposes: expose::Exposes,
    asks: asks::Asks,
    drain: drain::Drain,
    stun: stun::Stun,
    queries: query::Queries,
    recording: record::Recording,
    checks: check::Checks,
    connects: observe::Connects,
    sessions: u64,
    half_open: u32,
    stopping: bool,
    /// Farewells are still on their way.
    parting: bool,
}

/// Who is at the other end of a link.
enum Party {
    /// Not known yet; a certificate that it shows in the handshake is held against these.
    HalfOpen(Judges),
    /// Told to go: only the farewell is still on its way.
    Leaving,
    Tunnel(Box<Tunnel>),
    Terminal(Box<Terminal>),
}

impl Control for Shard {
    fn on_event(&mut self, engine: &mut Engine, event: Event<'_>) {
        self.record(engine, &event);
        match event {
            Event::Accepted { tag, socket, peer } => match Door::of(tag) {
                Some(Door::Service) => self.on_caller(engine, socket, peer),
                Some(Door::Published) => self.on_visitor(engine, tag, socket, peer),
                Some(Door::Led) => self.add_newcomer(engine, tag, socket, peer),
                Some(Door::Proxy) => self.on_client(engine, tag, socket, peer),
                Some(Door::Exposed) | None => {}
            },
            Event::Greeting { link, frame } => self.on_greeting(engine, link, frame),
            Event::LinkEnded { link, code, text, .. } => self.on_link_ended(engine, link, code, &text),
            Event::Request { link, slot, owner, request, ask } => {
                self.on_request(engine, link, slot, owner, request, ask);
            }
            Event::Answered { link, slot, owner, to, request, code, local, over } => match owner.what() {
                What::Stream => self.on_visitor_answer(engine, owner, to, code, over),
                What::Flow => self.on_flow_answer(engine, owner, code, over),
                What::BridgeA | What::BridgeB => {
                    self.record_bridge_answer(engine, owner, to, code);
                    terminal::forward_answer(engine, owner, to, request, code, local, over);
                }
                What::Guest => self.on_client_answer(engine, owner, to, code, local, over),
                What::Udp => self.on_association_answer(engine, owner, code, over),
                What::Control if is_exposed(owner) => {
                    self.on_expose_answer(engine, link, slot, owner.index(), to, code, local);
                }
                What::Control => self.on_check_answer(engine, link, slot, owner, to, code),
                _ => {}
            },
            Event::PortAccepted { link, owner, slot, peer, .. } if owner.what() == What::Guest => {
                self.on_bind_accepted(engine, link, owner, slot, peer);
            }
            Event::PortAccepted { link, owner, slot, peer, local, .. } if is_exposed(owner) => {
                self.on_exposed_host(engine, link, owner.index(), slot, peer, local);
            }
            Event::PortAccepted { link, owner, slot, peer, local, .. } => {
                self.forward_accepted(engine, link, owner, slot, peer, local);
            }
            Event::UdpError { owner, code, remote, .. } => terminal::forward_udp_error(engine, owner, code, remote),
            Event::Report { link, json } => self.on_report(link, json),
            Event::Renew { link, token } => self.on_renew(engine, link, token),
            Event::Timer { number: session::TIMER_EXPIRY } => self.on_expiry_timer(engine),
            Event::Timer { number: check::TIMER_CHECKS } => self.on_checks_timer(engine),
            Event::Timer { number: expose::TIMER_RETRY } => self.on_expose_retry(engine),
            Event::Timer { number: drain::TIMER_DRAIN } => self.on_drain_timer(engine),
            Event::Timer { number: asks::TIMER_AWAY } => self.on_away_timer(engine),
            Event::Timer { number: expose::TIMER_CONNECTS } => self.on_exposed_timeout(engine),
            Event::Connected { stream, link, slot, result } => {
                self.on_exposed_connected(engine, stream, link, slot, result);
            }
            Event::Stray { socket, from, datagram } => self.on_stray(engine, socket, from, datagram),
            Event::Query { link, query, json } => self.on_query(engine, link, query, json),
            Event::GuestBytes { guest, tag, ended } if Door::of(tag) == Some(Door::Proxy) => {
                self.on_client_bytes(engine, guest, tag, ended);
            }
            Event::GuestEnded { guest, tag, .. } if Door::of(tag) == Some(Door::Proxy) => {
                self.on_client_ended(engine, guest);
            }
            Event::StreamEnded { stream, tag, .. } if Door::of(tag) == Some(Door::Exposed) => {
                self.on_exposed_ended(stream, tag);
            }
            Event::StreamEnded { stream, tag, .. } if Door::of(tag) == Some(Door::Proxy) => {
                self.on_client_stream_ended(stream);
            }
            Event::StreamEnded { stream, tag, code, .. } => {
                self.connects.end(stream);
                self.on_visitor_ended(engine, tag, code);
            }
            Event::GuestBytes { guest, tag, ended } => self.on_newcomer_bytes(engine, guest, tag, ended),
            Event::GuestEnded { guest, code, .. } => self.on_newcomer_ended(guest, code),
            Event::Host { tag, host } => self.on_exposed_datagram(engine, tag, host),
            Event::FlowFailed { tag } => self.on_exposed_flow_failed(tag),
            Event::FlowEnded { tag, .. } if Door::of(tag) == Some(Door::Exposed) => self.on_exposed_flow_ended(tag),
            Event::Visitor { socket, tag, visitor } => self.on_new_flow(engine, socket, tag, visitor),
            Event::RequestName { link, slot, owner, request, to, timeout_ms } => {
                self.on_request_name(engine, link, slot, owner, request, to, timeout_ms);
            }
            Event::PortEnded { owner, code, .. } if matches!(owner.what(), What::Guest | What::Udp) => {
                self.on_client_port_ended(engine, owner, code);
            }
            Event::PortEnded { link, owner, code } if is_exposed(owner) => {
                self.on_expose_ended(engine, link, owner.index(), code);
            }
            Event::PortEnded { link, owner, .. } => self.on_check_ended(link, owner),
            Event::FlowEnded { tag, .. } => self.on_flow_ended(engine, tag),
            // The relay dials no link and watches nothing.
            Event::LinkReady { .. }
            | Event::Asker { .. }
            | Event::Outcomes { .. }
            | Event::ChannelsChanged { .. }
            | Event::Lifetime { .. }
            | Event::Timer { .. }
            | Event::Watched { .. } => {}
        }
    }

    fn on_turn(&mut self, engine: &mut Engine) {
        while let Ok(message) = self.mail.try_recv() {
            self.on_message(engine, message);
        }
        while let Ok(command) = self.seat.commands.try_recv() {
            self.on_command(engine, command);
        }
        self.record_ended_bridges(engine);
        self.go_on_checking(engine);
        self.parting = engine.partings() > 0;
        self.observe_samples(engine);
        self.publish_counters(engine);
    }

    fn has_work(&self) -> bool {
        // The last one out does not sleep on it.
        let leaving = self.stopping && self.links.is_empty() && !self.parting;
        leaving || self.checks.has_work() || !self.mail.is_empty() || !self.seat.commands.is_empty()
    }
}

/// Whether a port belongs to an exposed service, whose number its owner then is.
fn is_exposed(owner: Key) -> bool {
    owner.what() == What::Control && Door::of(owner.index()) == Some(Door::Exposed)
}

impl Shard {
    fn on_link_ended(&mut self, engine: &mut Engine, link: Key, code: Code, text: &str) {
        self.counters.link_closed(code);
        if !self.queries.is_empty() {
            self.queries.retain(|(asker, _), _| *asker != link);
        }
        match self.links.remove(&link) {
            None => {}
            Some(Party::HalfOpen(_)) => self.on_half_open_ended(code, text),
            Some(Party::Leaving) => {}
            Some(Party::Tunnel(tunnel)) => self.on_tunnel_ended(engine, link, &tunnel, code, text),
            Some(Party::Terminal(terminal)) => self.on_terminal_ended(link, &terminal, code, text),
        }
    }

    /// Takes the engine's counts over and shows everything.
    fn publish_counters(&mut self, engine: &Engine) {
        let counts = &engine.counts;
        let c = &mut self.counters;
        for (counter, value) in [
            (Counter::DatagramsOversizeTcp, counts.datagrams_oversize),
            (Counter::DatagramsForged, counts.datagrams_forged),
            (Counter::DatagramsEpochLimited, counts.datagrams_epoch_limited),
            (Counter::DatagramsReplayed, counts.datagrams_replayed),
            (Counter::DatagramsUnknownChannel, counts.datagrams_unknown_channel),
            (Counter::DatagramsUnknownFlow, counts.datagrams_unknown_port),
            (Counter::DatagramsNoChannel, counts.datagrams_dropped_channel),
            (Counter::DatagramsFlowLimit, counts.datagrams_refused_flows),
            (Counter::DatagramsQueueFull, counts.datagrams_dropped_full),
            (Counter::DatagramsSendFailed, counts.datagrams_send_failed),
            (Counter::DatagramsTruncated, counts.datagrams_truncated),
            (Counter::DatagramsToMediators, counts.datagrams_in),
            (Counter::DatagramsFromMediators, counts.datagrams_out),
            (Counter::RefusalsCut, counts.guests_cut),
            (Counter::SocksFragments, counts.associations_fragments),
            (Counter::SocksDatagramsRefused, counts.associations_refused),
            (Counter::BytesToMediators, counts.stream_bytes_in),
            (Counter::BytesFromMediators, counts.stream_bytes_out),
            (Counter::Roamed, counts.channels_roamed),
            (Counter::HandshakesResumed, counts.handshakes_resumed),
            (Counter::KeyUpdates, counts.key_updates),
            (Counter::BufferExhausted, counts.buffers_exhausted),
            (Counter::RecordsCopied, counts.payloads_copied),
            (Counter::FarewellsCut, counts.farewells_cut),
            (Counter::AcceptErrors, counts.accept_errors),
            (Counter::Loops, counts.turns),
            (Counter::LoopsShort, counts.turns_short),
            (Counter::RingEnters, counts.turns),
            (Counter::NewcomersLive, self.newcomers.len() as u64),
            (Counter::HalfOpen, u64::from(self.half_open)),
            (Counter::TunnelsLive, self.mediators.len() as u64),
            (Counter::ChannelsLive, engine.channel_count() as u64),
        ] {
            c.set(counter, value);
        }
        c.publish(&self.seat.counters);
    }
}

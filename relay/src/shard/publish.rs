//! The table of published ports: who is added and taken away while the shard runs.

use std::net::SocketAddr;

use isthmus_engine::{Engine, Key, UdpRole};
use isthmus_proto::Code;
use isthmus_ring::Socket;

use super::Shard;
use super::tag::TABLE_MAX;
use crate::admin::{PublishRow, Unpublish, Unpublished};
use crate::publish::{Bound, Origin, Proto, Publish};

/// A published port.
pub(super) struct Published {
    /// With the real port number.
    pub(super) publish: Publish,
    /// As it was asked for: port 0 asks for a free one.
    asked: SocketAddr,
    origin: Origin,
    /// Its listener or UDP socket.
    key: Key,
    /// Unpublished: it is here for as long as somebody came in by it.
    pub(super) leaving: bool,
    /// Whose turn it is, where several mediators share the visitors.
    pub(super) turn: u32,
    pub(super) visitors_live: u64,
    pub(super) visitors_total: u64,
    pub(super) flows_live: u64,
    pub(super) flows_total: u64,
}

impl Published {
    /// Its name in the mediator's audit.
    pub(super) fn front_door(&self) -> String {
        format!("published {}:{}", self.publish.proto, self.publish.listen)
    }
}

impl Shard {
    /// Serves bound ports.
    ///
    /// # Errors
    /// There is no room for all; then none is served.
    pub(super) fn publish(&mut self, engine: &mut Engine, ports: Vec<Bound>) -> Result<(), String> {
        if self.published.len() + ports.len() > TABLE_MAX {
            return Err(format!("a shard serves at most {TABLE_MAX} published ports"));
        }
        for Bound { publish, asked, origin, socket } in ports {
            tracing::info!(%publish, origin = origin.word(), "published");
            self.published.insert_with(|tag| {
                let key = match publish.proto {
                    Proto::Tcp => engine.add_listener(socket, tag),
                    Proto::Udp => engine.add_udp(socket, UdpRole::Published(tag)),
                };
                let (visitors_live, visitors_total, flows_live, flows_total) = (0, 0, 0, 0);
                let leaving = false;
                Published {
                    publish,
                    asked,
                    origin,
                    key,
                    leaving,
                    turn: 0,
                    visitors_live,
                    visitors_total,
                    flows_live,
                    flows_total,
                }
            });
        }
        Ok(())
    }

    /// Ceases to serve ports; those that are not served here are passed over.
    pub(super) fn unpublish(
        &mut self,
        engine: &mut Engine,
        ports: &[(Proto, SocketAddr)],
        how: Unpublish,
    ) -> Vec<Unpublished> {
        let named = |published: &Published| {
            let is = |listen| ports.contains(&(published.publish.proto, listen));
            // One that is leaving is named again only to hasten it.
            (is(published.publish.listen) || is(published.asked)) && (!published.leaving || how == Unpublish::Now)
        };
        let tags: Vec<u32> = self.published.iter().filter(|(_, p)| named(p)).map(|(tag, _)| tag).collect();
        tags.into_iter().filter_map(|tag| self.unpublish_one(engine, tag, how)).collect()
    }

    fn unpublish_one(&mut self, engine: &mut Engine, tag: u32, how: Unpublish) -> Option<Unpublished> {
        let published = self.published.get(tag)?;
        let (row, asked) = (self.publish_row(published), published.asked);
        tracing::info!(publish = %row.publish, ?how, "unpublished");
        let published = self.published.get_mut(tag)?;
        let (proto, key) = (published.publish.proto, published.key);
        let was_leaving = std::mem::replace(&mut published.leaving, true);
        if how == Unpublish::Now || (how == Unpublish::HandOut && proto == Proto::Udp) {
            self.end_visitors(engine, tag, proto, key);
        }
        let mut socket = None;
        match (proto, how) {
            // Its flows' answers leave by the socket, which goes with the last of them.
            (Proto::Udp, Unpublish::Gently) => {}
            (_, Unpublish::HandOut) => socket = take_socket(engine, proto, key),
            (Proto::Tcp, _) if was_leaving => {}
            (Proto::Tcp, _) => engine.remove_listener(key),
            (Proto::Udp, _) => {}
        }
        self.forget_if_over(engine, tag);
        Some(Unpublished { row, asked, socket })
    }

    fn end_visitors(&mut self, engine: &mut Engine, tag: u32, proto: Proto, key: Key) {
        match proto {
            Proto::Tcp => {
                for stream in engine.streams_of(tag) {
                    engine.end_stream(self, stream, Code::Killed);
                }
            }
            Proto::Udp => {
                for flow in engine.flow_keys(key) {
                    engine.end_flow(self, flow, true);
                }
            }
        }
    }

    /// Forgets a port that is unpublished and by which nobody is in any more.
    pub(super) fn forget_if_over(&mut self, engine: &mut Engine, tag: u32) {
        let over = |p: &Published| p.leaving && p.visitors_live == 0 && p.flows_live == 0;
        if self.published.get(tag).is_some_and(over)
            && let Some(published) = self.published.remove(tag)
            && published.publish.proto == Proto::Udp
        {
            engine.remove_udp(published.key);
        }
    }

    pub(super) fn publish_rows(&self) -> Vec<PublishRow> {
        self.published.iter().map(|(_, published)| self.publish_row(published)).collect()
    }

    fn publish_row(&self, published: &Published) -> PublishRow {
        PublishRow {
            publish: published.publish.clone(),
            shard: self.seat.id,
            asked: published.asked,
            origin: published.origin,
            leaving: published.leaving,
            connected: published.publish.mediators().iter().any(|id| self.mediators.contains_key(id)),
            visitors_live: published.visitors_live,
            visitors_total: published.visitors_total,
            flows_live: published.flows_live,
            flows_total: published.flows_total,
        }
    }
}

fn take_socket(engine: &mut Engine, proto: Proto, key: Key) -> Option<Socket> {
    match proto {
        Proto::Tcp => engine.take_listener(key),
        Proto::Udp => engine.take_udp(key),
    }
}

//! What terminals ask the relay itself.

use std::collections::HashMap;

use isthmus_engine::{Engine, Key};
use isthmus_proto::hello::{MediatorSummary, Query, QueryAnswer};
use isthmus_proto::limits::FRAME_PAYLOAD_MAX;
use isthmus_proto::wire::Frame;
use isthmus_proto::{Code, MediatorId, ShardId};

use super::handover::Message;
use super::{Party, Shard};
use crate::trust::{Glob, Operation};

/// Rows of one page: with the longest names and services they still fit one frame's payload.
const PAGE: usize = 32;

/// Questions of one terminal that may wait for the other shards.
const QUERIES_MAX: usize = 8;

/// Longest text of a wished service in a list.
const SERVICE_MAX: usize = 128;

const _: () = assert!(PAGE * (MediatorId::LEN_MAX + SERVICE_MAX * 2 + 160) < FRAME_PAYLOAD_MAX);

/// Questions to all shards that wait for answers.
pub(super) type Queries = HashMap<(Key, u32), Waiting>;

pub(super) struct Waiting {
    left: usize,
    rows: Vec<MediatorSummary>,
}

impl Shard {
    pub(super) fn on_query(&mut self, engine: &mut Engine, link: Key, query: u32, json: &[u8]) {
        let Some(Party::Terminal(terminal)) = self.links.get(&link) else { return };
        let grant = terminal.grant.clone();
        let answer = match serde_json::from_slice::<Query>(json) {
            Err(_) => failed(Code::Unsupported),
            Ok(Query::Info) if !grant.permits(Operation::Info) => failed(Code::NotPermitted),
            Ok(Query::Info) => match terminal.mediator.as_ref().and_then(|id| self.info(engine, id)) {
                Some(info) => QueryAnswer::Info(Box::new(info)),
                None => failed(Code::MediatorAway),
            },
            Ok(Query::List { .. }) if !grant.permits(Operation::List) => failed(Code::NotPermitted),
            Ok(Query::List { after }) => return self.list_everywhere(engine, link, query, &grant.mediators, after),
        };
        send_answer(engine, link, query, &answer);
    }

    fn list_everywhere(&mut self, engine: &mut Engine, link: Key, query: u32, glob: &Glob, after: Option<MediatorId>) {
        let shards = self.peers.len();
        if self.queries.keys().filter(|(asker, _)| *asker == link).count() >= QUERIES_MAX {
            return send_answer(engine, link, query, &failed(Code::Overloaded));
        }
        self.queries.insert((link, query), Waiting { left: shards, rows: Vec::new() });
        for n in 0..shards {
            let to = ShardId(n as u8);
            if to == self.seat.id {
                let rows = self.summaries(engine, glob, after.as_ref(), PAGE + 1);
                self.on_listed(engine, link, query, rows);
                continue;
            }
            let (from, glob, after) = (self.seat.id, glob.clone(), after.clone());
            if self.send(to, Message::List { from, link, query, glob, after, limit: PAGE + 1 }).is_err() {
                self.queries.remove(&(link, query));
                return send_answer(engine, link, query, &failed(Code::Overloaded));
            }
        }
    }

    pub(super) fn on_listed(&mut self, engine: &mut Engine, link: Key, query: u32, rows: Vec<MediatorSummary>) {
        let Some(waiting) = self.queries.get_mut(&(link, query)) else { return };
        waiting.rows.extend(rows);
        waiting.left -= 1;
        if waiting.left > 0 {
            return;
        }
        let Some(Waiting { mut rows, .. }) = self.queries.remove(&(link, query)) else { return };
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        let more = rows.len() > PAGE;
        rows.truncate(PAGE);
        send_answer(engine, link, query, &QueryAnswer::List { mediators: rows, more });
    }

    /// This shard's mediators of a pattern, in the order of their names.
    pub(super) fn summaries(
        &self,
        engine: &Engine,
        glob: &Glob,
        after: Option<&MediatorId>,
        limit: usize,
    ) -> Vec<MediatorSummary> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        self.mediators
            .range::<MediatorId, _>((from, Unbounded))
            .filter(|(id, _)| glob.matches(id))
            .filter_map(|(id, _)| self.tunnel_of(id))
            .take(limit)
            .map(|(_, tunnel)| {
                let mut summary = self.summary(engine, tunnel);
                if summary.service.len() > SERVICE_MAX {
                    summary.service = summary.service.chars().take(SERVICE_MAX / 4).collect();
                }
                summary
            })
            .collect()
    }
}

fn failed(code: Code) -> QueryAnswer {
    QueryAnswer::Error { code: code.word().to_owned() }
}

fn send_answer(engine: &mut Engine, link: Key, query: u32, answer: &QueryAnswer) {
    let mut json = serde_json::to_vec(answer).unwrap_or_default();
    if json.len() > FRAME_PAYLOAD_MAX {
        // Only a report of very many interfaces could be; `show tunnels` has it whole.
        json = serde_json::to_vec(&failed(Code::NoResources)).unwrap_or_default();
    }
    if let Some(machine) = engine.link(link) {
        machine.control().push(&Frame::QueryAnswer { query, json: &json });
        engine.touch(link);
    }
}

//! Published ports that mediators ask for themselves: there while the tunnel is, the report asks and the rules allow.

use std::collections::HashMap;
use std::time::Duration;

use isthmus_engine::{Engine, TimerId};
use isthmus_proto::MediatorId;
use isthmus_proto::hello::ASKS_MAX;

use super::Shard;
use super::tag::TABLE_MAX;
use crate::admin::{Counter, Unpublish};
use crate::publish::{Bound, Origin, asked, refusal};

/// The number of the timer of the next try.
pub(super) const TIMER_ASKS: u32 = 0x6173_6b73;

/// What could not be had is tried again after this: its port may be free then.
const RETRY: Duration = Duration::from_secs(30);

/// What a shard's mediators ask for.
pub(super) struct Asks {
    of_mediator: HashMap<MediatorId, Vec<Ask>>,
    timer: TimerId,
    armed: bool,
}

struct Ask {
    text: Box<str>,
    /// Its number in the table of published ports, if it is had.
    tag: Option<u32>,
}

impl Asks {
    pub(super) fn new(engine: &mut Engine) -> Self {
        Self { of_mediator: HashMap::new(), timer: engine.add_timer(TIMER_ASKS), armed: false }
    }
}

impl Shard {
    /// Serves what a mediator asks for and may have. What it asks for no more, or may not have any more, goes.
    pub(super) fn settle_asks(&mut self, engine: &mut Engine, id: &MediatorId, wanted: &[String]) {
        let before = self.asks.of_mediator.remove(id).unwrap_or_default();
        if before.is_empty() && wanted.is_empty() {
            return;
        }
        let mut asks: Vec<Ask> = Vec::new();
        for text in wanted.iter().take(ASKS_MAX) {
            if asks.iter().all(|ask| *ask.text != **text) {
                asks.push(Ask { text: text.as_str().into(), tag: None });
            }
        }
        // Those that go first: one of the others may want the port.
        for old in &before {
            let Some(tag) = old.tag.filter(|&tag| self.is_asked_port(tag)) else { continue };
            let stays = asks.iter_mut().find(|ask| ask.text == old.text && self.may_have(id, &ask.text));
            match stays {
                Some(ask) => ask.tag = Some(tag),
                None => drop(self.unpublish_one(engine, tag, Unpublish::Now)),
            }
        }
        for ask in asks.iter_mut().filter(|ask| ask.tag.is_none()) {
            let known = before.iter().any(|old| old.text == ask.text && old.tag.is_none());
            match self.have(engine, id, &ask.text) {
                Ok(tag) => ask.tag = Some(tag),
                Err(why) => {
                    self.counters.add(Counter::AsksRefused, 1);
                    if !known {
                        tracing::warn!(mediator = %id, ask = %ask.text, "a port that a mediator asks for is refused: {why}");
                    }
                }
            }
        }
        if wanted.len() > ASKS_MAX {
            self.counters.add(Counter::AsksRefused, (wanted.len() - ASKS_MAX) as u64);
            tracing::warn!(mediator = %id, asks = wanted.len(), most = ASKS_MAX, "a mediator asks for too many ports");
        }
        if asks.iter().any(|ask| ask.tag.is_none()) && !self.asks.armed {
            self.asks.armed = true;
            engine.set_timer(self.asks.timer, engine.now() + RETRY);
        }
        self.asks.of_mediator.insert(id.clone(), asks);
    }

    /// A mediator is gone: its ports are free for others.
    pub(super) fn drop_asks(&mut self, engine: &mut Engine, id: &MediatorId) {
        self.settle_asks(engine, id, &[]);
        self.asks.of_mediator.remove(id);
    }

    /// What was refused is tried again.
    pub(super) fn on_ask_timer(&mut self, engine: &mut Engine) {
        self.asks.armed = false;
        let refused = |asks: &[Ask]| asks.iter().any(|ask| ask.tag.is_none());
        let again: Vec<_> =
            self.asks.of_mediator.iter().filter(|(_, asks)| refused(asks)).map(|(id, _)| id.clone()).collect();
        self.settle_again(engine, again);
    }

    /// The rules have changed.
    pub(super) fn settle_all_asks(&mut self, engine: &mut Engine) {
        let all: Vec<_> = self.asks.of_mediator.keys().cloned().collect();
        self.settle_again(engine, all);
    }

    fn settle_again(&mut self, engine: &mut Engine, mut mediators: Vec<MediatorId>) {
        // In an order that does not depend on the table's.
        mediators.sort();
        for id in mediators {
            let wanted: Vec<String> = self
                .asks
                .of_mediator
                .get(&id)
                .map_or_else(Vec::new, |asks| asks.iter().map(|ask| ask.text.to_string()).collect());
            self.settle_asks(engine, &id, &wanted);
        }
    }

    fn may_have(&self, id: &MediatorId, text: &str) -> bool {
        asked(id, text).is_ok_and(|publish| self.shared.config.allow_publish.iter().any(|rule| rule.allows(&publish)))
    }

    fn is_asked_port(&self, tag: u32) -> bool {
        self.published.get(tag).is_some_and(|published| !published.leaving && published.origin() == Origin::Asked)
    }

    /// # Errors
    /// Why not, with the cure.
    fn have(&mut self, engine: &mut Engine, id: &MediatorId, text: &str) -> Result<u32, String> {
        let publish = asked(id, text)?;
        if !self.shared.config.allow_publish.iter().any(|rule| rule.allows(&publish)) {
            let (proto, listen) = (publish.proto, publish.listen);
            return Err(format!(
                "no rule lets it have {proto} {listen}; --allow-publish '{id}={proto}:{listen}' would"
            ));
        }
        if self.published.len() >= TABLE_MAX {
            return Err(format!("a shard serves at most {TABLE_MAX} published ports"));
        }
        let bound = Bound::bind(&publish, Origin::Asked, self.shared.config.congestion.as_deref())
            .map_err(|error| refusal(&publish, &error))?;
        Ok(self.publish_one(engine, bound))
    }
}

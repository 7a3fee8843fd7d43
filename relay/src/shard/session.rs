//! Sessions end with their right: at a token's expiry, and when what is trusted has changed.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isthmus_engine::{Engine, Key, TimerId};
use isthmus_proto::Code;

use super::{Party, Shard};
use crate::admin::Counter;
use crate::trust::{Credential, Grant, Holder, Trust, unix_now};

/// The number of the timer of the next expiry.
pub(super) const TIMER_EXPIRY: u32 = 0x7472_7573;

/// Longest time between two looks at the wall clock, which may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Sessions that end by themselves, by the end of their right.
pub(super) struct Expiries {
    /// Seconds since 1970, and the link's key.
    by_end: BTreeSet<(u64, u64)>,
    timer: TimerId,
    armed: bool,
}

impl Expiries {
    pub(super) fn new(engine: &mut Engine) -> Self {
        Self { by_end: BTreeSet::new(), timer: engine.add_timer(TIMER_EXPIRY), armed: false }
    }
}

impl Shard {
    /// Looks again when the first right ends, or in a minute: the wall clock may be set meanwhile.
    fn arm_expiry(&mut self, engine: &mut Engine) {
        let link = self.expiries.by_end.first().map(|&(end, _)| end);
        let Some(first) = link.into_iter().chain(self.proxies.rights.first_end()).min() else { return };
        self.expiries.armed = true;
        let wait = Duration::from_secs(first.saturating_sub(unix_now())).min(LOOK_AGAIN);
        engine.set_timer(self.expiries.timer, engine.now() + wait);
    }

    /// A proxy's client comes in: it stays as long as its token is good.
    pub(super) fn watch_client(&mut self, engine: &mut Engine, client: Key, grant: &Grant) {
        self.proxies.rights.add(client, grant);
        let end = grant.credential.expires;
        let first = self.proxies.rights.first_end() == Some(end);
        if first || !self.expiries.armed {
            self.arm_expiry(engine);
        }
    }

    /// A session begins: it lasts as long as its right.
    pub(super) fn watch_expiry(&mut self, engine: &mut Engine, link: Key, proof: &Credential) {
        self.expiries.by_end.insert((proof.expires, link.to_bits()));
        let first = self.expiries.by_end.first().is_some_and(|&(_, key)| key == link.to_bits());
        if first || !self.expiries.armed {
            self.arm_expiry(engine);
        }
    }

    /// A session ended, by whatever.
    pub(super) fn forget_expiry(&mut self, link: Key, proof: &Credential) {
        self.expiries.by_end.remove(&(proof.expires, link.to_bits()));
    }

    pub(super) fn on_expiry_timer(&mut self, engine: &mut Engine) {
        self.expiries.armed = false;
        let now = unix_now();
        while let Some(&(end, key)) = self.expiries.by_end.first()
            && end <= now
        {
            self.expiries.by_end.pop_first();
            self.cut(engine, Key::from_bits(key), Code::TokenExpired);
        }
        self.cut_expired_clients(engine, now);
        self.arm_expiry(engine);
    }

    /// Takes what is trusted from now on, and ends the sessions, those of proxies' clients too, that would not be let in
    /// any more. One walk over the sessions, as [`Shard::rows`] is one over their names. Returns how many were ended.
    pub(super) fn take_trust(&mut self, engine: &mut Engine, trust: Arc<Trust>) -> usize {
        self.trust = trust;
        let now = unix_now();
        let refused: Vec<(Key, Code)> = self
            .links
            .iter()
            .filter_map(|(link, party)| {
                let (holder, name, proof) = proof_of(party)?;
                Some((link, self.trust.still(holder, name, proof, now).err()?))
            })
            .collect();
        for &(link, code) in &refused {
            self.cut(engine, link, code);
        }
        self.drop_untrusted_asked();
        refused.len() + self.cut_refused_clients(engine, now)
    }

    /// Ends a session whose right has ended.
    fn cut(&mut self, engine: &mut Engine, link: Key, code: Code) {
        let Some((holder, name, _)) = self.links.get(&link).and_then(proof_of) else { return };
        tracing::info!(?holder, name, reason = code.word(), "session cut");
        engine.farewell(link, code, 0, code.text());
        engine.end_link_after_farewell(self, link, code);
    }

    /// A caller shows a newer token, so that its session may outlive the one that it came with.
    pub(super) fn on_renew(&mut self, engine: &mut Engine, link: Key, token: &str) {
        let renewed = self.trust.grant(token, unix_now()).and_then(|grant| self.fits(link, grant));
        let grant = match renewed {
            Ok(grant) => grant,
            Err(code) => {
                self.counters.add(Counter::RenewalsRefused, 1);
                tracing::debug!(reason = code.word(), "a newer token is refused; the session ends with the one before");
                return;
            }
        };
        let Some((_, _, &before)) = self.links.get(&link).and_then(proof_of) else { return };
        self.forget_expiry(link, &before);
        let proof = grant.credential;
        match self.links.get_mut(&link) {
            Some(Party::Tunnel(tunnel)) => tunnel.proof = proof,
            Some(Party::Terminal(terminal)) => {
                let grant = Rc::new(grant);
                terminal.grant = grant.clone();
                engine.set_link_filter(link, Rc::new(move |to| grant.permits_destination(to)));
            }
            Some(Party::HalfOpen(_) | Party::Leaving) | None => return,
        }
        self.watch_expiry(engine, link, &proof);
    }

    /// A renewal is for the same holder, and for the mediator that it is attached to.
    fn fits(&self, link: Key, grant: Grant) -> Result<Grant, Code> {
        let party = self.links.get(&link).ok_or(Code::TokenMismatch)?;
        let (holder, name, _) = proof_of(party).ok_or(Code::TokenMismatch)?;
        let attached = match party {
            Party::Terminal(terminal) => terminal.mediator.as_ref().is_none_or(|id| grant.mediators.matches(id)),
            Party::Tunnel(_) | Party::HalfOpen(_) | Party::Leaving => true,
        };
        if holder == grant.holder && name == grant.name && attached { Ok(grant) } else { Err(Code::TokenMismatch) }
    }
}

/// Whose session it is, and by what right.
fn proof_of(party: &Party) -> Option<(Holder, &str, &Credential)> {
    match party {
        Party::Tunnel(tunnel) => Some((Holder::Mediator, tunnel.id.as_str(), &tunnel.proof)),
        Party::Terminal(terminal) => Some((Holder::Terminal, &terminal.grant.name, &terminal.grant.credential)),
        Party::HalfOpen(_) | Party::Leaving => None,
    }
}

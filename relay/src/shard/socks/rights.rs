//! Clients who came in with a terminal's token: what they are at, their streams included, ends with it as a terminal's
//! link does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use isthmus_engine::{Engine, Key, What};
use isthmus_proto::Code;

use crate::shard::Shard;
use crate::trust::{Credential, Grant, Holder, Trust};

/// By what right a client is here; the one that ends first comes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    /// Seconds since 1970.
    ends: u64,
    proof: Credential,
    name: String,
}

/// The clients of each token: guests until they are admitted, and streams from then on.
#[derive(Default)]
pub(in crate::shard) struct Rights {
    clients: BTreeMap<Rc<Right>, HashSet<Key>>,
    of: HashMap<Key, Rc<Right>>,
}

impl Rights {
    /// A client comes in. Whoever was asked for no token is not kept.
    pub(in crate::shard) fn add(&mut self, client: Key, grant: &Grant) {
        let proof = grant.credential;
        if proof == Credential::NOBODYS {
            return;
        }
        let right = Right { ends: proof.expires, proof, name: grant.name.clone() };
        // One copy for all clients of a token.
        let right = self.clients.get_key_value(&right).map_or_else(|| Rc::new(right), |(known, _)| known.clone());
        self.clients.entry(right.clone()).or_default().insert(client);
        self.of.insert(client, right);
    }

    /// A guest became a stream.
    pub(super) fn rename(&mut self, guest: Key, stream: Key) {
        let Some(right) = self.of.remove(&guest) else { return };
        if let Some(clients) = self.clients.get_mut(&right) {
            clients.remove(&guest);
            clients.insert(stream);
        }
        self.of.insert(stream, right);
    }

    /// A client is gone.
    pub(super) fn forget(&mut self, client: Key) {
        let Some(right) = self.of.remove(&client) else { return };
        if let Some(clients) = self.clients.get_mut(&right) {
            clients.remove(&client);
            if clients.is_empty() {
                self.clients.remove(&right);
            }
        }
    }

    /// When the first right ends, in seconds since 1970.
    pub(in crate::shard) fn first_end(&self) -> Option<u64> {
        self.clients.first_key_value().map(|(right, _)| right.ends)
    }

    /// The clients whose right does not hold at `now`, in seconds since 1970, under `trust`, and why not. It looks at
    /// each token once.
    fn refused(&self, trust: &Trust, now: u64) -> Vec<(Key, Code)> {
        let mut refused = Vec::new();
        for (right, clients) in &self.clients {
            if let Err(code) = trust.still(Holder::Terminal, &right.name, &right.proof, now) {
                tracing::info!(
                    terminal = right.name,
                    clients = clients.len(),
                    reason = code.word(),
                    "proxy clients cut"
                );
                refused.extend(clients.iter().map(|&client| (client, code)));
            }
        }
        refused
    }

    /// The clients whose right has ended at `now`, in seconds since 1970.
    fn expired(&self, now: u64) -> Vec<Key> {
        self.clients.iter().take_while(|(right, _)| right.ends <= now).flat_map(|(_, keys)| keys).copied().collect()
    }
}

impl Shard {
    /// Ends the clients whose tokens have expired.
    pub(in crate::shard) fn cut_expired_clients(&mut self, engine: &mut Engine, now: u64) {
        let expired = self.proxies.rights.expired(now);
        if !expired.is_empty() {
            tracing::info!(clients = expired.len(), reason = Code::TokenExpired.word(), "proxy clients cut");
        }
        for client in expired {
            self.cut_client(engine, client, Code::TokenExpired);
        }
    }

    /// Ends the clients whom what is trusted now does not let in any more. Returns how many.
    pub(in crate::shard) fn cut_refused_clients(&mut self, engine: &mut Engine, now: u64) -> usize {
        let refused = self.proxies.rights.refused(&self.trust, now);
        for &(client, code) in &refused {
            self.cut_client(engine, client, code);
        }
        refused.len()
    }

    fn cut_client(&mut self, engine: &mut Engine, client: Key, code: Code) {
        match client.what() {
            What::Stream => engine.end_stream(self, client, code),
            _ => self.end_client(engine, client, Some(code), true),
        }
        // It was told already where it was there.
        self.proxies.rights.forget(client);
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::MediatorId;

    use super::*;
    use crate::trust::Glob;

    fn grant(id: u64, expires: u64) -> Grant {
        let mediator: MediatorId = "cpe".parse().unwrap();
        let credential = Credential { id, print: id, key: 1, issued: 0, expires };
        Grant { credential, ..Grant::everything("desk", Glob::exactly(&mediator)) }
    }

    #[test]
    fn rights_end_in_the_order_of_their_tokens_and_leave_nothing() {
        let mut rights = Rights::default();
        let [a, b, c, stream] = [1, 2, 3, 4].map(Key::control);
        rights.add(a, &grant(7, 200));
        rights.add(b, &grant(7, 200));
        rights.add(c, &grant(8, 100));
        rights.rename(a, stream);
        assert_eq!((rights.first_end(), rights.clients.len(), rights.of.len()), (Some(100), 2, 3));
        assert_eq!((rights.expired(99), rights.expired(100)), (vec![], vec![c]));
        rights.forget(c);
        let mut expired = rights.expired(200);
        expired.sort_by_key(|key| key.index());
        assert_eq!((rights.expired(199), expired), (vec![], vec![b, stream]));
        rights.forget(b);
        rights.forget(stream);
        // One that never was there.
        rights.forget(a);
        assert_eq!((rights.first_end(), rights.of.len()), (None, 0));
    }

    #[test]
    fn whoever_was_asked_for_no_token_is_not_kept() {
        let mut rights = Rights::default();
        rights.add(Key::control(1), &Grant::everything("anybody", Glob::exactly(&"cpe".parse().unwrap())));
        assert!(rights.of.is_empty() && rights.clients.is_empty());
    }
}

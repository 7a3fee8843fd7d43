//! The table of what mediators ask for, and what became of it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use isthmus_proto::MediatorId;
use isthmus_proto::ask::AskRefusal;
use isthmus_proto::door::name::HostName;
use isthmus_proto::hello::Outcome;

use super::super::command::Asking;
use crate::publish::{Proto, Publish};

/// All that mediators ask for.
#[derive(Debug, Default)]
pub(in crate::admin) struct Asked {
    pub(super) by: BTreeMap<MediatorId, Asker>,
    /// Ports that they have, all together.
    pub(super) ports: usize,
    /// Names that they have.
    pub(super) names: HashMap<HostName, MediatorId>,
    /// Since the shards got them.
    pub(super) names_changed: bool,
}

/// One mediator's.
#[derive(Clone, Debug, Default)]
pub(super) struct Asker {
    pub(super) session: u64,
    pub(super) entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) text: String,
    pub(super) state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Port(Publish),
    Name(HostName),
    Refused(AskRefusal),
}

pub(super) type Port = (Proto, SocketAddr);

impl Asker {
    pub(super) fn ports(&self) -> impl Iterator<Item = &Publish> {
        self.entries.iter().filter_map(|entry| match &entry.state {
            State::Port(publish) => Some(publish),
            State::Name(_) | State::Refused(_) => None,
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &HostName> {
        self.entries.iter().filter_map(|entry| match &entry.state {
            State::Name(name) => Some(name),
            State::Port(_) | State::Refused(_) => None,
        })
    }

    /// Whether something may be had later that was refused.
    pub(super) fn waits(&self) -> bool {
        self.entries.iter().any(|entry| match entry.state {
            State::Refused(why) => match why {
                AskRefusal::Taken | AskRefusal::Limit | AskRefusal::NoAddress | AskRefusal::Failed => true,
                AskRefusal::NotUnderstood | AskRefusal::NotAllowed | AskRefusal::Privileged | AskRefusal::Withdrawn => {
                    false
                }
            },
            State::Port(_) | State::Name(_) => false,
        })
    }

    pub(super) fn asking(&self, mediator: &MediatorId) -> Asking {
        let asks = self.entries.iter().map(|entry| entry.text.clone()).collect();
        Asking { mediator: mediator.clone(), session: Some(self.session), asks }
    }
}

impl Entry {
    pub(super) fn outcome(&self) -> Outcome {
        let (granted, refused) = match &self.state {
            State::Port(publish) => (Some(publish.listen.to_string()), None),
            State::Name(name) => (Some(name.as_str().to_owned()), None),
            State::Refused(why) => (None, Some(*why)),
        };
        let text = refused.map_or_else(String::new, |why| why.text().to_owned());
        Outcome { ask: self.text.clone(), granted, refused: refused.map(|why| why.word().to_owned()), text }
    }
}

impl Asked {
    /// Whether anything has to be tried again.
    pub(super) fn waits(&self) -> bool {
        self.names_changed || self.by.values().any(Asker::waits)
    }

    pub(super) fn take(&mut self, mediator: &MediatorId) -> Asker {
        let asker = self.by.remove(mediator).unwrap_or_default();
        self.ports = self.ports.saturating_sub(asker.ports().count());
        asker
    }

    pub(super) fn put(&mut self, mediator: MediatorId, asker: Asker) {
        self.ports += asker.ports().count();
        self.by.insert(mediator, asker);
    }
}

/// Whether two sockets could not both be bound; where that depends on the system's settings, it is assumed.
pub(super) fn overlap(a: &Publish, b: &Publish) -> bool {
    let (x, y) = (a.listen.ip(), b.listen.ip());
    a.proto == b.proto
        && a.listen.port() == b.listen.port()
        && (x.is_unspecified() || y.is_unspecified() || x.to_canonical() == y.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_overlap_where_the_system_could_not_bind_both() {
        let publish = |listen: &str| format!("{listen}=m/10.0.0.5:80").parse::<Publish>().unwrap();
        for (a, b, want) in [
            ("tcp:0.0.0.0:80", "tcp:192.0.2.1:80", true),
            ("tcp:[::]:80", "tcp:192.0.2.1:80", true),
            ("tcp:192.0.2.1:80", "tcp:[::ffff:192.0.2.1]:80", true),
            ("tcp:192.0.2.1:80", "tcp:192.0.2.2:80", false),
            ("tcp:[::]:80", "udp:[::]:80", false),
            ("tcp:[::]:80", "tcp:[::]:81", false),
        ] {
            assert_eq!(overlap(&publish(a), &publish(b)), want, "{a} {b}");
            assert_eq!(overlap(&publish(b), &publish(a)), want, "{b} {a}");
        }
    }
}

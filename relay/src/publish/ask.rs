//! Ports that mediators ask for in their own configuration, and the rules of which they may have.

use std::fmt;
use std::str::FromStr;

use isthmus_proto::MediatorId;
use isthmus_proto::hello::ASK_LEN_MAX;
use isthmus_proto::policy::AllowRule;
use serde::{Deserialize, Serialize};

use super::{Proto, Publish};
use crate::trust::Glob;

/// Which mediators may ask for which ports, written `MEDIATORS=PROTO:CIDR[:PORTS]`: `cpe-*=tcp:*:8000-8099`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AskRule {
    mediators: Glob,
    proto: Proto,
    ports: AllowRule,
}

/// The text is no such rule; the message says which part, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write MEDIATORS=PROTO:CIDR[:PORTS], as in 'cpe-*=tcp:*:8000-8099'")]
pub struct BadAskRule(String);

impl AskRule {
    /// Whether the mediator that the port would lead to may have it.
    pub fn allows(&self, publish: &Publish) -> bool {
        self.proto == publish.proto && self.mediators.matches(&publish.mediator) && self.ports.allows(publish.listen)
    }
}

impl FromStr for AskRule {
    type Err = BadAskRule;
    fn from_str(text: &str) -> Result<Self, BadAskRule> {
        let (mediators, ports) = text.split_once('=').ok_or_else(|| BadAskRule("there is no '='".into()))?;
        let (proto, ports) =
            ports.split_once(':').ok_or_else(|| BadAskRule("there is no PROTO: before the address".into()))?;
        let bad = |part: &str, error: &dyn fmt::Display| BadAskRule(format!("'{part}': {error}"));
        Ok(Self {
            mediators: mediators.parse().map_err(|error| bad(mediators, &error))?,
            proto: proto.parse().map_err(|_| BadAskRule(format!("'{proto}' is neither tcp nor udp")))?,
            ports: ports.parse().map_err(|error| bad(ports, &error))?,
        })
    }
}

impl fmt::Display for AskRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", String::from(self.mediators.clone()), self.proto, self.ports)
    }
}

impl TryFrom<String> for AskRule {
    type Error = BadAskRule;
    fn try_from(text: String) -> Result<Self, BadAskRule> {
        text.parse()
    }
}

impl From<AskRule> for String {
    fn from(rule: AskRule) -> Self {
        rule.to_string()
    }
}

/// What a mediator asks for, as the published port that it would be.
///
/// # Errors
/// What is wrong with the text.
pub fn asked(mediator: &MediatorId, text: &str) -> Result<Publish, String> {
    if text.len() > ASK_LEN_MAX {
        return Err(format!("it is longer than {ASK_LEN_MAX} bytes"));
    }
    let (front, back) = text.split_once('=').ok_or("there is no '='")?;
    let publish: Publish = format!("{front}={mediator}/{back}").parse().map_err(|error| format!("{error}"))?;
    // The text between could name others.
    let own = publish.mediator == *mediator && publish.others.is_empty();
    if !own || publish.listen.port() == 0 {
        return Err("it is not PROTO:ADDR:PORT=HOST:PORT".into());
    }
    Ok(publish)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_covers_its_mediators_protocol_addresses_and_ports_and_nothing_beside() {
        let rule: AskRule = "cpe-*=tcp:10.0.0.0/8:8000-8099".parse().unwrap();
        let may = |id: &str, text: &str| rule.allows(&asked(&id.parse().unwrap(), text).unwrap());
        assert!(may("cpe-1", "tcp:10.0.0.1:8000=10.0.0.5:80"));
        assert!(may("cpe-1", "tcp:10.0.0.1:8099=10.0.0.5:80,proxy=v2"));
        assert!(!may("other", "tcp:10.0.0.1:8000=10.0.0.5:80"));
        assert!(!may("cpe-1", "udp:10.0.0.1:8000=10.0.0.5:80"));
        assert!(!may("cpe-1", "tcp:10.0.0.1:8100=10.0.0.5:80"));
        assert!(!may("cpe-1", "tcp:11.0.0.1:8000=10.0.0.5:80"));
        assert_eq!(rule.to_string().parse::<AskRule>().unwrap(), rule);
    }

    #[test]
    fn what_is_asked_for_leads_to_the_asker_alone() {
        let id: MediatorId = "cpe".parse().unwrap();
        for bad in [
            "tcp:0.0.0.0:80",
            "tcp:0.0.0.0:80=other/10.0.0.5:80",
            "tcp:0.0.0.0:80=a|b/10.0.0.5:80",
            "tcp:0.0.0.0:80=x=other/10.0.0.5:80",
            "tcp:0.0.0.0:0=10.0.0.5:80",
            "tcp:0.0.0.0:80=10.0.0.5:0",
            "",
        ] {
            assert!(asked(&id, bad).is_err(), "{bad}");
        }
        assert!(asked(&id, &format!("tcp:0.0.0.0:80=10.0.0.5:80{}", " ".repeat(ASK_LEN_MAX))).is_err());
    }

    #[test]
    fn bad_rules_are_told_by_their_part() {
        for (text, part) in [
            ("cpe", "no '='"),
            ("cpe=8000", "no PROTO:"),
            ("c e=tcp:*", "'c e'"),
            ("*=sctp:*", "'sctp'"),
            ("*=tcp:x", "'x'"),
        ] {
            let error = text.parse::<AskRule>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

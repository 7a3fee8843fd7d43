//! `--ask-publish`, `--ask-name`: what the relay is asked for, and what became of it.

use std::collections::HashSet;

use isthmus_proto::ask::Ask;
use isthmus_proto::hello::{Outcome, Outcomes, Report};
use isthmus_proto::limits::ASKS_MAX;

use crate::config::{Config, ConfigError};
use crate::mediator::Mediator;

/// Most bytes of all asks together: with all else that a mediator reports they have to fit one frame.
pub(crate) const ASKS_LEN_MAX: usize = 1600;

/// Longest text of the relay that is logged, in characters.
const TEXT_MAX: usize = 300;

/// What no ask can tell alone.
///
/// # Errors
/// There are too many, or two of them are for the same.
pub(crate) fn check(asks: &[Ask]) -> Result<(), ConfigError> {
    if asks.len() > ASKS_MAX {
        return Err(ConfigError::TooManyAsks(asks.len()));
    }
    let len = asks.iter().map(|ask| ask.to_string().len()).sum();
    if len > ASKS_LEN_MAX {
        return Err(ConfigError::AsksTooLong(len));
    }
    let mut seen = HashSet::new();
    for ask in asks {
        // To where it leads makes no difference.
        let text = ask.to_string();
        let front = text.split_once('=').map_or(&*text, |(front, _)| front);
        if !seen.insert(front.to_owned()) {
            return Err(ConfigError::AskedTwice(front.to_owned()));
        }
    }
    Ok(())
}

/// Puts into a report what the settings offer and ask for.
pub(crate) fn fill(report: &mut Report, config: &Config) {
    report.offers.clone_from(&config.offers);
    report.asks = config.asks.iter().map(ToString::to_string).collect();
}

impl Mediator {
    /// A session begins: each outcome is told in the log anew. An older relay will tell none.
    pub(crate) fn expect_outcomes(&mut self, asks_max: usize) {
        self.outcomes.clear();
        let asks = self.config.asks.len();
        if asks > asks_max {
            tracing::warn!(
                asks,
                asks_max,
                "the relay does not give so much to those who ask; if it gives nothing, it is an older one: upgrade it"
            );
        }
    }

    /// The relay told what became of what was asked for: what is new of it is logged.
    pub(crate) fn on_outcomes(&mut self, json: &[u8]) {
        let told = match serde_json::from_slice::<Outcomes>(json) {
            Ok(Outcomes { mut outcomes }) => {
                outcomes.truncate(ASKS_MAX);
                outcomes
            }
            Err(error) => return tracing::warn!(%error, "unintelligible outcomes of what is asked for"),
        };
        for outcome in told.iter().filter(|outcome| !self.outcomes.contains(outcome)) {
            self.log(outcome);
        }
        self.outcomes = told;
    }

    fn log(&self, outcome: &Outcome) {
        let shown = |text: &str| text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect::<String>();
        let ask = shown(&outcome.ask);
        match (&outcome.granted, &outcome.refused) {
            (Some(granted), _) => {
                tracing::info!(ask, granted = shown(granted), "the relay gives what is asked for");
                if let Ok(Ask::Port(port)) = outcome.ask.parse::<Ask>()
                    && !self.permits(port.target)
                {
                    tracing::warn!(ask, "its visitors are refused: no --allow rule covers {}; add one", port.target);
                }
            }
            (None, refused) => {
                let reason = shown(refused.as_deref().unwrap_or("unknown"));
                tracing::warn!(ask, reason, "the relay refuses what is asked for: {}", shown(&outcome.text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(texts: &[String]) -> Vec<Ask> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_same_port_is_asked_for_once_wherever_it_leads() {
        let two = |a: &str, b: &str| check(&asks(&[a.into(), b.into()])).is_ok();
        assert!(!two("tcp:80=10.0.0.5:80", "tcp:80=10.0.0.6:80"));
        assert!(two("tcp:80=10.0.0.5:80", "udp:80=10.0.0.5:80"));
        assert!(!two("name:a.b", "name:a.b"));
    }

    #[test]
    fn number_of_asks_is_bounded() {
        let many =
            |count: usize| check(&asks(&(1..=count).map(|n| format!("tcp:{n}=10.0.0.5:80")).collect::<Vec<_>>()));
        assert!(many(ASKS_MAX).is_ok());
        assert!(matches!(many(ASKS_MAX + 1), Err(ConfigError::TooManyAsks(_))));
        // A hundred bytes each, and the last one more.
        let name = |n: usize, more: usize| format!("name:{n:02}.{}.{}", "a".repeat(45), "b".repeat(46 + more));
        let long = |more| check(&asks(&(0..ASKS_MAX).map(|n| name(n, more * (n / 15))).collect::<Vec<_>>()));
        assert!(long(0).is_ok());
        assert!(matches!(long(1), Err(ConfigError::AsksTooLong(1601))));
    }
}

//! What is known of the relay: the last look, and what two looks together tell.
//!
//! It has no clock of its own and no screen: looks come with their times.

use std::collections::BTreeMap;
use std::time::Duration;

use super::answers::{Answers, Figures, Knows, Page, Tunnel};
use super::asker::{ROWS_MAX, Want};
use super::history::History;
use crate::trust::Glob;

/// One look at the relay.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// When, since `top` started.
    pub(super) at: Duration,
    /// What it was asked for.
    pub(super) want: Want,
    /// Its page is the first one of the list.
    pub(super) first_page: bool,
    /// What it answered.
    pub(super) answers: Answers,
    /// The processor time of each shard's thread so far, where the system tells.
    pub(super) busy: Vec<Duration>,
    /// What it knows beyond the usual.
    pub(super) knows: Knows,
}

/// What comes from the relay.
#[derive(Clone, Debug)]
pub(super) enum News {
    /// A look.
    Look(Box<Look>),
    /// It could not be looked at.
    Lost(String),
    /// A command's end.
    Done(Result<String, String>),
}

/// How it stands with the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// Nothing was heard yet.
    Asking,
    /// The last look succeeded.
    Up,
    /// It did not, for this reason.
    Lost(String),
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) bytes_in: f64,
    pub(super) bytes_out: f64,
    pub(super) datagrams_in: f64,
    pub(super) datagrams_out: f64,
}

/// One tunnel of the list.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) tunnel: Tunnel,
    /// Unknown until it was seen twice.
    pub(super) rates: Option<Rates>,
    /// When it was last seen.
    at: Duration,
    /// In which round through the pages.
    round: u64,
}

/// A shard, or all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    pub(super) figures: Figures,
    pub(super) rates: Rates,
    /// Tunnels that attached, per second.
    pub(super) attached: f64,
    /// Turns of the loop per second.
    pub(super) loops: f64,
    /// What was dropped per second.
    pub(super) dropped: f64,
    /// Part of a core's time that its thread took, where the system tells.
    pub(super) busy: Option<f64>,
}

impl Load {
    pub(super) fn figure(&self, name: &str) -> u64 {
        self.figures.get(name).copied().unwrap_or(0)
    }
}

/// One reason for which things were dropped or refused.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Loss {
    /// In a few words.
    pub(super) reason: String,
    /// The relay's counter.
    pub(super) counter: String,
    /// Since the relay started.
    pub(super) total: u64,
    /// Now.
    pub(super) per_second: f64,
    /// Datagrams; else somebody was refused.
    pub(super) dropped: bool,
}

/// All that is known.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) connection: Connection,
    /// The last look.
    pub(super) look: Look,
    /// All shards together.
    pub(super) total: Load,
    /// Each shard.
    pub(super) shards: Vec<Load>,
    /// What was dropped or refused, most often now first, and then most often since the start.
    pub(super) losses: Vec<Loss>,
    /// The tunnels, by their mediators' names: each page replaces its part of them.
    pub(super) rows: BTreeMap<String, Row>,
    /// Rounds through the pages that were begun.
    round: u64,
    /// A round was ended: no tunnel is missing.
    pub(super) complete: bool,
    /// Why the last look had no page.
    pub(super) page_error: Option<String>,
    pub(super) history: History,
    /// What the last command came to.
    pub(super) notice: Option<Result<String, String>>,
    /// Two looks of the same relay were taken.
    pub(super) has_rates: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            connection: Connection::Asking,
            look: Look::default(),
            total: Load::default(),
            shards: Vec::new(),
            losses: Vec::new(),
            rows: BTreeMap::new(),
            round: 0,
            complete: false,
            page_error: None,
            history: History::default(),
            notice: None,
            has_rates: false,
        }
    }
}

impl Model {
    /// Takes what came.
    pub(super) fn take(&mut self, news: News) {
        match news {
            News::Look(look) => self.take_look(*look),
            News::Lost(why) => self.connection = Connection::Lost(why),
            News::Done(outcome) => self.notice = Some(outcome),
        }
    }

    fn take_look(&mut self, look: Look) {
        let before = std::mem::replace(&mut self.look, look);
        let (old, new) = (&before.answers.info, &self.look.answers.info);
        let same = old.pid == new.pid && old.uptime_s <= new.uptime_s;
        let elapsed = self.look.at.saturating_sub(before.at).as_secs_f64();
        self.has_rates = same && elapsed > 0.0;
        if !same {
            // Another relay, or the same one anew: its counters begin at zero.
            self.rows.clear();
            self.complete = false;
        }
        let per_second = |old: Option<&u64>, new: &u64| match old {
            Some(old) if self.has_rates => new.saturating_sub(*old) as f64 / elapsed,
            _ => 0.0,
        };
        let rate = |old: &Figures, new: &Figures, name: &str| {
            new.get(name).map_or(0.0, |value| per_second(old.get(name), value))
        };
        let load = |old: &Figures, new: &Figures| Load {
            rates: Rates {
                bytes_in: rate(old, new, "bytes_from_mediators"),
                bytes_out: rate(old, new, "bytes_to_mediators"),
                datagrams_in: rate(old, new, "datagrams_from_mediators"),
                datagrams_out: rate(old, new, "datagrams_to_mediators"),
            },
            attached: rate(old, new, "tunnels_total"),
            loops: rate(old, new, "loops"),
            dropped: new.keys().filter(|name| is_drop(name)).map(|name| rate(old, new, name)).sum(),
            figures: new.clone(),
            busy: None,
        };
        let total = load(&before.answers.total, &self.look.answers.total);
        let none = Figures::new();
        let shards = self.look.answers.shards.iter().enumerate().map(|(n, new)| {
            let old = before.answers.shards.get(n).unwrap_or(&none);
            let spent = || Some(self.look.busy.get(n)?.saturating_sub(*before.busy.get(n)?).as_secs_f64() / elapsed);
            Load { busy: if self.has_rates { spent() } else { None }, ..load(old, new) }
        });
        let shards = shards.collect();
        let losses =
            losses(&self.look.answers.total, |name| rate(&before.answers.total, &self.look.answers.total, name));
        (self.total, self.shards, self.losses) = (total, shards, losses);
        self.connection = Connection::Up;
        self.take_page(&before.want);
        if self.has_rates {
            let tunnels = self.total.figure("tunnels_live");
            self.history.push(&self.total.rates, tunnels, self.total.dropped);
        }
    }

    fn take_page(&mut self, before: &Want) {
        let Page { tunnels, more } = match self.look.answers.page.take() {
            None => return,
            Some(Ok(page)) => page,
            // The rows of the looks before are better than none.
            Some(Err(error)) => {
                self.page_error = Some(error);
                return;
            }
        };
        self.page_error = None;
        match &self.look.want {
            Want::Tunnel(id) if tunnels.is_empty() => {
                self.rows.remove(id);
            }
            Want::Tunnel(_) | Want::Figures => {}
            Want::List(_) => {
                self.round += u64::from(self.look.first_page);
                // Another pattern is another list.
                self.complete &= self.look.want == *before;
            }
        }
        for tunnel in tunnels {
            self.take_tunnel(tunnel);
        }
        if let (Want::List(glob), false) = (&self.look.want, more) {
            // At the end of a round, what should have been met and was not is gone. Others wait for their pattern.
            let glob = glob.parse().unwrap_or_else(|_| Glob::any());
            let meant = |id: &str| id.parse().is_ok_and(|id| glob.matches(&id));
            self.rows.retain(|id, row| row.round == self.round || !meant(id));
            self.complete = true;
        }
    }

    fn take_tunnel(&mut self, tunnel: Tunnel) {
        let at = self.look.at;
        let old = self.rows.remove(&tunnel.id).filter(|old| old.tunnel.session == tunnel.session);
        let rates = old.and_then(|Row { tunnel: old, at: before, .. }| {
            let elapsed = at.saturating_sub(before).as_secs_f64();
            let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / elapsed;
            (elapsed > 0.0).then(|| Rates {
                bytes_in: rate(old.bytes_in, tunnel.bytes_in),
                bytes_out: rate(old.bytes_out, tunnel.bytes_out),
                datagrams_in: rate(old.datagrams_in, tunnel.datagrams_in),
                datagrams_out: rate(old.datagrams_out, tunnel.datagrams_out),
            })
        });
        if self.rows.len() < ROWS_MAX {
            self.rows.insert(tunnel.id.clone(), Row { tunnel, rates, at, round: self.round });
        }
    }

    /// Mean part of a core that the shards take, and the busiest one with its own, where the system tells.
    pub(super) fn busy(&self) -> Option<(f64, usize, f64)> {
        let each: Option<Vec<f64>> = self.shards.iter().map(|shard| shard.busy).collect();
        let each = each?;
        let (at, most) = each.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
        Some((each.iter().sum::<f64>() / each.len() as f64, at, most))
    }
}

fn is_drop(counter: &str) -> bool {
    counter.contains("_dropped_") || counter == "socks_datagrams_refused"
}

/// Counters of what was dropped or refused that have ever counted something.
fn losses(total: &Figures, per_second: impl Fn(&str) -> f64) -> Vec<Loss> {
    let mut losses: Vec<Loss> = Vec::new();
    for (name, &count) in total {
        let refused =
            name.contains("refused") || name.contains("_failed") || name == "names_unknown" || name == "names_bad";
        if count == 0 || !(is_drop(name) || refused) {
            continue;
        }
        let reason = name.strip_prefix("datagrams_dropped_").unwrap_or(name).replace('_', " ");
        let per_second = per_second(name);
        losses.push(Loss { reason, counter: name.clone(), total: count, per_second, dropped: is_drop(name) });
    }
    losses.sort_by(|a, b| b.per_second.total_cmp(&a.per_second).then(b.total.cmp(&a.total)));
    losses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::testing::{look, tunnel};

    #[test]
    fn rates_are_what_two_looks_differ_by() {
        let mut model = Model::default();
        model.take(News::Look(Box::new(look(
            1,
            &[("bytes_to_mediators", 100), ("tunnels_total", 5)],
            vec![tunnel("a", 0, 50)],
        ))));
        assert!(!model.has_rates && model.rows["a"].rates.is_none());
        model.take(News::Look(Box::new(look(
            3,
            &[("bytes_to_mediators", 300), ("tunnels_total", 25)],
            vec![tunnel("a", 0, 90)],
        ))));
        assert_eq!((model.total.rates.bytes_out, model.total.attached), (100.0, 10.0));
        assert_eq!(model.rows["a"].rates.unwrap().bytes_out, 20.0);
    }

    #[test]
    fn restarted_relay_begins_anew_and_gives_no_rates_at_first() {
        let mut model = Model::default();
        model.take(News::Look(Box::new(look(5, &[("tunnels_total", 500)], vec![tunnel("a", 0, 900)]))));
        let mut anew = look(6, &[("tunnels_total", 3)], vec![tunnel("a", 0, 10)]);
        anew.answers.info.pid += 1;
        model.take(News::Look(Box::new(anew)));
        assert!(!model.has_rates && model.rows["a"].rates.is_none() && model.total.attached == 0.0);
    }

    #[test]
    fn newer_session_of_a_mediator_is_not_measured_by_the_older_one() {
        let mut model = Model::default();
        model.take(News::Look(Box::new(look(1, &[], vec![tunnel("a", 0, 900)]))));
        let mut newer = tunnel("a", 0, 901);
        newer.session += 1;
        model.take(News::Look(Box::new(look(2, &[], vec![newer]))));
        assert!(model.has_rates && model.rows["a"].rates.is_none());
    }

    #[test]
    fn losses_stand_in_the_order_of_what_happens_now() {
        let mut model = Model::default();
        let counters =
            |forged, away| [("datagrams_dropped_forged", forged), ("visitors_refused_away", away), ("names_bad", 0)];
        model.take(News::Look(Box::new(look(1, &counters(1000, 1), vec![]))));
        model.take(News::Look(Box::new(look(2, &counters(1000, 5), vec![]))));
        let reasons: Vec<_> =
            model.losses.iter().map(|loss| (loss.reason.as_str(), loss.per_second, loss.dropped)).collect();
        assert_eq!(reasons, [("visitors refused away", 4.0, false), ("forged", 0.0, true)]);
    }

    #[test]
    fn lost_relay_leaves_the_last_look_and_says_why() {
        let mut model = Model::default();
        model.take(News::Look(Box::new(look(1, &[], vec![tunnel("a", 0, 0)]))));
        model.take(News::Lost("gone".to_owned()));
        assert_eq!((model.connection.clone(), model.rows.len()), (Connection::Lost("gone".to_owned()), 1));
        let mut busy = look(2, &[], vec![]);
        busy.answers.page = Some(Err("busy".to_owned()));
        model.take(News::Look(Box::new(busy)));
        assert_eq!(
            (model.connection.clone(), model.rows.len(), model.page_error.as_deref()),
            (Connection::Up, 1, Some("busy"))
        );
    }

    #[test]
    fn pages_add_up_to_the_whole_list_and_a_round_ends_what_is_gone() {
        let mut model = Model::default();
        let mut page = |second, names: &[&str], first, more| {
            let mut look = look(second, &[], names.iter().map(|id| tunnel(id, second * 10, 0)).collect());
            look.first_page = first;
            look.answers.page.as_mut().unwrap().as_mut().unwrap().more = more;
            model.take(News::Look(Box::new(look)));
            (model.rows.keys().cloned().collect::<Vec<_>>().join(""), model.complete)
        };
        assert_eq!(page(1, &["a", "b"], true, true), ("ab".to_owned(), false));
        assert_eq!(page(2, &["c"], false, false), ("abc".to_owned(), true));
        assert_eq!(page(3, &["a", "d"], true, true), ("abcd".to_owned(), true));
        assert_eq!(page(5, &["e"], false, false), ("ade".to_owned(), true));
        assert_eq!(model.rows["a"].rates.unwrap().bytes_in, 10.0);
        assert!(model.rows["e"].rates.is_none());
    }

    #[test]
    fn opened_tunnel_that_is_gone_leaves_the_list() {
        let mut model = Model::default();
        model.take(News::Look(Box::new(look(1, &[], vec![tunnel("a", 0, 0), tunnel("b", 0, 0)]))));
        let mut opened = look(2, &[], vec![]);
        opened.want = Want::Tunnel("a".to_owned());
        model.take(News::Look(Box::new(opened)));
        assert_eq!(model.rows.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn rows_have_a_bound() {
        let mut model = Model::default();
        let tunnels = (0..=ROWS_MAX).map(|n| tunnel(&n.to_string(), 0, 0)).collect();
        model.take(News::Look(Box::new(look(1, &[], tunnels))));
        assert_eq!(model.rows.len(), ROWS_MAX);
    }
}

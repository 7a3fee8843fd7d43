//! What the relay answers, as `top` reads it.
//!
//! Fields that an older or a newer relay does not send count as nothing; unknown ones are passed over.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::admin::ctl::answers;

/// Begins every answer that is an error.
const ERROR: &str = "error: ";

/// Counters by their names.
pub(super) type Figures = BTreeMap<String, u64>;

/// What one look at the relay gives.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers {
    /// The relay itself.
    pub(super) info: Info,
    /// Counters in total.
    pub(super) total: Figures,
    /// And of each shard.
    pub(super) shards: Vec<Figures>,
    /// A page of tunnels, if one was asked for, or why there is none.
    pub(super) page: Option<Result<Page, String>>,
    /// What is asked of one tunnel: an answer each, under its heading.
    pub(super) more: Vec<(&'static str, Result<Value, String>)>,
}

/// The relay itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Info {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) uptime_s: u64,
    pub(super) listen: String,
    pub(super) plaintext: bool,
}

/// A page of tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Page {
    #[serde(default)]
    pub(super) tunnels: Vec<Tunnel>,
    /// The page does not hold all that was asked for.
    #[serde(default)]
    pub(super) more: bool,
}

/// One tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Tunnel {
    pub(super) id: String,
    pub(super) session: u64,
    pub(super) shard: u64,
    pub(super) observed: String,
    pub(super) age_s: u64,
    pub(super) idle_s: u64,
    pub(super) ports: u64,
    pub(super) terminals: u64,
    pub(super) udp_channels: u64,
    pub(super) udp_channels_live: u64,
    pub(super) udp_period_s: u64,
    pub(super) rtt_us: Option<u64>,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) datagrams_in: u64,
    pub(super) datagrams_out: u64,
    pub(super) oversize: u64,
    pub(super) report: Report,
}

/// What a mediator wrote of itself: shown only after [`crate::admin::phrase`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Report {
    pub(super) interfaces: Vec<Interface>,
    pub(super) gateways: Vec<String>,
    pub(super) os: String,
    pub(super) version: String,
    pub(super) hostname: String,
    pub(super) policy: Vec<String>,
    pub(super) service: String,
    pub(super) offers: Vec<Offer>,
    pub(super) asks: Vec<String>,
}

/// One interface of a mediator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) mtu: u64,
    pub(super) addresses: Vec<String>,
}

/// What it offers by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Offer {
    pub(super) name: String,
    pub(super) target: String,
}

/// Reads the answers to `show info` and `show stat`, to `show tunnels` if that was asked, and to whatever was asked beyond,
/// under these headings.
///
/// # Errors
/// What the relay says in place of the first two, or that it cannot be understood.
pub(super) fn read(text: &str, page: bool, headings: &[&'static str]) -> Result<Answers, String> {
    let mut each = answers(text);
    let info = value(each.next())?;
    let stat = value(each.next())?;
    let page = page.then(|| {
        let page = value(each.next())?;
        serde_json::from_value(page).map_err(|error| format!("cannot understand the relay's tunnels: {error}"))
    });
    let more = headings.iter().map(|&heading| (heading, value(each.next()))).collect();
    let info = serde_json::from_value(info).map_err(|error| format!("cannot understand 'show info': {error}"))?;
    let shards = stat["shards"].as_array().map(|shards| shards.iter().map(figures).collect()).unwrap_or_default();
    Ok(Answers { info, total: figures(&stat["total"]), shards, page, more })
}

/// Whether an answer is an error, and what it says.
pub(super) fn done(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.strip_prefix(ERROR) {
        Some(error) => Err(error.to_owned()),
        None => Ok(text.to_owned()),
    }
}

fn value(answer: Option<&str>) -> Result<Value, String> {
    let text = done(answer.ok_or("the relay's answer is shorter than what was asked")?)?;
    serde_json::from_str(&text).map_err(|error| format!("the relay's answer is no JSON: {error}"))
}

fn figures(value: &Value) -> Figures {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect()
}

/// What the relay knows beyond the commands that every one has, as its `help` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Knows {
    /// `show tunnel ID`.
    pub(super) tunnel: bool,
    /// `drain`, of all mediators.
    pub(super) drain: bool,
}

impl Knows {
    pub(super) fn read(help: &str) -> Self {
        let any = |begin: &str| help.lines().any(|line| line.starts_with(begin));
        Self { tunnel: any("show tunnel "), drain: any("drain ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = r#"{"version":"0.1.0","pid":7,"uptime_s":9,"listen":"[::]:1","plaintext":false,"new":[]}"#;
    const STAT: &str = r#"{"total":{"loops":3,"links_closed":{}},"shards":[{"loops":1},{"loops":2}]}"#;

    #[test]
    fn fields_that_are_new_or_absent_do_no_harm() {
        let page = r#"{"tunnels":[{"id":"a","rtt_us":null,"report":{"os":"linux","later":1}}],"more":true}"#;
        let answers = read(&format!("{INFO}\n\n{STAT}\n\n{page}\n\n"), true, &[]).unwrap();
        assert_eq!((answers.info.version.as_str(), answers.info.pid), ("0.1.0", 7));
        assert_eq!((answers.total["loops"], answers.shards[1]["loops"]), (3, 2));
        let page = answers.page.unwrap().unwrap();
        assert_eq!((page.more, page.tunnels[0].id.as_str(), page.tunnels[0].report.os.as_str()), (true, "a", "linux"));
    }

    #[test]
    fn busy_shard_costs_the_list_and_not_the_figures() {
        let answers =
            read(&format!("{INFO}\n\n{STAT}\n\nerror: the shard is busy; try again\n\n"), true, &["x"]).unwrap();
        assert_eq!(answers.page.unwrap(), Err("the shard is busy; try again".to_owned()));
        assert!(answers.more[0].1.is_err());
    }

    #[test]
    fn what_is_no_relays_answer_is_an_error() {
        assert!(read("", true, &[]).unwrap_err().contains("shorter"));
        assert!(read("hello\n\n", true, &[]).unwrap_err().contains("no JSON"));
        assert_eq!(
            read("error: there are 32 connections already\n\n", true, &[]).unwrap_err(),
            "there are 32 connections already"
        );
    }

    #[test]
    fn help_tells_what_the_relay_knows() {
        assert_eq!(Knows::read("show tunnels [json]  x\nkill tunnel ID  y\n"), Knows::default());
        assert!(Knows::read("show tunnel ID [json]  x\ndrain [over=TIME]  y\n").drain);
    }
}

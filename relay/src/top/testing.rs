//! Looks as a relay would give them.

use std::time::Duration;

use super::answers::{Answers, Figures, Info, Page, Tunnel};
use super::asker::Want;
use super::model::Look;

/// A look at so many seconds, with these counters in total.
pub(super) fn look(second: u64, counters: &[(&str, u64)], tunnels: Vec<Tunnel>) -> Look {
    let total: Figures = counters.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    let info =
        Info { version: "0.1.0".into(), pid: 7, uptime_s: 100 + second, listen: "[::]:4470".into(), plaintext: false };
    let page = Some(Ok(Page { tunnels, more: false }));
    let answers = Answers { info, shards: vec![total.clone()], total, page, more: Vec::new() };
    Look {
        at: Duration::from_secs(second),
        want: Want::List("*".to_owned()),
        first_page: true,
        answers,
        ..Look::default()
    }
}

/// A tunnel with so many payload bytes.
pub(super) fn tunnel(id: &str, bytes_in: u64, bytes_out: u64) -> Tunnel {
    Tunnel { id: id.to_owned(), session: 1, bytes_in, bytes_out, ..Tunnel::default() }
}

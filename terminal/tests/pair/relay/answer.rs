//! What it knows when it is asked.

use isthmus_proto::MediatorId;
use isthmus_proto::hello::{MediatorInfo, MediatorSummary, Query, QueryAnswer, Report};

use super::SESSION;

fn summary(n: u32) -> MediatorSummary {
    let id: MediatorId = format!("cpe-{n}").parse().unwrap();
    MediatorSummary { id, observed: "192.0.2.1:99".parse().unwrap(), age_s: 5, service: String::new() }
}

pub(super) fn answer(query: &Query) -> QueryAnswer {
    match query {
        Query::Info => QueryAnswer::Info(Box::new(MediatorInfo {
            summary: summary(1),
            report: Report::default(),
            session: SESSION,
            ports: 3,
            udp_channels_live: 1,
            rtt_us: None,
            bytes_to_mediator: 0,
            bytes_from_mediator: 0,
        })),
        Query::List { after } => {
            let all: Vec<_> = (0..5).map(summary).collect();
            let page: Vec<_> = all.iter().filter(|one| Some(&one.id) > after.as_ref()).take(2).cloned().collect();
            let more = page.last().map(|last| &last.id) < all.last().map(|last| &last.id);
            QueryAnswer::List { mediators: page, more }
        }
    }
}

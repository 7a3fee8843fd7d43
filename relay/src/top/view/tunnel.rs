//! One tunnel: its figures, what its mediator reported, and what the relay tells beyond that.

use ratatui::style::Stylize;
use ratatui::text::{Line, Span};
use serde_json::Value;

use super::{ALARM, WARN};
use crate::admin::{hidden, phrase};
use crate::top::answers::Report;
use crate::top::format::{age, bits, bytes, count, cut, micros, number, short};
use crate::top::model::{Model, Row};

/// Most entries shown of one list.
const SHOWN_MAX: usize = 500;

/// All lines; the place may be too small for them.
pub(super) fn lines(model: &Model, id: &str, width: usize) -> Vec<Line<'static>> {
    let Some(row) = model.rows.get(id) else {
        return vec![
            Line::from(format!("tunnel {id}")).bold(),
            Line::styled("not connected; it is looked for with each look", ALARM),
        ];
    };
    let mut lines = figures(row);
    lines.extend(report(&row.tunnel.report));
    for (_, answer) in &model.look.answers.more {
        match answer {
            Ok(value) => lines.extend(beyond(value)),
            Err(error) => lines.push(Line::styled(phrase(error), WARN)),
        }
    }
    for line in &mut lines {
        if let [_, text] = line.spans.as_mut_slice() {
            text.content = cut(&text.content, width.saturating_sub(LABEL)).into();
        }
    }
    lines
}

const LABEL: usize = 11;

fn line(label: &str, text: impl Into<String>) -> Line<'static> {
    Line::from(vec![format!("{label:LABEL$}").dim(), Span::from(text.into())])
}

fn figures(row: &Row) -> Vec<Line<'static>> {
    let tunnel = &row.tunnel;
    let way = |rate: Option<(f64, f64)>, total: u64, datagrams: u64| {
        let (now, each) = match rate {
            Some((bytes, datagrams)) => (bits(bytes), format!("{} dgram/s", short(datagrams))),
            None => ("-".to_owned(), "-".to_owned()),
        };
        format!("{now:>13} {each:>16}   {} and {} datagrams in all", bytes(total), count(datagrams))
    };
    let rtt = tunnel.rtt_us.map_or_else(|| "not measured".to_owned(), micros);
    let udp = if tunnel.udp_channels == 0 {
        "none: datagrams go over TCP".to_owned()
    } else {
        let period = age(tunnel.udp_period_s);
        format!("{} of {} work, a maintain packet each {period}", tunnel.udp_channels_live, tunnel.udp_channels)
    };
    vec![
        Line::from(format!("tunnel {}", tunnel.id)).bold(),
        line("from", format!("{}  session {}  shard {}", tunnel.observed, tunnel.session, tunnel.shard)),
        line("since", format!("{}  idle {}  round trip {rtt}", age(tunnel.age_s), age(tunnel.idle_s))),
        line(
            "in",
            way(row.rates.map(|rates| (rates.bytes_in, rates.datagrams_in)), tunnel.bytes_in, tunnel.datagrams_in),
        ),
        line(
            "out",
            way(row.rates.map(|rates| (rates.bytes_out, rates.datagrams_out)), tunnel.bytes_out, tunnel.datagrams_out),
        ),
        line("open", format!("{}, {}", number(tunnel.ports, "port"), number(tunnel.terminals, "terminal"))),
        line("UDP", format!("{udp}, {} datagrams too large", count(tunnel.oversize))),
    ]
}

fn report(report: &Report) -> Vec<Line<'static>> {
    let mut lines = vec![
        line("mediator", format!("version {}  on {}", phrase(&report.version), phrase(&report.os))),
        line("host name", phrase(&report.hostname)),
    ];
    if !report.service.is_empty() {
        lines.push(line("service", phrase(&report.service)));
    }
    for interface in report.interfaces.iter().take(SHOWN_MAX) {
        let addresses = interface.addresses.join(" ");
        lines.push(line(
            "interface",
            format!("{} mtu {}  {}", phrase(&interface.name), interface.mtu, phrase(&addresses)),
        ));
    }
    for (label, texts) in [("gateways", &report.gateways), ("allows", &report.policy), ("asks for", &report.asks)] {
        if !texts.is_empty() {
            let texts: Vec<String> = texts.iter().map(|text| phrase(text)).collect();
            lines.push(line(label, texts.join("  ")));
        }
    }
    for offer in report.offers.iter().take(SHOWN_MAX) {
        lines.push(line("offers", format!("{} at {}", phrase(&offer.name), phrase(&offer.target))));
    }
    lines
}

/// Lists of the relay's answer about this tunnel (its ports, its events), a line for each entry.
fn beyond(value: &Value) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    // The tunnel itself may stand in a field of its own.
    let inner = value.get("tunnel").and_then(Value::as_object).into_iter().flatten();
    for (name, list) in value.as_object().into_iter().flatten().chain(inner) {
        let Some(list) = list.as_array().filter(|list| !list.is_empty()) else { continue };
        lines.push(Line::from(format!("{} ({})", phrase(name), count(list.len() as u64))).bold());
        lines.extend(
            list.iter().take(SHOWN_MAX).map(|entry| Line::from(vec![Span::from("  "), entry_text(entry).into()])),
        );
    }
    lines
}

fn entry_text(entry: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| phrase(&value.to_string()), phrase);
    match entry {
        Value::Object(fields) => {
            let told = fields.iter().filter(|(_, value)| !value.is_null());
            told.map(|(name, value)| format!("{}={}", phrase(name), word(value))).collect::<Vec<_>>().join("  ")
        }
        // Our own line may be longer than a text of others may be.
        Value::String(line) => line.replace(hidden, "?"),
        other => word(other),
    }
}

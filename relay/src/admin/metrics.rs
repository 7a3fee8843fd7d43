//! `/metrics` and `show metrics`: everything that is counted, in Prometheus's text format (0.0.4).
//!
//! The figures are the shards' single-writer atomics, read as they are: a library of metrics would bring cells of its own,
//! which all shards would write. Names, units and labels follow Prometheus's conventions; **Invariant:** no name of a
//! mediator, a terminal or a host is in it, so that its length depends on the shards alone.

mod families;
mod process;
mod text;

pub(super) use process::open_descriptors;

use isthmus_proto::Code;

use super::counters::{Counter, Kind};
use super::histogram::Series;
use super::serve::Plane;
use crate::trust::first_expiry;
use families::{Family, families};
use text::{Text, Type};

/// What a scraper is told that it gets.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything, now.
pub(super) fn render(plane: &Plane) -> String {
    let mut text = Text::default();
    text.family("isthmus_build_info", Type::Gauge, "The relay's version; always 1");
    text.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    for family in families() {
        counters(&mut text, plane, &family);
    }
    links_closed(&mut text, plane);
    for &series in Series::ALL {
        let readings = plane.shards.iter().map(|shard| shard.counters.histograms.read(series));
        text.histogram(series, readings);
    }
    certificates(&mut text, plane);
    management(&mut text, plane);
    process::render(&mut text, plane.shards.len());
    text.finish()
}

fn type_of(counter: Counter) -> Type {
    match counter.kind() {
        Kind::Gauge => Type::Gauge,
        Kind::Total => Type::Counter,
    }
}

fn counters(text: &mut Text, plane: &Plane, family: &Family) {
    text.family(&family.name, type_of(family.members[0].1), family.help);
    for (shard, handle) in plane.shards.iter().enumerate() {
        let shard = shard.to_string();
        for &(value, counter) in &family.members {
            let figure = handle.counters.get(counter);
            match family.label {
                Some(label) => text.sample(&[("shard", &shard), (label, value)], figure),
                None => text.sample(&[("shard", &shard)], figure),
            }
        }
    }
}

fn links_closed(text: &mut Text, plane: &Plane) {
    text.family("isthmus_links_closed_total", Type::Counter, "Links of mediators and terminals that ended, by reason");
    for (shard, handle) in plane.shards.iter().enumerate() {
        for &code in Code::ALL {
            let reason = code.word().replace('-', "_");
            text.sample(&[("shard", &shard.to_string()), ("reason", &reason)], handle.counters.links_closed(code));
        }
    }
}

/// Read from the files, since what runs has forgotten when it ends: whoever renews a file reloads as well.
fn certificates(text: &mut Text, plane: &Plane) {
    let name = "isthmus_certificate_not_after_timestamp_seconds";
    text.family(name, Type::Gauge, "When the relay's certificate, or the first of its client authorities', expires");
    let config = plane.config.borrow();
    let server = (!config.plaintext).then(|| config.state.join("server.pem"));
    for (word, path) in [("server", server.as_deref()), ("client_ca", config.client_ca.as_deref())] {
        if let Some(expires) = path.and_then(first_expiry) {
            text.sample(&[("certificate", word)], expires);
        }
    }
}

/// The management plane's own.
fn management(text: &mut Text, plane: &Plane) {
    let own = plane.tally.fields().map(|(name, value)| (name, name.replace('_', " "), value));
    let http = plane.http_tally.fields().map(|(name, help, value)| (name, help.to_owned(), value));
    for (name, help, value) in own.chain(http) {
        let name = name.strip_suffix("_total").unwrap_or(name);
        let help = match help.strip_prefix("admin ") {
            Some(rest) => format!("Stats socket: {}", rest.strip_suffix(" total").unwrap_or(rest)),
            None => help,
        };
        text.family(&format!("isthmus_{name}_total"), Type::Counter, &help);
        text.sample(&[], value);
    }
}

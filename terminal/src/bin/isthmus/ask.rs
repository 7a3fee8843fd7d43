//! `info` and `list`.

use isthmus_terminal::{Config, Mediator, MediatorId, MediatorInfo, MediatorSummary, Relay};

use crate::output::print;

pub(crate) async fn info(config: &Config, mediator: MediatorId, json: bool) -> anyhow::Result<()> {
    let info = Mediator::attach(config, mediator).await?.info().await?;
    print(&if json { serde_json::to_string_pretty(&info)? + "\n" } else { describe(&info) })
}

pub(crate) async fn list(config: &Config, json: bool) -> anyhow::Result<()> {
    let all = Relay::connect(config).await?.list().await?;
    print(&if json { serde_json::to_string_pretty(&all)? + "\n" } else { table(&all) })
}

fn describe(info: &MediatorInfo) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text += &format!("{name:<18}{}\n", printable(&value));
        }
    };
    let (summary, report) = (&info.summary, &info.report);
    line("mediator", summary.id.to_string());
    line("public address", summary.observed.to_string());
    line("connected for", format!("{} s", summary.age_s));
    line("session", info.session.to_string());
    line("host name", report.hostname.clone());
    line("system", report.os.clone());
    line("version", report.version.clone());
    line("service", report.service.clone());
    for interface in &report.interfaces {
        let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
        line("interface", format!("{} mtu {} {}", interface.name, interface.mtu, addresses.join(" ")));
    }
    line("gateways", join(&report.gateways));
    line("allows", join(&report.policy));
    line("ports", info.ports.to_string());
    line("UDP channels", info.udp_channels_live.to_string());
    line("round trip", info.rtt_us.map(|us| format!("{}.{:03} ms", us / 1000, us % 1000)).unwrap_or_default());
    line("bytes to it", info.bytes_to_mediator.to_string());
    line("bytes from it", info.bytes_from_mediator.to_string());
    text
}

fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn table(all: &[MediatorSummary]) -> String {
    let width = all.iter().map(|one| one.id.as_str().len()).max().unwrap_or(0).max(8);
    let mut text = format!("{:<width$}  {:<21}  {:>10}  SERVICE\n", "MEDIATOR", "PUBLIC ADDRESS", "SECONDS");
    for one in all {
        let (id, observed) = (one.id.as_str(), one.observed.to_string());
        text += format!("{id:<width$}  {observed:<21}  {:>10}  {}", one.age_s, printable(&one.service)).trim_end();
        text.push('\n');
    }
    text
}

/// A mediator's words must not steer the terminal that shows them.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_and_no_control_characters() {
        let one = MediatorSummary {
            id: "a-rather-long-name".parse().unwrap(),
            observed: "192.0.2.1:1234".parse().unwrap(),
            age_s: 61,
            service: "ssh\u{1b}[2J".into(),
        };
        let text = table(&[one.clone(), one]);
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("a-rather-long-name  192.0.2.1:1234"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}

//! The published ports and exposed services of the tunnel that is open.
//!
//! The relay tells those of all mediators only, so they are asked for when a tunnel is opened, and then with each tenth
//! look; not again while it stays open if they are more than a page.

use serde_json::{Value, json};

use super::asker::PAGE;
use crate::expose::Expose;
use crate::publish::Publish;

/// Looks from one asking to the next.
const LOOKS: u32 = 10;

/// What asks for them.
pub(super) const COMMANDS: &str = ";show publishes json;show exposes json";

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Around {
    mediator: Option<String>,
    /// Looks until they are asked for again; `None` for never.
    rest: Option<u32>,
    ports: Vec<String>,
    services: Vec<String>,
}

impl Around {
    /// Whether to ask with the coming look, which is about this mediator.
    pub(super) fn is_due(&mut self, mediator: Option<&str>) -> bool {
        if self.mediator.as_deref() != mediator {
            *self = Self { mediator: mediator.map(str::to_owned), rest: Some(0), ..Self::default() };
        }
        let due = mediator.is_some() && self.rest == Some(0);
        self.rest = self.rest.map(|rest| if rest == 0 { LOOKS - 1 } else { rest - 1 });
        due
    }

    /// Keeps what is the mediator's of both answers.
    pub(super) fn take(&mut self, publishes: &Value, exposes: &Value) {
        let Some(mediator) = &self.mediator else { return };
        let rows = |value: &'_ Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
        let (publishes, exposes) = (rows(publishes, "publishes"), rows(exposes, "exposes"));
        if publishes.len() + exposes.len() > PAGE {
            self.rest = None;
        }
        let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let count = |row: &Value, name: &str| row[name].as_u64().unwrap_or(0);
        self.ports = publishes
            .iter()
            .filter(|row| {
                let publish: Option<Publish> = text(row, "publish").parse().ok();
                publish
                    .is_some_and(|it| std::iter::once(&it.mediator).chain(&it.others).any(|id| id.as_str() == mediator))
            })
            .map(|row| {
                let (visitors, flows) = (count(row, "visitors_live"), count(row, "flows_live"));
                format!("{}  visitors {visitors}  flows {flows}", text(row, "publish"))
            })
            .collect();
        self.services = exposes
            .iter()
            .filter(|row| {
                text(row, "expose").parse::<Expose>().is_ok_and(|expose| expose.server.mediator.as_str() == mediator)
            })
            .map(|row| {
                let connections = count(row, "connections_live");
                format!("{}  {}  connections {connections}", text(row, "expose"), text(row, "state"))
            })
            .collect();
    }

    /// As a part of the tunnel's screen.
    pub(super) fn value(&self) -> Value {
        json!({ "published ports": self.ports, "exposed services": self.services })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_mediators_own_is_kept() {
        let mut around = Around::default();
        assert!(around.is_due(Some("cpe")));
        let row = |publish: &str| json!({ "publish": publish, "visitors_live": 3, "flows_live": 0 });
        let publishes = json!({ "publishes": [
            row("tcp:0.0.0.0:80=cpe/10.0.0.5:80"),
            row("tcp:0.0.0.0:81=hub|cpe/10.0.0.5:80"),
            row("tcp:0.0.0.0:82=cpe-2/10.0.0.5:80"),
            row("no such thing"),
        ] });
        let expose = |of: &str| json!({ "expose": format!("tcp:{of}/10.0.0.2:8080=198.51.100.7:80"), "state": "open" });
        around.take(&publishes, &json!({ "exposes": [expose("cpe"), expose("hub")] }));
        assert_eq!(around.ports.len(), 2);
        assert_eq!(around.ports[0], "tcp:0.0.0.0:80=cpe/10.0.0.5:80  visitors 3  flows 0");
        assert_eq!(around.services, ["tcp:cpe/10.0.0.2:8080=198.51.100.7:80  open  connections 0"]);
    }

    #[test]
    fn they_are_asked_for_at_each_opening_and_seldom_after() {
        let mut around = Around::default();
        assert!(!around.is_due(None));
        let asked: Vec<u32> = (0..25).filter(|_| around.is_due(Some("a"))).collect();
        assert_eq!(asked, [0, 10, 20]);
        assert!(around.is_due(Some("b")));
        let row = json!({ "publish": "tcp:0.0.0.0:80=b/10.0.0.5:80" });
        around.take(&json!({ "publishes": vec![row; PAGE + 1] }), &Value::Null);
        assert_eq!((around.ports.len(), (0..100).any(|_| around.is_due(Some("b")))), (PAGE + 1, false));
        assert!(around.is_due(Some("a")));
    }
}

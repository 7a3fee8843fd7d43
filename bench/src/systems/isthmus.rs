//! Isthmus itself: a relay, a mediator behind the NAT, one published port of each protocol.

use std::path::Path;

use crate::systems::{Carries, Running, Site, System, text};
use crate::world::{Proto, Role, SOON};

pub(super) struct Isthmus {
    pub(super) encrypted: bool,
}

impl System for Isthmus {
    fn name(&self) -> &'static str {
        if self.encrypted { "isthmus" } else { "isthmus-plaintext" }
    }

    fn carries(&self) -> Carries {
        Carries { tcp: true, udp: true, encrypted: self.encrypted }
    }

    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let (relay, agent) = (site.tools.own("isthmus-relay")?, site.tools.own("isthmus-agent")?);
        let (service, published) = if self.encrypted { (4470, 7001) } else { (4471, 7002) };
        let (service, published) = (site.relay(service).to_string(), site.relay(published));
        let state = text(&site.world.folder().join(self.name()));
        let args = relay_args(self.encrypted, &state, &service, site, &published.to_string());
        let mut relay_process = site.world.start(Role::Relay, &relay, args)?;
        relay_process.wait_for("relay runs", SOON)?;
        site.world.wait_listening(Role::Relay, Proto::Tcp, published.port(), &mut relay_process)?;

        let ask = |words: &[&str]| -> anyhow::Result<String> {
            let words = words.iter().copied().chain(["--state", &state]);
            Ok(site.world.run(Role::Relay, &relay, words, SOON)?.trim().to_owned())
        };
        let pin = if self.encrypted { Some(ask(&["fingerprint"])?) } else { None };
        let token = site.world.write(&format!("{}.token", self.name()), ask(&["token", "--mediator", "m"])?)?;
        let args = agent_args(pin.as_deref(), &service, &token, site.congestion);
        let agent_process = site.world.start(Role::Private, &agent, args)?;
        agent_process.wait_for("tunnel up", SOON)?;
        Ok(Running::at(Some(published), Some(published)).with("relay", relay_process).with("agent", agent_process))
    }
}

fn relay_args(encrypted: bool, state: &str, service: &str, site: &Site<'_>, published: &str) -> Vec<String> {
    let mut args: Vec<String> =
        ["--state", state, "--listen", service, "--congestion", site.congestion].map(String::from).into();
    args.extend(["--shards".to_owned(), site.shards.to_string()]);
    for proto in ["tcp", "udp"] {
        args.extend(["--publish".to_owned(), format!("{proto}:{published}=m/{}", site.sink())]);
    }
    if !encrypted {
        args.push("--plaintext".to_owned());
    }
    args
}

fn agent_args(pin: Option<&str>, service: &str, token: &Path, congestion: &str) -> Vec<String> {
    let mut args: Vec<String> =
        ["--relay", service, "--congestion", congestion, "--udp-channels", "2"].map(String::from).into();
    args.extend(["--token-file".to_owned(), text(token)]);
    match pin {
        Some(pin) => args.extend(["--pin".to_owned(), pin.to_owned()]),
        None => args.push("--plaintext".to_owned()),
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_is_either_pinned_or_plaintext() {
        let pinned = agent_args(Some("abc"), "198.51.100.1:4470", Path::new("/t"), "bbr").join(" ");
        assert!(pinned.contains("--pin abc") && pinned.contains("--congestion bbr") && !pinned.contains("--plaintext"));
        let plain = agent_args(None, "198.51.100.1:4470", Path::new("/t"), "cubic").join(" ");
        assert!(plain.contains("--plaintext") && !plain.contains("--pin"));
    }
}

//! Isthmus itself: a relay, a mediator behind the NAT, one published port of each protocol.

use std::path::Path;

use crate::systems::{Carries, Running, Site, System, text};
use crate::world::{Proto, Role, SOON};

/// How it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isthmus {
    /// As it is meant to.
    Usual,
    /// Without TLS.
    Plaintext,
    /// Relay and mediator poll for a while before they sleep.
    Polling,
}

/// `--busy-poll` of those that poll.
const BUSY_POLL: &str = "50us";

impl System for Isthmus {
    fn name(&self) -> &'static str {
        match self {
            Self::Usual => "isthmus",
            Self::Plaintext => "isthmus-plaintext",
            Self::Polling => "isthmus-polling",
        }
    }

    fn carries(&self) -> Carries {
        Carries { tcp: true, udp: true, encrypted: *self != Self::Plaintext }
    }

    fn only_by_name(&self) -> bool {
        *self == Self::Polling
    }

    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let (relay, agent) = (site.tools.own("isthmus-relay")?, site.tools.own("isthmus-agent")?);
        let (service, published) = match self {
            Self::Usual => (4470, 7001),
            Self::Plaintext => (4471, 7002),
            Self::Polling => (4472, 7003),
        };
        let (service, published) = (site.relay(service).to_string(), site.relay(published));
        let state = text(&site.world.folder().join(self.name()));
        let args = relay_args(*self, &state, &service, site, &published.to_string());
        let mut relay_process = site.world.start(Role::Relay, &relay, args)?;
        relay_process.wait_for("relay runs", SOON)?;
        site.world.wait_listening(Role::Relay, Proto::Tcp, published.port(), &mut relay_process)?;

        let ask = |words: &[&str]| -> anyhow::Result<String> {
            let words = words.iter().copied().chain(["--state", &state]);
            Ok(site.world.run(Role::Relay, &relay, words, SOON)?.trim().to_owned())
        };
        let pin = if *self == Self::Plaintext { None } else { Some(ask(&["fingerprint"])?) };
        let token = site.world.write(&format!("{}.token", self.name()), ask(&["token", "--mediator", "m"])?)?;
        let args = agent_args(*self, pin.as_deref(), &service, &token, site.congestion);
        let agent_process = site.world.start(Role::Private, &agent, args)?;
        agent_process.wait_for("tunnel up", SOON)?;
        Ok(Running::at(Some(published), Some(published)).with("relay", relay_process).with("agent", agent_process))
    }
}

impl Isthmus {
    fn polling(self) -> impl Iterator<Item = String> {
        ["--busy-poll", BUSY_POLL].into_iter().filter(move |_| self == Self::Polling).map(String::from)
    }
}

fn relay_args(how: Isthmus, state: &str, service: &str, site: &Site<'_>, published: &str) -> Vec<String> {
    let mut args: Vec<String> =
        ["--state", state, "--listen", service, "--congestion", site.congestion].map(String::from).into();
    args.extend(["--shards".to_owned(), site.shards.to_string()]);
    for proto in ["tcp", "udp"] {
        args.extend(["--publish".to_owned(), format!("{proto}:{published}=m/{}", site.sink())]);
    }
    if how == Isthmus::Plaintext {
        args.push("--plaintext".to_owned());
    }
    args.extend(how.polling());
    args
}

fn agent_args(how: Isthmus, pin: Option<&str>, service: &str, token: &Path, congestion: &str) -> Vec<String> {
    let mut args: Vec<String> =
        ["--relay", service, "--congestion", congestion, "--udp-channels", "2"].map(String::from).into();
    args.extend(["--token-file".to_owned(), text(token)]);
    match pin {
        Some(pin) => args.extend(["--pin".to_owned(), pin.to_owned()]),
        None => args.push("--plaintext".to_owned()),
    }
    args.extend(how.polling());
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_is_either_pinned_or_plaintext() {
        let pinned = agent_args(Isthmus::Usual, Some("abc"), "198.51.100.1:4470", Path::new("/t"), "bbr").join(" ");
        assert!(pinned.contains("--pin abc") && pinned.contains("--congestion bbr") && !pinned.contains("--plaintext"));
        let plain = agent_args(Isthmus::Plaintext, None, "198.51.100.1:4470", Path::new("/t"), "cubic").join(" ");
        assert!(plain.contains("--plaintext") && !plain.contains("--pin"));
        let polling =
            agent_args(Isthmus::Polling, Some("abc"), "198.51.100.1:4472", Path::new("/t"), "cubic").join(" ");
        assert!(polling.ends_with("--busy-poll 50us") && !pinned.contains("poll"));
    }
}

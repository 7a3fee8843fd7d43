//! SIGHUP: command line, environment and file are read again as at a start, and applied all or not at all. The tunnel
//! stays up; only what the new allow-list does not allow any more is cut.

use isthmus_engine::{Engine, UdpRole};
use isthmus_proto::Code;

use crate::audit::Operation;
use crate::config::Config;
use crate::log;
use crate::mediator::{Mediator, TAG_ACCEPTED};

impl Mediator {
    /// Takes what this process's settings say now.
    ///
    /// # Errors
    /// They cannot be used, and nothing is changed; it is logged already.
    pub(crate) fn reload(&mut self, engine: &mut Engine) -> Result<(), String> {
        let taken = Config::reread().and_then(|config| self.take(engine, config));
        match &taken {
            Ok(()) => tracing::info!("settings reloaded"),
            Err(error) => {
                tracing::error!("nothing is changed: {error}");
                // What SIGHUP does in any case.
                self.audit.reopen();
            }
        }
        self.renew(engine);
        taken
    }

    fn take(&mut self, engine: &mut Engine, config: Config) -> Result<(), String> {
        if let Some(flag) = fixed(&self.config, &config) {
            return Err(format!("{flag} cannot be changed while the mediator runs; restart it, or change that back"));
        }
        // The only step that can fail, and so the first one.
        self.audit.set_target(config.audit.clone()).map_err(|error| format!("{error:#}"))?;
        log::set(config.log);
        self.policy.borrow_mut().set_rules(&config.allow);
        self.config = config;
        self.report_changes(engine);
        // Also where the machine's interfaces could not be read.
        self.enforce_policy(engine);
        Ok(())
    }

    /// What the policy does not allow any more is cut.
    pub(crate) fn enforce_policy(&mut self, engine: &mut Engine) {
        engine.forget_allowed();
        for party in engine.stream_parties() {
            if party.tag != TAG_ACCEPTED && !self.permits(party.peer) {
                self.audit.record(Operation::Cut, party.slot, Some(party.peer), None, Code::Denied);
                engine.cut_stream(self, party.stream, Code::Denied);
            }
        }
        for (key, role) in engine.udp_roles() {
            let UdpRole::Port { link, slot, peer, .. } = role else { continue };
            let local = engine.udp_addr(key);
            let exposed = local.is_some_and(|local| self.policy.borrow().forbids_bound(local.ip()));
            if exposed || peer.is_some_and(|peer| !self.permits(peer)) {
                self.audit.record(Operation::Cut, slot, peer, local, Code::Denied);
                if let Some(machine) = engine.link(link) {
                    machine.reset(slot, Code::Denied);
                    engine.touch(link);
                }
                engine.remove_udp(key);
            }
        }
        let policy = self.policy.clone();
        self.ports.cut_connects(engine, |to| !policy.borrow().permits(to));
        for (link, slot, local) in self.ports.cut_servers(engine, |local| policy.borrow().forbids_bound(local.ip())) {
            self.audit.record(Operation::Cut, slot, None, Some(local), Code::Denied);
            if let Some(machine) = engine.link(link) {
                machine.reset(slot, Code::Denied);
                engine.touch(link);
            }
        }
    }
}

/// A setting that differs, and that only a start can change.
fn fixed(now: &Config, new: &Config) -> Option<&'static str> {
    [
        ("--relay", now.relay != new.relay),
        ("--busy-poll", now.busy_poll != new.busy_poll),
        ("--log-format", now.log_format != new.log_format),
    ]
    .into_iter()
    .find_map(|(flag, differs)| differs.then_some(flag))
}

//! What differs between two configurations, and what of it a running relay can take over.

use std::fmt::Debug;

use super::Config;

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its flag, without the dashes.
    pub name: &'static str,
    /// From what to what; empty for lists, whose entries are told one by one.
    pub text: String,
    /// It takes effect only when the relay starts again.
    pub needs_restart: bool,
}

impl Config {
    /// What is different in `new`, in the order of the help.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        // Every field by name: whoever adds a setting has to decide here when it takes effect.
        let Self {
            source: _,
            told: _,
            state,
            listen,
            shards,
            publish,
            expose,
            names,
            socks,
            socks_open,
            name,
            proxy_from,
            publish_allow,
            keep_publishes,
            allow_publish,
            allow_name,
            ask_hold,
            stats_socket,
            stats_socket_operator,
            stats_socket_user,
            http,
            http_token_file,
            records,
            records_mib_max,
            records_files_max,
            plaintext,
            jwks,
            client_ca,
            keepalive_tcp,
            keepalive_udp,
            keepalive_udp_max,
            dead_after,
            handshake_timeout,
            half_open_max,
            udp_idle,
            udp_flows_max,
            exposed_flows_max,
            ports_max,
            log,
            log_format,
            congestion,
            busy_poll,
        } = self;
        let mut at_start = Differ { changes: &mut changes, needs_restart: true };
        at_start.one("state", state, &new.state);
        at_start.one("listen", listen, &new.listen);
        at_start.one("shards", shards, &new.shards);
        at_start.one("names", names, &new.names);
        at_start.one("socks", socks, &new.socks);
        at_start.one("socks-open", socks_open, &new.socks_open);
        at_start.one("stats-socket", stats_socket, &new.stats_socket);
        at_start.one("stats-socket-operator", stats_socket_operator, &new.stats_socket_operator);
        at_start.one("stats-socket-user", stats_socket_user, &new.stats_socket_user);
        at_start.one("http", http, &new.http);
        at_start.one("http-token-file", http_token_file, &new.http_token_file);
        at_start.one("records", records, &new.records);
        at_start.one("records-mib-max", records_mib_max, &new.records_mib_max);
        at_start.one("records-files-max", records_files_max, &new.records_files_max);
        at_start.one("plaintext", plaintext, &new.plaintext);
        at_start.one("log-format", log_format, &new.log_format);
        at_start.one("congestion", congestion, &new.congestion);
        at_start.one("busy-poll", busy_poll, &new.busy_poll);
        let mut live = Differ { changes: &mut changes, needs_restart: false };
        live.list("publish", publish, &new.publish);
        live.list("expose", expose, &new.expose);
        live.list("name", name, &new.name);
        live.one("proxy-from", proxy_from, &new.proxy_from);
        live.one("publish-allow", publish_allow, &new.publish_allow);
        live.one("keep-publishes", keep_publishes, &new.keep_publishes);
        live.list("allow-publish", allow_publish, &new.allow_publish);
        live.list("allow-name", allow_name, &new.allow_name);
        live.one("ask-hold", ask_hold, &new.ask_hold);
        live.one("jwks", jwks, &new.jwks);
        live.one("client-ca", client_ca, &new.client_ca);
        live.one("keepalive-tcp", keepalive_tcp, &new.keepalive_tcp);
        live.one("keepalive-udp", keepalive_udp, &new.keepalive_udp);
        live.one("keepalive-udp-max", keepalive_udp_max, &new.keepalive_udp_max);
        live.one("dead-after", dead_after, &new.dead_after);
        live.one("handshake-timeout", handshake_timeout, &new.handshake_timeout);
        live.one("half-open-max", half_open_max, &new.half_open_max);
        live.one("udp-idle", udp_idle, &new.udp_idle);
        live.one("udp-flows-max", udp_flows_max, &new.udp_flows_max);
        live.one("exposed-flows-max", exposed_flows_max, &new.exposed_flows_max);
        live.one("ports-max", ports_max, &new.ports_max);
        live.one("log", log, &new.log);
        changes
    }
}

struct Differ<'a> {
    changes: &'a mut Vec<Change>,
    needs_restart: bool,
}

impl Differ<'_> {
    fn one<T: PartialEq + Debug>(&mut self, name: &'static str, old: &T, new: &T) {
        if old != new {
            let text = format!("{old:?} -> {new:?}");
            self.changes.push(Change { name, text, needs_restart: self.needs_restart });
        }
    }

    fn list<T: PartialEq>(&mut self, name: &'static str, old: &[T], new: &[T]) {
        if old != new {
            self.changes.push(Change { name, text: String::new(), needs_restart: self.needs_restart });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Invocation, parse};

    fn config(line: &str) -> Config {
        match parse(std::iter::once("isthmus-relay").chain(line.split_whitespace())) {
            Ok(Invocation::Run(config)) => *config,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn change_is_named_with_its_effect() {
        let old = config("--state /d --shards 1");
        assert!(old.changes(&old.clone()).is_empty());
        let new = config("--state /d --shards 2 --udp-idle 5s --publish tcp:0.0.0.0:80=m/10.0.0.5:80");
        let changes: Vec<_> = old.changes(&new).into_iter().map(|c| (c.name, c.text, c.needs_restart)).collect();
        assert_eq!(
            changes,
            [
                ("shards", "1 -> 2".to_owned(), true),
                ("publish", String::new(), false),
                ("udp-idle", "60s -> 5s".to_owned(), false),
            ]
        );
    }
}

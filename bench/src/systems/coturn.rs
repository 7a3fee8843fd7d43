//! coturn: the visitor sends plain datagrams to a relayed address that a [`turn`](crate::systems::turn) client holds from
//! behind the NAT. That client answers by itself, so this is one process fewer than Isthmus has: no host behind it.

use crate::systems::{Carries, Running, Site, System, serve, text};
use crate::world::{Proto, Role, SOON};

pub(super) struct Coturn;

const PORT: u16 = 3478;

impl System for Coturn {
    fn name(&self) -> &'static str {
        "coturn"
    }

    fn carries(&self) -> Carries {
        Carries { tcp: false, udp: true, encrypted: false }
    }

    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let turnserver = site.tools.peer("turnserver")?;
        let folder = site.world.folder();
        let args = args(&text(&folder.join("turn.pid")), &text(&folder.join("turn.db")), site.shards);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let server = serve(site, &turnserver, &args, Proto::Udp, PORT)?;
        let service = site.relay(PORT).to_string();
        let visitor = Role::Public.address().to_string();
        let words = ["turn-echo", "--server", &service, "--visitor", &visitor];
        let client = site.world.start(Role::Private, &site.tools.bench, words)?;
        let ready = client.wait_for("ready ", SOON)?;
        let relayed = ready.trim_start_matches("ready ").parse()?;
        Ok(Running::at(None, Some(relayed)).with("relay", server).with("agent", client))
    }
}

fn args(pid_file: &str, database: &str, threads: u16) -> Vec<String> {
    let address = Role::Relay.address().to_string();
    let (port, threads) = (PORT.to_string(), threads.to_string());
    let words = "-n --no-auth --no-cli --no-tls --no-dtls --no-tcp --no-tcp-relay --log-file stdout --simple-log";
    let mut args: Vec<String> = words.split(' ').map(String::from).collect();
    for (option, value) in [
        ("--listening-ip", address.as_str()),
        ("--listening-port", &port),
        ("--relay-ip", &address),
        ("--min-port", "50000"),
        ("--max-port", "50999"),
        ("--relay-threads", &threads),
        ("--pidfile", pid_file),
        ("--userdb", database),
    ] {
        args.extend([option.to_owned(), value.to_owned()]);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_keeps_to_its_machine_and_its_folder() {
        let args = args("/f/pid", "/f/db", 3).join(" ");
        for words in ["--relay-ip 198.51.100.1", "--pidfile /f/pid", "--userdb /f/db", "--relay-threads 3"] {
            assert!(args.contains(words), "{args}");
        }
    }
}

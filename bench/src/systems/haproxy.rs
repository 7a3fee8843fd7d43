//! HAProxy as ONE plaintext hop on the relay's machine: a tunnel needs two, so it is a ceiling more than a peer.

use std::net::SocketAddr;

use crate::systems::{Carries, Running, Site, System, kernel, serve, text};
use crate::world::Proto;

pub(super) struct Haproxy {
    /// 128 KiB buffers in place of the default's 16 KiB: what its manual advises for bulk.
    pub(super) large_buffers: bool,
}

impl System for Haproxy {
    fn name(&self) -> &'static str {
        if self.large_buffers { "haproxy-128k" } else { "haproxy" }
    }

    fn carries(&self) -> Carries {
        Carries { tcp: true, udp: false, encrypted: false }
    }

    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let haproxy = site.tools.peer("haproxy")?;
        let target = kernel::open_hole(site)?;
        let listen = site.relay(if self.large_buffers { 6002 } else { 6001 });
        let bufsize = self.large_buffers.then_some(131_072);
        let file = site.world.write(&format!("{}.cfg", self.name()), config(listen, target, site.shards, bufsize))?;
        // -db: in the foreground, and one process.
        let process = serve(site, &haproxy, &["-db", "-f", &text(&file)], Proto::Tcp, listen.port())?;
        Ok(Running::at(Some(listen), None).with("relay", process))
    }
}

fn config(listen: SocketAddr, target: SocketAddr, threads: u16, bufsize: Option<u32>) -> String {
    let bufsize = bufsize.map_or(String::new(), |bytes| format!("    tune.bufsize {bytes}\n"));
    format!(
        "global
    nbthread {threads}
    maxconn 8192
{bufsize}
defaults
    mode tcp
    timeout connect 5s
    timeout client 120s
    timeout server 120s

listen bench
    bind {listen}
    server host {target}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_the_defaults_unless_asked_for() {
        let [listen, target] = ["198.51.100.1:6001", "198.51.100.10:7000"].map(|text| text.parse().unwrap());
        let default = config(listen, target, 2, None);
        assert!(default.contains("nbthread 2") && default.contains("bind 198.51.100.1:6001"), "{default}");
        assert!(default.contains("server host 198.51.100.10:7000") && !default.contains("bufsize"), "{default}");
        assert!(config(listen, target, 1, Some(131_072)).contains("    tune.bufsize 131072\n"));
    }
}

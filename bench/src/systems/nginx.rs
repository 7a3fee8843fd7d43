//! nginx's stream module as ONE plaintext hop on the relay's machine.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use crate::systems::{Carries, Running, Site, System, kernel, serve, text};
use crate::world::Proto;

pub(super) struct Nginx;

/// Where packages put the module, which may also be part of the program.
const MODULES: [&str; 2] = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"];
const MODULE: &str = "ngx_stream_module.so";

impl System for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn carries(&self) -> Carries {
        Carries { tcp: true, udp: false, encrypted: false }
    }

    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let nginx = site.tools.peer("nginx")?;
        let target = kernel::open_hole(site)?;
        let listen = site.relay(6003);
        let module = MODULES.iter().map(|folder| Path::new(folder).join(MODULE)).find(|file| file.is_file());
        let file = site.world.write("nginx.conf", config(listen, target, site, module.as_deref()))?;
        let args = ["-e", "stderr", "-c", &text(&file)];
        let process = serve(site, &nginx, &args, Proto::Tcp, listen.port());
        let process = process.context("nginx needs its stream module: run scripts/peers")?;
        Ok(Running::at(Some(listen), None).with("relay", process))
    }
}

fn config(listen: SocketAddr, target: SocketAddr, site: &Site<'_>, module: Option<&Path>) -> String {
    write_config(listen, target, site.shards, module, site.world.folder())
}

fn write_config(listen: SocketAddr, target: SocketAddr, workers: u16, module: Option<&Path>, folder: &Path) -> String {
    let module = module.map_or(String::new(), |file| format!("load_module {};\n", file.display()));
    let pid = folder.join("nginx.pid");
    format!(
        "{module}daemon off;
user root;
worker_processes {workers};
worker_rlimit_nofile 16384;
error_log stderr warn;
pid {};
events {{
    worker_connections 8192;
}}
stream {{
    tcp_nodelay on;
    server {{
        listen {listen};
        proxy_pass {target};
    }}
}}
",
        pid.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_is_loaded_where_it_is_a_file() {
        let [listen, target] = ["198.51.100.1:6003", "198.51.100.10:7000"].map(|text| text.parse().unwrap());
        let text = |module| write_config(listen, target, 2, module, Path::new("/f"));
        assert!(text(Some(Path::new("/m/x.so"))).starts_with("load_module /m/x.so;\ndaemon off;\n"));
        let inside = text(None);
        assert!(inside.starts_with("daemon off;") && inside.contains("pid /f/nginx.pid;"), "{inside}");
        assert!(inside.contains("listen 198.51.100.1:6003;") && inside.contains("proxy_pass 198.51.100.10:7000;"));
    }
}

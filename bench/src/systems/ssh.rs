//! `ssh -R`: a server on the relay's machine with a host key of its own, a client behind the NAT.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use crate::systems::{Carries, Running, Site, System, serve, text};
use crate::world::{Proto, Role, SOON};

pub(super) struct Ssh;

/// The cheapest cipher that it has on processors with AES.
const CIPHER: &str = "aes128-gcm@openssh.com";

/// Where sshd wants an empty folder for the processes that it takes the rights from.
const EMPTY: &str = "/run/sshd";

impl System for Ssh {
    fn name(&self) -> &'static str {
        "ssh"
    }

    fn carries(&self) -> Carries {
        Carries { tcp: true, udp: false, encrypted: true }
    }

    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let [sshd, ssh, keygen] = ["sshd", "ssh", "ssh-keygen"].map(|name| site.tools.peer(name));
        let (sshd, ssh, keygen) = (sshd?, ssh?, keygen?);
        let folder = site.world.folder();
        for key in ["ssh-host", "ssh-client"] {
            let file = text(&folder.join(key));
            site.world.run(Role::Relay, &keygen, ["-q", "-t", "ed25519", "-N", "", "-f", &file], SOON)?;
        }
        let (listen, published) = (site.relay(6022), site.relay(6004));
        let client_key = fs::read_to_string(folder.join("ssh-client.pub"))?;
        site.world.write("ssh-authorized", &client_key)?;
        let host_key = fs::read_to_string(folder.join("ssh-host.pub"))?;
        site.world.write("ssh-known", format!("[{}]:{} {host_key}", listen.ip(), listen.port()))?;
        let config = site.world.write("sshd.conf", server(listen, folder))?;
        // The package's service makes it, and it goes with the next start of the system.
        fs::create_dir_all(EMPTY).with_context(|| format!("cannot make {EMPTY}"))?;
        let server = serve(site, &sshd, &["-D", "-e", "-f", &text(&config)], Proto::Tcp, listen.port())?;
        let client = site.world.start(Role::Private, &ssh, client(listen, published, site.sink(), folder))?;
        let mut client = client;
        let granted = client.wait_for("remote forward success", SOON);
        granted.with_context(|| format!("the server says: {}", server.last_words()))?;
        anyhow::ensure!(client.runs(), "ssh ended: {}", client.last_words());
        // The server's share is done by a child that it has for this connection.
        Ok(Running::at(Some(published), None).with("relay", server).with("agent", client))
    }
}

fn server(listen: SocketAddr, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "ListenAddress {listen}
HostKey {folder}/ssh-host
AuthorizedKeysFile {folder}/ssh-authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
GatewayPorts clientspecified
TCPKeepAlive yes
Ciphers {CIPHER}
"
    )
}

fn client(server: SocketAddr, published: SocketAddr, sink: SocketAddr, folder: &Path) -> Vec<String> {
    let folder = folder.display();
    // -v, since it says only then that the server has granted the port.
    let mut args: Vec<String> = ["-v", "-N", "-T", "-F", "none", "-c", CIPHER].map(String::from).into();
    for option in [
        "BatchMode=yes",
        "ExitOnForwardFailure=yes",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        &format!("UserKnownHostsFile={folder}/ssh-known"),
        &format!("IdentityFile={folder}/ssh-client"),
    ] {
        args.extend(["-o".to_owned(), option.to_owned()]);
    }
    args.extend(["-R".to_owned(), format!("{published}:{sink}"), "-p".to_owned(), server.port().to_string()]);
    args.push(format!("root@{}", server.ip()));
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_addresses_are_those_of_the_folder_and_the_world() {
        let [listen, published, sink] =
            ["198.51.100.1:6022", "198.51.100.1:6004", "10.77.0.3:7000"].map(|text| text.parse().unwrap());
        let server = server(listen, Path::new("/f"));
        for line in ["ListenAddress 198.51.100.1:6022", "HostKey /f/ssh-host", "GatewayPorts clientspecified"] {
            assert!(server.lines().any(|other| other == line), "{server}");
        }
        let client = client(listen, published, sink, Path::new("/f")).join(" ");
        assert!(client.contains("-R 198.51.100.1:6004:10.77.0.3:7000 -p 6022 root@198.51.100.1"), "{client}");
        assert!(client.contains("UserKnownHostsFile=/f/ssh-known") && client.contains("-c aes128-gcm"), "{client}");
    }
}

//! rathole, as its documentation configures it: plain TCP, the noise protocol, or TLS. One service of each protocol.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use crate::systems::{Carries, Running, Site, System, text};
use crate::world::{Proto, Role, SOON};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Plain,
    Noise,
    Tls,
}

pub(super) struct Rathole(pub(super) Transport);

/// What each end writes of its transport.
struct Sections {
    server: String,
    client: String,
}

impl System for Rathole {
    fn name(&self) -> &'static str {
        match self.0 {
            Transport::Plain => "rathole",
            Transport::Noise => "rathole-noise",
            Transport::Tls => "rathole-tls",
        }
    }

    fn carries(&self) -> Carries {
        Carries { tcp: true, udp: true, encrypted: self.0 != Transport::Plain }
    }

    fn start(&self, site: &Site<'_>) -> anyhow::Result<Running> {
        let rathole = site.tools.rathole()?;
        let sections = match self.0 {
            Transport::Plain => Sections { server: String::new(), client: String::new() },
            Transport::Noise => noise(site, &rathole)?,
            Transport::Tls => tls(site)?,
        };
        let port = match self.0 {
            Transport::Plain => 5001,
            Transport::Noise => 5002,
            Transport::Tls => 5003,
        };
        let (service, published) = (site.relay(port), site.relay(port + 10_000));
        let name = self.name();
        let server = site.world.write(&format!("{name}-server.toml"), server(service, published, &sections.server))?;
        let client =
            site.world.write(&format!("{name}-client.toml"), client(service, site.sink(), &sections.client))?;
        let server = ["--server".to_owned(), text(&server)];
        let mut server = site.world.start(Role::Relay, &rathole, server)?;
        site.world.wait_listening(Role::Relay, Proto::Tcp, port, &mut server)?;
        let client = site.world.start(Role::Private, &rathole, ["--client".to_owned(), text(&client)])?;
        // It listens for visitors as soon as the client has a control channel for the service.
        for proto in [Proto::Tcp, Proto::Udp] {
            let listens = site.world.wait_listening(Role::Relay, proto, published.port(), &mut server);
            listens.with_context(|| format!("the client says: {}", client.last_words()))?;
        }
        Ok(Running::at(Some(published), Some(published)).with("relay", server).with("agent", client))
    }
}

fn server(service: SocketAddr, published: SocketAddr, transport: &str) -> String {
    let mut text = format!("[server]\nbind_addr = \"{service}\"\ndefault_token = \"bench\"\n{transport}");
    for proto in ["tcp", "udp"] {
        // Writing to a string does not fail.
        let _ = write!(text, "[server.services.{proto}]\ntype = \"{proto}\"\nbind_addr = \"{published}\"\n");
    }
    text
}

fn client(service: SocketAddr, sink: SocketAddr, transport: &str) -> String {
    let mut text = format!("[client]\nremote_addr = \"{service}\"\ndefault_token = \"bench\"\n{transport}");
    for proto in ["tcp", "udp"] {
        let _ = write!(text, "[client.services.{proto}]\ntype = \"{proto}\"\nlocal_addr = \"{sink}\"\n");
    }
    text
}

fn noise(site: &Site<'_>, rathole: &Path) -> anyhow::Result<Sections> {
    let text = site.world.run(Role::Relay, rathole, ["--genkey"], SOON)?;
    let (private, public) = key_pair(&text).context("rathole --genkey printed no key pair")?;
    let section =
        |end: &str, key: &str| format!("[{end}.transport]\ntype = \"noise\"\n[{end}.transport.noise]\n{key}\n");
    Ok(Sections {
        server: section("server", &format!("local_private_key = \"{private}\"")),
        client: section("client", &format!("remote_public_key = \"{public}\"")),
    })
}

/// Each key follows its heading.
fn key_pair(text: &str) -> Option<(&str, &str)> {
    let after = |heading: &str| {
        let mut lines = text.lines().map(str::trim).skip_while(|line| *line != heading).skip(1);
        lines.next().filter(|key| !key.is_empty())
    };
    Some((after("Private Key:")?, after("Public Key:")?))
}

fn tls(site: &Site<'_>) -> anyhow::Result<Sections> {
    let openssl = site.tools.peer("openssl")?;
    let file = |name: &str| text(&site.world.folder().join(name));
    let (key, certificate, identity) = (file("rathole.key"), file("rathole.pem"), file("rathole.pfx"));
    let run = |words: &str, paths: &[&str]| {
        let words = words.split(' ').map(|word| match word.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()) {
            Some(at) => paths[at],
            None => word,
        });
        site.world.run(Role::Relay, &openssl, words, SOON)
    };
    let request = "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=relay -addext subjectAltName=DNS:relay";
    run(&format!("{request} -keyout $0 -out $1"), &[&key, &certificate])?;
    let export = "pkcs12 -export -inkey $0 -in $1 -out $2 -passout pass:bench";
    // Its TLS library reads the old algorithms only, which OpenSSL 3 has in its legacy provider.
    let old = "-certpbe PBE-SHA1-3DES -keypbe PBE-SHA1-3DES -macalg sha1";
    let paths = [key.as_str(), &certificate, &identity];
    run(&format!("{export} {old} -legacy"), &paths).or_else(|_| run(&format!("{export} {old}"), &paths))?;
    let server = format!(
        "[server.transport]\ntype = \"tls\"\n[server.transport.tls]\npkcs12 = \"{identity}\"\npkcs12_password = \"bench\"\n"
    );
    let client = format!(
        "[client.transport]\ntype = \"tls\"\n[client.transport.tls]\ntrusted_root = \"{certificate}\"\nhostname = \"relay\"\n"
    );
    Ok(Sections { server, client })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_name_the_same_services_and_their_own_addresses() {
        let (service, published) = ("198.51.100.1:5001".parse().unwrap(), "198.51.100.1:15001".parse().unwrap());
        let server = server(service, published, "[server.transport]\ntype = \"noise\"\n");
        let client = client(service, "10.77.0.3:7000".parse().unwrap(), "");
        for end in [(&server, "server"), (&client, "client")] {
            assert!(end.0.contains(&format!("[{}.services.tcp]\ntype = \"tcp\"", end.1)), "{}", end.0);
            assert!(end.0.contains(&format!("[{}.services.udp]\ntype = \"udp\"", end.1)), "{}", end.0);
        }
        assert!(server.contains("bind_addr = \"198.51.100.1:15001\"") && server.contains("type = \"noise\""));
        assert!(
            client.contains("remote_addr = \"198.51.100.1:5001\"")
                && client.contains("local_addr = \"10.77.0.3:7000\"")
        );
    }

    #[test]
    fn key_pair_follows_its_headings() {
        assert_eq!(key_pair("Private Key:\nabc=\n\nPublic Key:\nxyz=\n"), Some(("abc=", "xyz=")));
        assert_eq!(key_pair("Private Key:\n\nPublic Key:\nxyz=\n"), None);
        assert_eq!(key_pair("error"), None);
    }
}

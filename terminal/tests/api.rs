//! The public surface: written down, and used as others use it.
//!
//! `cargo-semver-checks` needs a published version to compare with, `cargo-public-api` a nightly compiler. This
//! runs on stable with nothing installed: `api.txt` lists what the sources declare public, so that no change
//! of it goes unseen in a review; and the second half pins by use what a listing of sources cannot show, such
//! as auto traits and what other crates export here. After a wanted change: `UPDATE_API=1 cargo test --test api`.

use std::path::{Path, PathBuf};

use isthmus_terminal::{
    AllowRule, Backoff, CertificateDer, Code, Config, Error, HandshakeError, Importance, Interface, Mediator,
    MediatorId, MediatorInfo, MediatorSummary, OpenOptions, OwnedReadHalf, OwnedWriteHalf, Port, PortId, ReadHalf,
    Relay, Report, Stats, TcpListener, TcpStream, Trust, UdpSocket, Unreachable, WriteHalf,
};
use tokio::io::{AsyncRead, AsyncWrite};

#[test]
fn the_public_surface_is_as_it_was_written_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    files.sort();
    let mut found = String::new();
    for file in &files {
        let items = public_items(&std::fs::read_to_string(file).unwrap());
        if !items.is_empty() {
            let name = file.strip_prefix(root).unwrap().display();
            found += &format!("# {name}\n{}\n", items.join("\n"));
        }
    }
    assert!(found.contains("pub async fn connect("), "the listing sees the sources");
    let listing = root.join("api.txt");
    if std::env::var_os("UPDATE_API").is_some() {
        std::fs::write(&listing, &found).unwrap();
    }
    let written = std::fs::read_to_string(&listing).unwrap();
    for line in found.lines().filter(|line| !written.lines().any(|known| known == *line)) {
        println!("+ {line}");
    }
    for line in written.lines().filter(|line| !found.lines().any(|known| known == *line)) {
        println!("- {line}");
    }
    assert!(found == written, "the public surface changed; if that is wanted: UPDATE_API=1 cargo test --test api");
}

/// The library's own sources.
fn sources(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "bin") {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Declarations that begin with `pub `, traits by hand, and the variants of public enumerations, each in one
/// line. Derived traits are pinned below. Formatted sources make that simple: a declaration ends with `{`, `;` or, a field, `,`.
fn public_items(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let mut items = Vec::new();
    let mut lines = text.lines();
    let mut in_enum = false;
    while let Some(line) = lines.next() {
        let trimmed = line.trim();
        if in_enum {
            in_enum = line != "}";
            let aside = ["//", "}", "#[error"].iter().any(|start| trimmed.starts_with(start));
            if in_enum && !aside {
                items.push(format!("    {trimmed}"));
            }
            continue;
        }
        if trimmed == "#[non_exhaustive]" || trimmed == "#[must_use]" {
            items.push(trimmed.to_owned());
        }
        let implemented = line.starts_with("impl") && line.contains(" for ") && !line.starts_with("impl Drop");
        if !trimmed.starts_with("pub ") && !implemented {
            continue;
        }
        let mut item = trimmed.to_owned();
        while !item.ends_with(['{', ';', ',', '}']) || item.matches('(').count() > item.matches(')').count() {
            let Some(more) = lines.next() else { break };
            item.push(' ');
            item += more.trim();
        }
        in_enum = item.starts_with("pub enum") && item.ends_with('{');
        items.push(item.trim_end_matches(['{', ',']).trim_end().to_owned());
    }
    items
}

fn anywhere<T: Send + Sync + Unpin + std::fmt::Debug + 'static>() {}
fn cloned<T: Clone>() {}
fn reads<T: AsyncRead>() {}
fn writes<T: AsyncWrite>() {}
fn sent<T: Send>(future: T) -> T {
    future
}

/// Compiled, never run: what others may rely on.
#[test]
fn all_types_may_go_to_any_task() {
    anywhere::<Mediator>();
    anywhere::<Relay>();
    anywhere::<TcpStream>();
    anywhere::<TcpListener>();
    anywhere::<UdpSocket>();
    anywhere::<Port>();
    anywhere::<OwnedReadHalf>();
    anywhere::<OwnedWriteHalf>();
    anywhere::<ReadHalf<'static>>();
    anywhere::<WriteHalf<'static>>();
    anywhere::<Config>();
    anywhere::<Error>();
    anywhere::<Stats>();
    anywhere::<Unreachable>();
    anywhere::<(Backoff, Trust, Importance, OpenOptions, Code, MediatorId, PortId)>();
    anywhere::<(Interface, MediatorInfo, MediatorSummary, Report, AllowRule)>();
    anywhere::<(HandshakeError, CertificateDer<'static>)>();
    cloned::<(Mediator, Relay, Config, Error, Trust, OpenOptions)>();
    reads::<TcpStream>();
    reads::<OwnedReadHalf>();
    reads::<ReadHalf<'static>>();
    writes::<TcpStream>();
    writes::<OwnedWriteHalf>();
    writes::<WriteHalf<'static>>();
    let _: fn(Error) -> std::io::Error = Into::into;
    // The futures go to any task as well.
    let _ = |mediator: &'static Mediator, relay: &'static Relay, config: &'static Config, id: MediatorId| {
        drop(sent(Mediator::attach(config, id)));
        drop(sent(Relay::connect(config)));
        drop(sent(relay.list()));
        drop(sent(mediator.info()));
        drop(sent(mediator.connect(([10, 0, 0, 5], 80).into())));
        drop(sent(mediator.listen(([0; 4], 0).into(), Importance::Desired)));
        drop(sent(mediator.udp_redirect(([0; 4], 0).into(), Importance::Desired, true)));
        drop(sent(mediator.closed()));
        drop(sent(mediator.connected()));
    };
    let _ = |listener: &'static TcpListener, socket: &'static UdpSocket| {
        drop(sent(listener.accept()));
        drop(sent(socket.recv_datagram()));
        drop(sent(socket.send(b"x")));
    };
}

#[cfg(feature = "hyper")]
#[test]
fn the_connector_is_one_of_hypers() {
    fn connector<T: hyper_util::client::legacy::connect::Connect + Clone + Send + Sync + 'static>() {}
    connector::<isthmus_terminal::MediatorConnector>();
    anywhere::<isthmus_terminal::MediatorConnector>();
}

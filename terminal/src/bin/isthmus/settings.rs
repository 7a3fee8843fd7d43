//! From flags and environment to the library's configuration.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use isthmus_terminal::{Config, Trust};

use crate::args::Args;

/// Longest token in bytes; more is another file.
const TOKEN_LEN_MAX: u64 = 8192;

/// # Errors
/// What is missing or cannot be used, with the flag that cures it.
pub(crate) fn config(args: &Args) -> anyhow::Result<Config> {
    let relay = args.relay.as_deref().filter(|relay| !relay.is_empty());
    let relay = relay.context("which relay? give --relay HOST:PORT or set ISTHMUS_RELAY")?;
    if !relay.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
        bail!("--relay '{relay}' is not HOST:PORT; an IPv6 address stands in brackets: [2001:db8::1]:4470");
    }
    let trust = trust(args)?;
    let config = match args.cert.as_deref().zip(args.key.as_deref()) {
        Some(_) if trust == Trust::Plaintext => {
            bail!("--cert proves nothing without TLS; leave --plaintext off, or give a token instead")
        }
        Some((cert, key)) => Config::new(relay, trust, "").certificate(cert, key).context("--cert and --key")?,
        None => Config::new(relay, trust, token(args)?),
    };
    Ok(config.udp_channels(args.udp_channels))
}

/// An explicit `--plaintext` or `--ca` counts more than a pin, which may come from the environment.
fn trust(args: &Args) -> anyhow::Result<Trust> {
    match (args.plaintext, &args.ca, args.pin.as_deref().filter(|pin| !pin.is_empty())) {
        (true, ..) => Ok(Trust::Plaintext),
        (false, Some(ca), _) => Ok(Trust::ca_file(ca)?),
        (false, None, Some(pin)) => Trust::pin(pin).context("--pin (or ISTHMUS_PIN)"),
        (false, None, None) => bail!(
            "how is the relay known? give --pin FINGERPRINT (`isthmus-relay fingerprint` prints it), set ISTHMUS_PIN, or give --ca FILE"
        ),
    }
}

fn token(args: &Args) -> anyhow::Result<String> {
    if let Some(path) = &args.token_file {
        return read_token(path).with_context(|| format!("--token-file {}", path.display()));
    }
    let token = args.token.as_deref().map(str::trim).filter(|token| !token.is_empty());
    let token = token.context(
        "with what right? give --token TOKEN or --token-file FILE, or set ISTHMUS_TOKEN (`isthmus-relay token --terminal NAME` makes one)",
    )?;
    Ok(token.to_owned())
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(TOKEN_LEN_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > TOKEN_LEN_MAX || text.trim().is_empty() {
        bail!("the file holds no token; `isthmus-relay token --terminal NAME` makes one");
    }
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn error(line: &str) -> String {
        // What is set in the tester's own environment must not count.
        let mut args = Args::try_parse_from(line.split(' ')).unwrap();
        args.pin = args.pin.filter(|_| line.contains("--pin"));
        args.relay = args.relay.filter(|_| line.contains("--relay"));
        args.token = args.token.filter(|_| line.contains("--token"));
        config(&args).map_or_else(|error| format!("{error:#}"), |_| "fine".into())
    }

    #[test]
    fn what_is_missing_is_asked_for_with_its_flag() {
        assert!(error("isthmus list").contains("--relay"));
        assert!(error("isthmus --relay r:1 list").contains("--pin"));
        assert!(error("isthmus --relay r:1 --plaintext list").contains("--token"));
        assert!(error("isthmus --relay r --plaintext --token t list").contains("HOST:PORT"));
        assert!(error("isthmus --relay r:1 --pin 12 --token t list").contains("--pin"));
        assert!(error("isthmus --relay r:1 --plaintext --token-file /nonexistent list").contains("/nonexistent"));
        assert!(error("isthmus --relay r:1 --ca /nonexistent --token t list").contains("/nonexistent"));
        assert_eq!(error("isthmus --relay [::1]:1 --plaintext --pin 12 --token t list"), "fine");
    }
}

//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use isthmus_service::Pages;
use isthmus_settings::Rules;
use isthmus_terminal::MediatorId;

use crate::spec::ForwardSpec;

/// Whoever knows the token has its rights; a pin, an authority and none of them exclude each other.
pub(crate) const RULES: Rules = Rules {
    secrets: &["token"],
    alternatives: &[&["pin", "ca", "plaintext"], &["token", "token-file"]],
    subcommands: &[],
};

const EXAMPLES: &str = "\
Examples, with ISTHMUS_RELAY, ISTHMUS_PIN and ISTHMUS_TOKEN set:
  isthmus list
  isthmus forward cpe -L 127.0.0.1:2222:10.0.0.7:22
  isthmus socks cpe
  ssh -o 'ProxyCommand=isthmus nc cpe %h %p' me@10.0.0.7";

/// Use machines in a private network, by way of a relay and the mediator that lives there.
#[derive(Parser)]
#[command(name = "isthmus", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Settings from this TOML file: a key for each flag, of its name; flags and environment count more
    #[arg(long = "config", global = true, value_name = "FILE", env = "ISTHMUS_CONFIG")]
    _file: Option<PathBuf>,

    /// The relay's service port
    #[arg(long, global = true, value_name = "HOST:PORT", env = "ISTHMUS_RELAY")]
    pub(crate) relay: Option<String>,

    /// The relay's fingerprint, as `isthmus-relay fingerprint` prints it
    #[arg(long, global = true, value_name = "FINGERPRINT", env = "ISTHMUS_PIN")]
    pub(crate) pin: Option<String>,

    /// Trust certificates of this authority (PEM) instead of a fingerprint
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// The token that `isthmus-relay token --terminal` gave
    #[arg(long, global = true, value_name = "TOKEN", env = "ISTHMUS_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,

    /// Read the token from a file
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// PEM file of a certificate, in place of a token; the relay has --client-ca then
    #[arg(long, global = true, value_name = "FILE", requires = "key", conflicts_with = "token_file")]
    pub(crate) cert: Option<PathBuf>,

    /// PEM file of that certificate's private key
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,

    /// No TLS; the relay must want that too. For benchmarks and closed networks only
    #[arg(long, global = true)]
    pub(crate) plaintext: bool,

    /// UDP channels to the relay
    #[arg(long, global = true, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=16))]
    pub(crate) udp_channels: u8,

    /// What to log on the standard error: error, warn, info, debug, trace, or a filter by module
    #[arg(long, global = true, value_name = "LEVEL", default_value = "warn,isthmus_terminal::line=info")]
    pub(crate) log: String,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Pages(Pages),
    /// Tell all about a mediator
    #[command(after_help = "Examples:\n  isthmus info cpe\n  isthmus info cpe --json")]
    Info {
        /// Its name
        mediator: MediatorId,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List the mediators that the token names and that are connected
    #[command(after_help = "Examples:\n  isthmus list\n  isthmus list --json")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make ports of this machine lead to hosts in the private network
    #[command(
        after_help = "Examples:\n  isthmus forward cpe -L 127.0.0.1:2222:10.0.0.7:22\n  isthmus forward cpe -L 5353:10.0.0.1:53 -U"
    )]
    Forward {
        /// The mediator's name
        mediator: MediatorId,
        /// [LOCAL:]PORT:HOST:PORT; LOCAL is 127.0.0.1 if not given, PORT 0 takes a free one
        #[arg(short = 'L', value_name = "SPEC", required = true)]
        local: Vec<ForwardSpec>,
        /// UDP rather than TCP
        #[arg(short = 'U', long)]
        udp: bool,
    },
    /// Make a port of the mediator lead to this machine's side
    #[command(after_help = "Examples:\n  isthmus listen cpe 0.0.0.0:9000 --to 127.0.0.1:80")]
    Listen {
        /// The mediator's name
        mediator: MediatorId,
        /// Where the mediator listens; 0.0.0.0 for all its addresses, port 0 for a free one
        #[arg(value_name = "IP:PORT", value_parser = place)]
        at: SocketAddr,
        /// Where connections lead, seen from here
        #[arg(long, value_name = "HOST:PORT")]
        to: String,
        /// Exactly that port number, or an error; else the first free one from it on
        #[arg(long)]
        obligatory: bool,
    },
    /// Serve SOCKS5 and HTTP CONNECT on this machine for one mediator; whoever reaches the port may use it
    #[command(after_help = "Examples:\n  isthmus socks cpe --listen 127.0.0.1:1080")]
    Socks {
        /// The mediator's name
        mediator: MediatorId,
        /// Where clients connect to; port 0 takes a free one
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:1080")]
        listen: SocketAddr,
    },
    /// Join the standard input and output to a host in the private network
    #[command(after_help = "Examples:\n  isthmus nc cpe 10.0.0.5 80\n  isthmus nc cpe 10.0.0.1 53 -u --redirect")]
    Nc {
        /// The mediator's name
        mediator: MediatorId,
        /// The host's IP address
        #[arg(value_parser = address)]
        host: IpAddr,
        /// Its port number
        port: u16,
        /// UDP: each read of the standard input is a datagram
        #[arg(short, long)]
        udp: bool,
        /// With -u: over UDP channels rather than the TCP channel
        #[arg(long, requires = "udp")]
        redirect: bool,
        /// With -u: how long to wait for answers after the input's end
        #[arg(short, long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
        wait: Duration,
    },
}

fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| {
        if let Some((host, port)) = bare.rsplit_once(':').filter(|(host, _)| !host.contains(':')) {
            return format!("the port number is an argument of its own: write '{host} {port}'");
        }
        "it is no IP address, and names are not looked up here; give the host's address, \
         as the private network's DNS or DHCP server knows it"
            .to_owned()
    })
}

fn place(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "it is not IP:PORT with an address of the mediator (`isthmus info MEDIATOR` lists them), \
         as 10.0.0.2:9000, or 0.0.0.0:9000 for all; an IPv6 address stands in brackets: [fd00::2]:9000"
            .to_owned()
    })
}

fn seconds(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}' is no number of seconds");
    text.parse::<f64>().ok().and_then(|n| Duration::try_from_secs_f64(n).ok()).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn example_names_every_setting_and_sets_the_defaults() {
        let text = include_str!("../../../../examples/terminal.toml");
        let words = ["isthmus", "list"];
        assert_eq!(isthmus_settings::check_example(&Args::command(), &words, text, RULES), Ok(()));
    }

    #[test]
    fn command_lines_in_the_documentation_are_taken() {
        let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let take = |words: &[String]| Args::try_parse_from(words).map(drop);
        let count = isthmus_settings::check_documents("isthmus", root, take).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(count >= 8, "only {count} are found");
    }

    #[test]
    fn examples_in_the_help_are_taken() {
        let take = |words: &[String]| Args::try_parse_from(words).map(drop);
        let count = isthmus_settings::check_help(&Args::command(), take).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(count >= 10, "only {count} are found");
    }

    #[test]
    fn global_flags_stand_before_or_behind_the_command() {
        for line in [
            "isthmus --relay r:1 --plaintext forward cpe-1 -L 0:10.0.0.5:22 -L 1:10.0.0.6:23 -U",
            "isthmus forward cpe-1 -L 0:10.0.0.5:22 -L 1:10.0.0.6:23 -U --relay r:1 --plaintext",
        ] {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(args.relay.as_deref(), Some("r:1"));
            assert!(args.plaintext);
            assert!(matches!(args.command, Command::Forward { local, udp: true, .. } if local.len() == 2));
        }
    }

    #[test]
    fn what_is_refused_is_told_with_its_cure() {
        for (line, cure) in [
            ("isthmus nc cpe-1 printer.lan 22", "give the host's address"),
            ("isthmus nc cpe-1 10.0.0.5:22 22", "write '10.0.0.5 22'"),
            ("isthmus listen cpe-1 9000 --to a:1", "isthmus info"),
            ("isthmus listen cpe-1 router:9000 --to a:1", "isthmus info"),
            ("isthmus forward cpe-1 -L 80:printer.lan:80", "IP address"),
            ("isthmus --relai r:1 list", "'--relay'"),
            ("isthmus --tokenfile f list", "'--token-file'"),
            ("isthmus lst", "'list'"),
            ("isthmus forward cpe-1 -L 0:10.0.0.5:22 --redirect", "unexpected argument"),
        ] {
            let error = Args::try_parse_from(line.split(' ')).err().unwrap().to_string();
            assert!(error.contains(cure), "{line}: {error}");
        }
        assert_eq!(address("[fd00::5]"), Ok("fd00::5".parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for line in [
            "isthmus forward cpe-1",
            "isthmus info -bad",
            "isthmus nc cpe-1 10.0.0.5 22 --redirect",
            "isthmus nc cpe-1 host 22",
            "isthmus nc cpe-1 10.0.0.5 22 -u -w -1",
            "isthmus listen cpe-1 8080 --to a:1",
            "isthmus --udp-channels 17 list",
        ] {
            assert!(Args::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}

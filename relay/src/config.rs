//! The command line: what an operator may set, with its defaults and bounds.

mod changes;
mod commands;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use ipnet::IpNet;
use isthmus_proto::limits;
use isthmus_proto::policy::AllowRule;
use isthmus_service::{LogFormat, Pages};
use isthmus_settings::{Rules, Setting};

pub use changes::Change;
pub(crate) use commands::default_stats_socket;
pub use commands::{CtlArgs, DoctorArgs, EnrollArgs, FingerprintArgs, KeyAction, RevokeArgs, StateDir, TokenArgs};

use commands::TokenCli;

use crate::asked::{AllowName, AllowPublish};
use crate::expose::{EXPOSES_MAX, Expose};
use crate::names::{NameRoute, Names};
use crate::proxy::ProxyPort;
use crate::publish::{Publish, PublishSpec};
use crate::records::RecordsConfig;
use crate::top::TopArgs;
use crate::trust::TrustOptions;

/// Most shards of one relay. A shard's number travels in a byte of every UDP channel datagram.
pub const SHARDS_MAX: i64 = 128;

/// Longest `--busy-poll`.
const BUSY_POLL_MAX: Duration = isthmus_ring::BUSY_POLL_MAX;

const DURATION_MIN: Duration = Duration::from_millis(100);
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run the relay.
    Run(Box<Config>),
    /// Issue a token.
    Token(TokenArgs),
    /// Change or show the token keys and revocations.
    Keys(KeyAction),
    /// Print the line that sets a mediator up.
    Enroll(EnrollArgs),
    /// Print the server certificate's fingerprint.
    Fingerprint(FingerprintArgs),
    /// Send a command to a running relay.
    Ctl(CtlArgs),
    /// Look whether all is well with these settings.
    Doctor(Box<Config>, DoctorArgs),
    /// Completions, man pages.
    Pages(Pages),
    /// Watch a running relay.
    Top(TopArgs),
}

/// Prints or writes completions or man pages.
///
/// # Errors
/// They cannot be written.
pub fn pages(pages: &Pages) -> std::io::Result<()> {
    pages.run::<Cli>()
}

/// Reads a command line (its first word is the program's name) and the environment (`ISTHMUS_*`).
///
/// # Errors
/// clap's own, which name the flag and know how to print themselves, `--help` and `--version` included.
pub fn parse<I>(words: I) -> Result<Invocation, clap::Error>
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
    let environment: isthmus_settings::Environment<'_> = &|name| std::env::var_os(name);
    let (cli, told): (Cli, _) = isthmus_settings::parse_told(&words, RULES, environment)?;
    let configured = |cli: Cli| configured(Config { source: words, told, ..cli.config }, cli.state);
    match cli.command {
        Some(Sub::Token(TokenCli { action: Some(action), .. })) => Ok(Invocation::Keys(action)),
        Some(Sub::Token(TokenCli { issue: Some(args), .. })) => Ok(Invocation::Token(args)),
        Some(Sub::Token(TokenCli { issue: None, .. })) => {
            let text = "give --state DIR and --mediator ID, or --terminal NAME with --mediators GLOB";
            Err(Cli::command().error(ErrorKind::MissingRequiredArgument, text))
        }
        Some(Sub::Enroll(args)) => Ok(Invocation::Enroll(args)),
        Some(Sub::Fingerprint(args)) => Ok(Invocation::Fingerprint(args)),
        Some(Sub::Ctl(args)) => Ok(Invocation::Ctl(args)),
        Some(Sub::Pages(pages)) => Ok(Invocation::Pages(pages)),
        Some(Sub::Top(args)) => Ok(Invocation::Top(args)),
        Some(Sub::Doctor(ref args)) => {
            let args = args.clone();
            Ok(Invocation::Doctor(configured(cli)?, args))
        }
        None => Ok(Invocation::Run(configured(cli)?)),
    }
}

/// The settings of a relay, checked as a whole.
fn configured(mut config: Config, state: Option<PathBuf>) -> Result<Box<Config>, clap::Error> {
    if state.is_none() {
        return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, "give --state DIR"));
    }
    config.state = state.unwrap_or_default();
    config.check(cores()).map_err(|text| Cli::command().error(ErrorKind::ValueValidation, text))?;
    Ok(Box::new(config))
}

const RULES: Rules = Rules { secrets: &[], alternatives: &[], subcommands: &["doctor"] };

const EXAMPLES: &str = "\
Examples:
  isthmus-relay --state ./state --publish tcp:0.0.0.0:8080=cpe/10.0.0.5:80
  isthmus-relay --state ./state --names 0.0.0.0:443 --name '*.example.net=*'
  isthmus-relay --state ./state --socks 0.0.0.0:1080 --http 127.0.0.1:9470
  isthmus-relay --config /etc/isthmus/relay.toml --state ./state
  isthmus-relay enroll cpe --state ./state --address relay.example.net:4470";

#[derive(Debug, Parser)]
#[command(name = "isthmus-relay", version, about = "The public relay of Isthmus", subcommand_negates_reqs = true)]
#[command(after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,
    /// Directory of the keys; made on the first start, never overwritten
    #[arg(long, value_name = "DIR", env = "ISTHMUS_STATE", required = true)]
    state: Option<PathBuf>,
    /// Settings from this TOML file: a key for each flag, of its name; flags and environment count more
    #[arg(long = "config", value_name = "FILE", env = "ISTHMUS_CONFIG")]
    _file: Option<PathBuf>,
    #[command(flatten)]
    config: Config,
}

const TOKEN_EXAMPLES: &str = "\
Examples:
  isthmus-relay token --state ./state --mediator cpe
  isthmus-relay token --state ./state --terminal me --mediators cpe-* --allow connect,info --to 10.0.0.7:22
  isthmus-relay token rotate --state ./state
  isthmus-relay token revoke --state ./state --mediator cpe";

const CTL_EXAMPLES: &str = "\
Examples:
  isthmus-relay ctl --state ./state help
  isthmus-relay ctl --state ./state 'show info; show tunnels sort=bps desc limit=20'
  isthmus-relay ctl --state ./state publish tcp:0.0.0.0:8081=cpe/10.0.0.6:80";

#[derive(Debug, Subcommand)]
enum Sub {
    /// Issue a token for a mediator or a terminal; rotate and retire the keys that sign them; revoke
    #[command(after_help = TOKEN_EXAMPLES)]
    Token(TokenCli),
    /// Print one line that sets a mediator up: `isthmus-agent enroll LINE`
    #[command(after_help = "Examples:\n  isthmus-relay enroll cpe --state ./state --address relay.example.net:4470")]
    Enroll(EnrollArgs),
    /// Print the server certificate's fingerprint, for --pin
    #[command(after_help = "Examples:\n  isthmus-relay fingerprint --state ./state")]
    Fingerprint(FingerprintArgs),
    /// Send a command to the running relay and print its answer
    #[command(after_help = CTL_EXAMPLES)]
    Ctl(CtlArgs),
    #[command(flatten)]
    Pages(Pages),
    /// Look whether this machine and these settings let the relay run well; the relay's flags go before this word. The exit
    /// code is 0 if they do, 1 after warnings, 2 after errors
    #[command(
        after_help = "Examples:\n  isthmus-relay --state ./state doctor\n  isthmus-relay --config FILE --state ./state doctor --json"
    )]
    Doctor(DoctorArgs),
    /// Watch the running relay: rates, drops, shards and tunnels on one screen; docs/top.md
    #[command(
        after_help = "Examples:\n  isthmus-relay top --state ./state\n  isthmus-relay top --state ./state --interval 5s"
    )]
    Top(TopArgs),
}

/// All settings of a running relay.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// The command line that it came from, to read all again.
    #[arg(skip)]
    pub source: Vec<OsString>,
    /// Each setting as it was written, and where.
    #[arg(skip)]
    pub told: Vec<Setting>,
    /// Directory of the keys (see [`crate::trust::State`]).
    #[arg(skip)]
    pub state: PathBuf,
    /// Service port, TCP and UDP
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:4470", env = "ISTHMUS_LISTEN")]
    pub listen: SocketAddr,
    /// Number of shards [default: number of cores]
    #[arg(long, value_name = "N", default_value_t = cores(), hide_default_value = true, env = "ISTHMUS_SHARDS",
          value_parser = shard_count)]
    pub shards: usize,
    /// Lend a port of the relay to a host behind a mediator; several: PROTO:ADDR,ADDR:PORT-PORT=MEDIATOR/HOST:PORT[-PORT]
    #[arg(long = "publish", value_name = "PROTO:ADDR:PORT=MEDIATOR/HOST:PORT")]
    pub publish: Vec<PublishSpec>,
    /// The other way: hosts that come to a port of the mediator, TCP or UDP, are led to a public address, told who they
    /// are with ,proxy=v2 at the end. May be repeated
    #[arg(long, value_name = "PROTO:MEDIATOR/IP:PORT=HOST:PORT")]
    pub expose: Vec<Expose>,
    /// Lead visitors of this TCP port by the name that they ask for, in TLS or HTTP/1, as --name says. May be repeated
    #[arg(long, value_name = "ADDR:PORT", env = "ISTHMUS_NAMES", value_delimiter = ',')]
    pub names: Vec<SocketAddr>,
    /// Where a name leads, on every --names port: www.example.net=cpe-1/10.0.0.5:443 or '*.example.net=*/127.0.0.1:443',
    /// the label being the mediator's name. May be repeated
    #[arg(long, value_name = "NAME=MEDIATOR[/HOST:PORT]")]
    pub name: Vec<NameRoute>,
    /// Load balancers in front: their connections to TCP ports of visitors have to begin with a PROXY header, which is
    /// believed. May be repeated
    #[arg(long, value_name = "CIDR", env = "ISTHMUS_PROXY_FROM", value_delimiter = ',', value_parser = network)]
    pub proxy_from: Vec<IpNet>,
    /// What may be published at run time: addresses and ports of the relay, as in 0.0.0.0:8000-8999 or *:2000-2999 [default:
    /// anything]. May be repeated
    #[arg(long, value_name = "CIDR[:PORTS]")]
    pub publish_allow: Vec<AllowRule>,
    /// What is published at run time comes back after a restart, as if each 'publish' said 'save'
    #[arg(long, env = "ISTHMUS_KEEP_PUBLISHES")]
    pub keep_publishes: bool,
    /// Which ports mediators may ask for with their own --ask-publish: 'cpe-*=tcp:8000-8099', shop-7=udp:192.0.2.1:53
    /// [default: none]. May be repeated
    #[arg(long, value_name = "MEDIATOR-GLOB=PROTO:[ADDR:]PORT[-PORT]")]
    pub allow_publish: Vec<AllowPublish>,
    /// Which names mediators may ask for with their own --ask-name: shop-7=www.example.net, 'cpe-*=*.example.net' [default:
    /// none]. May be repeated
    #[arg(long, value_name = "MEDIATOR-GLOB=NAME")]
    pub allow_name: Vec<AllowName>,
    /// A mediator that is away keeps the ports and names that it asked for this long
    #[arg(long, value_name = "TIME", default_value = "2m", env = "ISTHMUS_ASK_HOLD", value_parser = duration)]
    pub ask_hold: Duration,
    /// SOCKS5 and HTTP CONNECT for clients without Isthmus: the user name is the mediator's, the password a terminal's
    /// token. With =MEDIATOR for that one only, and on a loopback address without a token. May be repeated
    #[arg(long, value_name = "ADDR:PORT[=MEDIATOR]", env = "ISTHMUS_SOCKS", value_delimiter = ',')]
    pub socks: Vec<ProxyPort>,
    /// Ask no token at a --socks port of one mediator, on whatever address it is: whoever reaches it may use the mediator
    #[arg(long, env = "ISTHMUS_SOCKS_OPEN")]
    pub socks_open: bool,
    /// Unix socket of the management plane [default: DIR/stats.sock]
    #[arg(long, value_name = "PATH", env = "ISTHMUS_STATS_SOCKET")]
    pub stats_socket: Option<PathBuf>,
    /// A further such socket, whose users may look and change what is carried, not whom is trusted [default: none]
    #[arg(long, value_name = "PATH", env = "ISTHMUS_STATS_SOCKET_OPERATOR")]
    pub stats_socket_operator: Option<PathBuf>,
    /// A further such socket, whose users may look only [default: none]
    #[arg(long, value_name = "PATH", env = "ISTHMUS_STATS_SOCKET_USER")]
    pub stats_socket_user: Option<PathBuf>,
    /// HTTP for monitors: /metrics, /healthz, /readyz; docs/metrics.md [default: off]
    #[arg(long, value_name = "ADDR:PORT", env = "ISTHMUS_HTTP")]
    pub http: Option<SocketAddr>,
    /// The token that HTTP clients have to show (bearer, or any user's password), in this file; needed where --http is no
    /// loopback address
    #[arg(long, value_name = "FILE", env = "ISTHMUS_HTTP_TOKEN_FILE")]
    pub http_token_file: Option<PathBuf>,
    /// A line of JSON for each tunnel, terminal, stream and flow that has ended, in this file (docs/records.md) [default: none]
    #[arg(long, value_name = "FILE", env = "ISTHMUS_RECORDS")]
    pub records: Option<PathBuf>,
    /// MiB of such a file, after which another one is begun
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub records_mib_max: u32,
    /// Such files in all; the oldest is removed for another one
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub records_files_max: u32,
    /// No TLS: for benchmarks and closed networks only; the other side must ask for it too
    #[arg(long)]
    pub plaintext: bool,
    /// Tokens of another issuer are good too: its public keys (EdDSA, ES256), as a JWKS document
    #[arg(long, value_name = "FILE", env = "ISTHMUS_JWKS")]
    pub jwks: Option<PathBuf>,
    /// Certificates that one of these authorities (PEM) signed are good in place of tokens; docs/tokens.md
    #[arg(long, value_name = "FILE", env = "ISTHMUS_CLIENT_CA")]
    pub client_ca: Option<PathBuf>,
    /// Time between maintain packets on an idle TCP channel
    #[arg(long, value_name = "TIME", default_value = "20s", env = "ISTHMUS_KEEPALIVE_TCP", value_parser = duration)]
    pub keepalive_tcp: Duration,
    /// Time between maintain packets on each UDP channel, until longer ones prove to be safe
    #[arg(long, value_name = "TIME", default_value = "8s", env = "ISTHMUS_KEEPALIVE_UDP", value_parser = duration)]
    pub keepalive_udp: Duration,
    /// Longest silence that mediators try when they learn how long their gateways keep UDP bindings; what is not above
    /// --keepalive-udp turns learning off
    #[arg(long, value_name = "TIME", default_value = "2m", env = "ISTHMUS_KEEPALIVE_UDP_MAX", value_parser = duration)]
    pub keepalive_udp_max: Duration,
    /// A channel is dead when a maintain packet stays unanswered for this long
    #[arg(long, value_name = "TIME", default_value = "10s", env = "ISTHMUS_DEAD_AFTER", value_parser = duration)]
    pub dead_after: Duration,
    /// TLS and greeting together must end within this
    #[arg(long, value_name = "TIME", default_value = "10s", env = "ISTHMUS_HANDSHAKE_TIMEOUT", value_parser = duration)]
    pub handshake_timeout: Duration,
    /// Most handshakes at once, on all shards together
    #[arg(long, value_name = "N", default_value_t = 4096, env = "ISTHMUS_HALF_OPEN_MAX",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub half_open_max: u32,
    /// A visitor's UDP flow, or a host's to an exposed service, ends after this long without a datagram
    #[arg(long, value_name = "TIME", default_value = "60s", env = "ISTHMUS_UDP_IDLE", value_parser = duration)]
    pub udp_idle: Duration,
    /// Most UDP flows of one published port
    #[arg(long, value_name = "N", default_value_t = 16_384, env = "ISTHMUS_UDP_FLOWS_MAX",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub udp_flows_max: u32,
    /// Most UDP flows of one exposed service: each takes a socket and a port number of the relay
    #[arg(long, value_name = "N", default_value_t = 1024, env = "ISTHMUS_EXPOSED_FLOWS_MAX",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub exposed_flows_max: u32,
    /// Most ports of one tunnel
    #[arg(long, value_name = "N", default_value_t = limits::PORTS_MAX, env = "ISTHMUS_PORTS_MAX",
          value_parser = clap::value_parser!(u32).range(1..=1 << 19))]
    pub ports_max: u32,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,isthmus_relay=debug
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "ISTHMUS_LOG", value_parser = log_filter)]
    pub log: String,
    /// How the log's lines look: for people, or an object of JSON each
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, env = "ISTHMUS_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// TCP congestion control of all sockets [default: the system's]
    #[arg(long, value_name = "NAME", env = "ISTHMUS_CONGESTION")]
    pub congestion: Option<String>,
    /// While payload moves, poll for this long (50us, at most 1ms) before sleeping: less delay for a core's time, where
    /// cores are to spare and the mediator polls too; 0 is off
    #[arg(long, value_name = "TIME", default_value = "0", env = "ISTHMUS_BUSY_POLL", value_parser = busy_poll)]
    pub busy_poll: Duration,
}

impl Config {
    /// Every port to publish, by itself.
    pub fn publishes(&self) -> impl Iterator<Item = &Publish> {
        self.publish.iter().flat_map(|spec| spec.publishes())
    }

    /// Where session records go, if anywhere.
    pub fn records(&self) -> Option<RecordsConfig> {
        Some(RecordsConfig {
            path: self.records.clone()?,
            size_max: u64::from(self.records_mib_max) << 20,
            files_max: self.records_files_max,
        })
    }

    /// Where the stats socket is.
    pub fn stats_socket_path(&self) -> PathBuf {
        self.stats_socket.clone().unwrap_or_else(|| default_stats_socket(&self.state))
    }

    /// What of it decides whom to trust.
    pub fn trust(&self) -> TrustOptions {
        let Self { plaintext, jwks, client_ca, .. } = self;
        TrustOptions { plaintext: *plaintext, jwks: jwks.clone(), client_ca: client_ca.clone() }
    }

    /// What no single flag's parser can see.
    fn check(&self, cores: usize) -> Result<(), String> {
        if !self.busy_poll.is_zero() && self.shards > cores {
            let shards = self.shards;
            return Err(format!(
                "--busy-poll: {shards} shards on {cores} cores would poll in each other's way; give at most --shards {cores}, \
                 or leave --busy-poll off"
            ));
        }
        Names::new(self.name.clone())?;
        if self.names.is_empty() && !self.name.is_empty() {
            return Err("--name: on which port? give --names ADDR:PORT too, as in --names 0.0.0.0:443".into());
        }
        crate::http::check_exposure(self.http, self.http_token_file.as_ref())?;
        let mut seen = HashSet::new();
        for publish in self.publishes() {
            // Port 0 means a free one each time, so two of them do not collide.
            if publish.listen.port() != 0 && !seen.insert((publish.proto, publish.listen)) {
                return Err(format!("--publish names {}:{} twice", publish.proto, publish.listen));
            }
        }
        let mut seen = HashSet::new();
        if let Some(expose) = self.expose.iter().find(|expose| !seen.insert(&expose.server)) {
            return Err(format!("--expose names {} twice", expose.server));
        }
        if self.expose.len() > EXPOSES_MAX {
            return Err(format!("--expose: these are more than {EXPOSES_MAX} services"));
        }
        Ok(())
    }
}

/// A network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| "write an address or a network such as 192.0.2.0/24".into())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(SHARDS_MAX as usize))
}

fn shard_count(text: &str) -> Result<usize, String> {
    match text.parse::<i64>() {
        Ok(count @ 1..=SHARDS_MAX) => Ok(count as usize),
        _ => Err(format!("write a number from 1 to {SHARDS_MAX}")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let value = humantime::parse_duration(text).map_err(|_| "write a time such as 20s, 1500ms or 2m".to_owned())?;
    if (DURATION_MIN..=DURATION_MAX).contains(&value) { Ok(value) } else { Err("it must be from 100ms to 1day".into()) }
}

fn busy_poll(text: &str) -> Result<Duration, String> {
    match if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(text) } {
        Ok(spell) if spell <= BUSY_POLL_MAX => Ok(spell),
        _ => Err("write a time of at most 1ms, such as 50us, or 0 for none".into()),
    }
}

fn log_filter(text: &str) -> Result<String, String> {
    crate::log::check(text).map(|_| text.to_owned())
}

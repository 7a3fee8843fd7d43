//! The command line, and the environment's settings.

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use isthmus_proto::ask::{Ask, PortAsk};
use isthmus_proto::door::name::HostName;
use isthmus_proto::hello::Offer;
use isthmus_proto::limits::ASKS_MAX;
use isthmus_proto::policy::AllowRule;
use isthmus_proto::record::{BadPin, parse_pin};
use isthmus_ring::BUSY_POLL_MAX;
use isthmus_service::{LogFormat, Pages};
use isthmus_settings::Rules;
use tracing::level_filters::LevelFilter;

use crate::asking::{self, ASKS_LEN_MAX};
use crate::audit::AuditTarget;
use crate::enroll::EnrollArgs;
use crate::offer::{self, OFFERS_MAX};
use crate::resolve::{BadHostPort, HostPort};
use crate::token::{TokenError, TokenSource};

/// Most `--allow` rules.
pub const RULES_MAX: usize = 64;

/// Longest `--service` text in bytes.
pub const SERVICE_LEN_MAX: usize = 256;

/// Longest name of a congestion control: the kernel's TCP_CA_NAME_MAX less the final zero (linux/tcp.h).
const CONGESTION_LEN_MAX: usize = 15;

/// What the mediator runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The relay's service port.
    pub relay: HostPort,
    /// How the relay proves itself.
    pub trust: Trust,
    /// Where the token comes from; read again at each connection, so that it can be renewed in place.
    pub token: TokenSource,
    /// The mediator's certificate and private key (PEM), where they take the token's place.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Where each operation is written down.
    pub audit: Option<AuditTarget>,
    /// The owner's rules; none for the default policy.
    pub allow: Vec<AllowRule>,
    /// UDP channels to ask for, 0 to 16.
    pub udp_channels: u8,
    /// The service that the owner wishes to use.
    pub service: String,
    /// What it offers by name, for the relay's named routes.
    pub offers: Vec<Offer>,
    /// What it asks the relay for: ports, then names.
    pub asks: Vec<Ask>,
    /// TCP congestion control of the mediator's sockets; the system's default if none.
    pub congestion: Option<String>,
    /// How long to poll before sleeping, while payload moves; zero for never.
    pub busy_poll: Duration,
    /// Least important level that is logged.
    pub log: LevelFilter,
    /// How its lines look.
    pub log_format: LogFormat,
}

/// How the relay proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// By a certificate with this SHA-256 over its DER form.
    Pin([u8; 32]),
    /// By a certificate that one of this PEM file's authorities signed for the relay's name.
    Ca(PathBuf),
    /// Not at all: no TLS. For benchmarks and closed networks.
    Plaintext,
}

/// The settings cannot be used; the text names the flag and the cure.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No relay is given.
    #[error("which relay? give --relay HOST:PORT or set ISTHMUS_RELAY")]
    NoRelay,
    /// The relay's address is none.
    #[error("--relay (or ISTHMUS_RELAY): {0}")]
    BadRelay(#[from] BadHostPort),
    /// Nothing says how the relay proves itself.
    #[error(
        "how does the relay prove itself? give --pin FINGERPRINT (`isthmus-relay fingerprint` prints it), set ISTHMUS_PIN, \
         or give --ca FILE"
    )]
    NoTrust,
    /// The fingerprint is none.
    #[error("--pin (or ISTHMUS_PIN): {0}")]
    BadPin(#[from] BadPin),
    /// The authorities' file cannot be opened.
    #[error("--ca: cannot read {}: {error}; give the relay's ca.pem", path.display())]
    BadCa {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// No token is given.
    #[error(
        "who is this? give --token-file FILE or --token TOKEN, or set ISTHMUS_TOKEN (`isthmus-relay token --mediator ID` makes \
         one), or give --cert FILE and --key FILE"
    )]
    NoToken,
    /// A certificate without TLS.
    #[error("--cert proves nothing without TLS; leave --plaintext off, or give a token instead")]
    CertificateInPlaintext,
    /// The token cannot be used.
    #[error(transparent)]
    BadToken(#[from] TokenError),
    /// Too many rules.
    #[error("--allow: {0} rules, but at most {RULES_MAX} are possible; join neighbouring networks")]
    TooManyRules(usize),
    /// Too many offers.
    #[error(
        "--offer: {0} offers, but at most {OFFERS_MAX} are possible; the relay's --name can give the hosts instead"
    )]
    TooManyOffers(usize),
    /// Too much is asked for.
    #[error("--ask-publish and --ask-name: {0} in all, but at most {ASKS_MAX} are possible; leave some out")]
    TooManyAsks(usize),
    /// What is asked for does not fit a report.
    #[error("--ask-publish and --ask-name: {0} bytes of text, but at most {ASKS_LEN_MAX} are possible; leave some out")]
    AsksTooLong(usize),
    /// The same is asked for twice.
    #[error("--ask-publish or --ask-name: {0} is asked for twice; leave one out")]
    AskedTwice(String),
    /// The service's description cannot be sent.
    #[error("--service: at most {SERVICE_LEN_MAX} bytes without control characters; shorten the text")]
    BadService,
    /// Not the name of a congestion control.
    #[error("--congestion: '{0}' is no name; see /proc/sys/net/ipv4/tcp_allowed_congestion_control for those possible")]
    BadCongestion(String),
    /// No time, or too long a one.
    #[error(
        "--busy-poll (or ISTHMUS_BUSY_POLL): '{0}' is no time of at most 1ms; write one such as 50us, or 0 for none"
    )]
    BadBusyPoll(String),
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run the mediator.
    Run(Box<Config>),
    /// Set one up.
    Enroll(EnrollArgs),
    /// Look whether all is well with these settings.
    Doctor(Box<Config>, DoctorArgs),
    /// Completions, man pages.
    Pages(Pages),
}

impl Config {
    /// From this process's command line and environment; help, version and misspelt flags end the process as
    /// command lines do (0 or 2).
    ///
    /// # Errors
    /// Whatever cannot be used. The token is read once, so that a bad one shows at the start.
    pub fn from_process() -> Result<Invocation, ConfigError> {
        let mut args: Args = isthmus_settings::parse(std::env::args_os(), RULES).unwrap_or_else(|error| error.exit());
        let command = args.command.take();
        match command {
            Some(Sub::Enroll(_) | Sub::Pages(_)) if began_with_flags() => {
                let text = "flags before this word do nothing; leave them out";
                Args::command().error(ErrorKind::ArgumentConflict, text).exit()
            }
            Some(Sub::Enroll(args)) => Ok(Invocation::Enroll(args)),
            Some(Sub::Pages(pages)) => Ok(Invocation::Pages(pages)),
            Some(Sub::Doctor(doctor)) => {
                let config = Self::resolve(args, |name| std::env::var_os(name))?;
                Ok(Invocation::Doctor(Box::new(config), doctor))
            }
            None => {
                let config = Self::resolve(args, |name| std::env::var_os(name))?;
                Ok(Invocation::Run(Box::new(config)))
            }
        }
    }

    /// [`Config::from_process`] for a process that runs with a [`Config`]: errors do not end it.
    ///
    /// # Errors
    /// Whatever cannot be used.
    pub(crate) fn reread() -> Result<Self, String> {
        let args: Args = isthmus_settings::parse(std::env::args_os(), RULES).map_err(|error| {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            text.split("\n\n").next().unwrap_or(text).trim().to_owned()
        })?;
        Self::resolve(args, |name| std::env::var_os(name)).map_err(|error| error.to_string())
    }

    /// The command line wins over the environment; an empty variable counts as none.
    fn resolve(args: Args, environment: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let variable = |name: &str| {
            let value = environment(name)?.to_string_lossy().trim().to_owned();
            Some(value).filter(|value| !value.is_empty())
        };
        let relay = args.relay.or_else(|| variable("ISTHMUS_RELAY")).ok_or(ConfigError::NoRelay)?.parse()?;
        let trust = match (args.plaintext, args.pin, args.ca) {
            (true, ..) => Trust::Plaintext,
            (false, Some(pin), _) => Trust::Pin(parse_pin(&pin)?),
            (false, None, Some(ca)) => Trust::Ca(readable(ca)?),
            (false, None, None) => Trust::Pin(parse_pin(&variable("ISTHMUS_PIN").ok_or(ConfigError::NoTrust)?)?),
        };
        let identity = args.cert.zip(args.key);
        if identity.is_some() && trust == Trust::Plaintext {
            return Err(ConfigError::CertificateInPlaintext);
        }
        let token = match (args.token, args.token_file, &identity) {
            (Some(text), ..) => TokenSource::Text(text),
            (None, Some(path), _) => TokenSource::File(path),
            (None, None, Some((cert, _))) => TokenSource::Certificate(cert.clone()),
            (None, None, None) => TokenSource::Text(variable("ISTHMUS_TOKEN").ok_or(ConfigError::NoToken)?),
        };
        token.load()?;
        if args.allow.len() > RULES_MAX {
            return Err(ConfigError::TooManyRules(args.allow.len()));
        }
        if args.offers.len() > OFFERS_MAX {
            return Err(ConfigError::TooManyOffers(args.offers.len()));
        }
        let asks: Vec<Ask> =
            args.ask_publish.into_iter().map(Ask::Port).chain(args.ask_name.into_iter().map(Ask::Name)).collect();
        asking::check(&asks)?;
        if args.service.len() > SERVICE_LEN_MAX || args.service.chars().any(char::is_control) {
            return Err(ConfigError::BadService);
        }
        if let Some(name) = args.congestion.as_ref().filter(|name| !is_congestion_name(name)) {
            return Err(ConfigError::BadCongestion(name.clone()));
        }
        let busy_poll = args.busy_poll.or_else(|| variable("ISTHMUS_BUSY_POLL"));
        Ok(Self {
            relay,
            trust,
            token,
            identity,
            audit: args.audit,
            allow: args.allow,
            udp_channels: args.udp_channels,
            service: args.service,
            offers: args.offers,
            asks,
            congestion: args.congestion,
            busy_poll: busy_poll.map_or(Ok(Duration::ZERO), parse_busy_poll)?,
            log: args.log,
            log_format: args.log_format,
        })
    }
}

/// Whether the process's first word is a flag.
fn began_with_flags() -> bool {
    std::env::args_os().nth(1).is_some_and(|word| word.to_string_lossy().starts_with('-'))
}

/// Arguments of `doctor`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DoctorArgs {
    /// For programs: one JSON object
    #[arg(long)]
    pub json: bool,
    /// Wait this long to see whether the NAT keeps a UDP binding that says nothing: 30s, 2m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub nat_silence: Option<Duration>,
}

/// Whoever knows the token is the mediator.
const RULES: Rules = Rules { secrets: &["token"], alternatives: &[], subcommands: &["doctor"] };

const EXAMPLES: &str = "\
Examples:
  isthmus-agent enroll LINE
  isthmus-agent --config /etc/isthmus/agent.toml
  isthmus-agent --relay relay.example.net:4470 --pin FINGERPRINT --token-file ./token --allow 10.0.0.0/24:80-443
  isthmus-agent --config /etc/isthmus/agent.toml doctor";

/// Lends this machine's network to terminals, through a relay, within what you allow.
#[derive(Parser)]
#[command(name = "isthmus-agent", version, after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    command: Option<Sub>,

    /// Settings from this TOML file: a key for each flag, of its name; flags and environment count more [env: ISTHMUS_CONFIG]
    #[arg(long = "config", value_name = "FILE")]
    _file: Option<PathBuf>,

    /// The relay's service port [env: ISTHMUS_RELAY]
    #[arg(long, value_name = "HOST:PORT")]
    relay: Option<String>,

    /// Fingerprint of the relay's certificate, as `isthmus-relay fingerprint` prints it [env: ISTHMUS_PIN]
    #[arg(long, value_name = "FINGERPRINT", conflicts_with = "ca")]
    pin: Option<String>,

    /// PEM file of the authority that signed the relay's certificate, instead of a fingerprint
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// The mediator's token; other users of this machine can see it on the command line [env: ISTHMUS_TOKEN]
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,

    /// File with the mediator's token, read again at each connection
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// PEM file of the mediator's certificate, in place of a token; the relay has --client-ca then
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with_all = ["token", "token_file"])]
    cert: Option<PathBuf>,

    /// PEM file of that certificate's private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// Write down each operation that is carried out or refused, and for whom: a JSON object a line; - for standard output
    #[arg(long, value_name = "FILE|-")]
    audit: Option<AuditTarget>,

    /// Destinations that may be reached, instead of the attached subnets: 10.0.0.0/8, 192.168.1.5:22, [fd00::/8]:80-90,
    /// *:443. A rule that covers loopback (as * does) opens this machine's own services. May be repeated
    #[arg(long, value_name = "CIDR[:PORTS]")]
    allow: Vec<AllowRule>,

    /// UDP channels to the relay; 0 for none
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=CHANNELS_MAX))]
    udp_channels: u8,

    /// No TLS: for benchmarks and closed networks; the relay must have it too
    #[arg(long, conflicts_with_all = ["pin", "ca"])]
    plaintext: bool,

    /// The service that you wish to use, in your own words
    #[arg(long, value_name = "TEXT", default_value = "")]
    service: String,

    /// Where the relay's visitors of a name are led, if the relay leaves it to you: www.example.net=10.0.0.5:443, or
    /// 10.0.0.5:443 for every name that it leads here. Only what --allow covers is reached. May be repeated
    #[arg(long = "offer", value_name = "[NAME=]HOST:PORT", value_parser = offer::parse)]
    offers: Vec<Offer>,

    /// Ask the relay to publish a port that leads here, which its --allow-publish has to cover: tcp:8080=10.0.0.5:80,
    /// udp:192.0.2.1:53=10.0.0.5:53; ,proxy=v2 tells the host who visits. Only what --allow covers is reached. May be repeated
    #[arg(long, value_name = "PROTO:[ADDR:]PORT=HOST:PORT")]
    ask_publish: Vec<PortAsk>,

    /// Ask the relay to lead visitors of this name here, which its --allow-name has to cover; --offer says to which host.
    /// May be repeated
    #[arg(long, value_name = "NAME")]
    ask_name: Vec<HostName>,

    /// TCP congestion control of this program's sockets, such as cubic; the system's default if not given
    #[arg(long, value_name = "NAME")]
    congestion: Option<String>,

    /// While payload moves, poll for this long (50us, at most 1ms) before sleeping: less delay for a core's time, where
    /// cores are to spare and the relay polls too; 0 is off [env: ISTHMUS_BUSY_POLL] [default: 0]
    #[arg(long, value_name = "TIME")]
    busy_poll: Option<String>,

    /// What is logged
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = level_parser())]
    log: LevelFilter,

    /// How the log's lines look: for people, or an object of JSON each
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, env = "ISTHMUS_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Sub {
    /// Set this mediator up with the line that `isthmus-relay enroll MEDIATOR` printed
    #[command(after_help = "Example:\n  isthmus-agent enroll LINE")]
    Enroll(EnrollArgs),
    /// Look whether this machine and these settings let the mediator run well; its flags go before this word. The exit code is
    /// 0 if they do, 1 after warnings, 2 after errors
    #[command(
        after_help = "Examples:\n  isthmus-agent --config FILE doctor\n  isthmus-agent --config FILE doctor --nat-silence 1m"
    )]
    Doctor(DoctorArgs),
    #[command(flatten)]
    Pages(Pages),
}

/// Prints or writes completions or man pages.
///
/// # Errors
/// They cannot be written.
pub fn pages(pages: &Pages) -> io::Result<()> {
    pages.run::<Args>()
}

const CHANNELS_MAX: i64 = isthmus_proto::limits::CHANNELS_MAX as i64;

fn level_parser() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
        .try_map(|level| LevelFilter::from_str(&level))
}

fn readable(path: PathBuf) -> Result<PathBuf, ConfigError> {
    let read = File::open(&path).and_then(|mut file| file.read(&mut [0]));
    match read {
        Ok(_) => Ok(path),
        Err(error) => Err(ConfigError::BadCa { path, error }),
    }
}

fn parse_busy_poll(text: String) -> Result<Duration, ConfigError> {
    match if text == "0" { Ok(Duration::ZERO) } else { humantime::parse_duration(&text) } {
        Ok(spell) if spell <= BUSY_POLL_MAX => Ok(spell),
        _ => Err(ConfigError::BadBusyPoll(text)),
    }
}

fn is_congestion_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !text.is_empty() && text.len() <= CONGESTION_LEN_MAX && text.bytes().all(good)
}

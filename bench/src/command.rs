//! The command line.

mod compare;
mod loads;
mod results;
mod works;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use isthmus_bench::load::preface::Target;
use isthmus_bench::names::{self, Names};
use isthmus_bench::usage::Watched;
use isthmus_bench::{load, operate, peer, simulate};
use isthmus_proto::limits::CHANNELS_MAX;
use isthmus_proto::record;
use isthmus_relay::trust::State;

/// Longest measured time or hold in seconds: a day.
const SECONDS_MAX: u64 = 24 * 60 * 60;

/// Load for relays and mediators. Each result is one line of key=value words.
#[derive(Debug, Parser)]
#[command(name = "isthmus-bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Simulate many mediators; prints a line when all are up, one each time that they are again, and one at the end
    Mediators(Mediators),
    /// One operation (open, connect, bytes and their echo) through each of many mediators
    Operate(Operate),
    /// Bulk TCP to a sink, or to what leads to one
    Tcp(Tcp),
    /// Datagrams to a sink, or to what leads to one, and their echoes
    Udp(Udp),
    /// New connections to a sink, or to what leads to one
    Setup(loads::Setup),
    /// Small messages to a sink, or to what leads to one, and their echoes
    Pingpong(loads::Pingpong),
    /// What idle tunnels cost the relay, in network namespaces; needs root, as do the next five
    Idle(works::Idle),
    /// All mediators come back after the relay's kill -9
    Storm(works::Storm),
    /// What bulk does to a ping-pong and datagrams, on the same tunnel and on others
    Mixed(works::Mixed),
    /// What idle neighbours cost those that are active
    Share(works::Share),
    /// Thousands of UDP flows, and thousands of mediators with a flow each
    Flows(works::Flows),
    /// What SOCKS5 and names cost by a plain published port, and ten thousand names by one
    Doors(works::Doors),
    /// A run's JSON as a page
    Report(results::Render),
    /// Two runs' JSON compared
    Diff(results::Diff),
    /// The other end of all four loads; prints 'ready ADDR:PORT'
    Sink(Sink),
    /// The same work on Isthmus, its peers and the ceilings, in network namespaces; needs root
    Compare(compare::Compare),
    /// The private side of coturn: holds a relayed address and echoes; prints 'ready ADDR:PORT'
    #[command(hide = true)]
    TurnEcho(compare::TurnEcho),
    /// One end of the two plain hops; prints 'ready'
    #[command(hide = true)]
    PlainHop(compare::PlainHop),
}

#[derive(Debug, Args)]
struct Relay {
    /// The relay's service port
    #[arg(long, value_name = "HOST:PORT", env = "ISTHMUS_RELAY")]
    relay: String,
    /// Fingerprint of the relay's certificate
    #[arg(long, value_name = "FINGERPRINT", env = "ISTHMUS_PIN", required_unless_present = "plaintext")]
    pin: Option<String>,
    /// No TLS; the relay must want it too
    #[arg(long, conflicts_with = "pin")]
    plaintext: bool,
}

#[derive(Debug, Args)]
struct Mediators {
    #[command(flatten)]
    relay: Relay,
    /// The relay's state directory: its key signs their tokens
    #[arg(long, value_name = "DIR", env = "ISTHMUS_STATE")]
    state: PathBuf,
    /// How many
    #[arg(long, value_name = "N")]
    count: usize,
    /// Their names are PREFIX and a number
    #[arg(long, default_value = "m")]
    prefix: String,
    /// The first number, where several processes share the work
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: usize,
    /// UDP channels of each; a descriptor each
    #[arg(long, value_name = "K", default_value_t = 2, value_parser = value_parser!(u8).range(0..=i64::from(CHANNELS_MAX)))]
    udp_channels: u8,
    /// Maintain UDP channels as mediators do that have learned all of their gateways' bindings, instead of as new ones
    #[arg(long)]
    learned: bool,
    /// Keep none of the relay's tickets: each handshake is a whole one
    #[arg(long)]
    no_tickets: bool,
    /// Handshakes at once
    #[arg(long, value_name = "M", default_value_t = 64)]
    connect_at_once: usize,
    /// Their source addresses, for more than one has port numbers; on loopback, any network of 127.0.0.0/8
    #[arg(long, value_name = "ADDR/LEN")]
    source: Option<ipnet::Ipv4Net>,
    /// Fewest event loops, each with a ring and a thread; each holds at most 16,000
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=1024))]
    rings: u16,
    /// What they say to a request to connect
    #[arg(long, value_enum, default_value_t = Answer::Echo)]
    answer: Answer,
    /// Seconds until all must be up
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = value_parser!(u64).range(1..=SECONDS_MAX))]
    patience: u64,
    /// Seconds to stay then [default: until the process is ended]
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u64).range(0..=SECONDS_MAX))]
    hold: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Answer {
    /// Every destination is an echo service
    Echo,
    /// Every destination is a sink of the loads
    Sink,
    /// Every destination refuses
    Refuse,
}

#[derive(Debug, Args)]
struct Operate {
    #[command(flatten)]
    relay: Relay,
    /// A terminal's token
    #[arg(long, value_name = "TOKEN", env = "ISTHMUS_TOKEN", hide_env_values = true)]
    token: String,
    /// Through which: a,b,c or PREFIX:COUNT, or all that the token names and that are connected
    #[arg(long, value_name = "NAMES", default_value = "all")]
    mediators: Names,
    /// Operations at once
    #[arg(long, value_name = "M", default_value_t = 64)]
    at_once: usize,
    /// Where each connects to; simulated mediators answer for every destination
    #[arg(long, value_name = "IP:PORT", default_value = "10.0.0.1:7")]
    to: SocketAddr,
    /// Bytes that must come back
    #[arg(long, value_name = "N", default_value_t = 1024)]
    bytes: usize,
    /// Seconds that one operation may take
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = value_parser!(u64).range(1..=3600))]
    patience: u64,
}

#[derive(Debug, Args)]
struct Tcp {
    /// The sink, or a door that leads to it: a SOCKS5 port, which is asked for a destination, or a port of names, which is sent
    /// a ClientHello for one; the streams take turns with several
    #[arg(long, value_name = "HOST:PORT[,socks5=IP:PORT|,tls=NAME]", required = true)]
    to: Vec<Target>,
    /// Streams at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=1024))]
    streams: u16,
    /// Seconds that are measured
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Milliseconds before, that are not
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = value_parser!(u64).range(..=SECONDS_MAX * 1000))]
    warm_up_ms: u64,
    /// up: to the sink
    #[arg(long, value_enum, default_value_t = Direction::Up)]
    direction: Direction,
    /// Report the CPU time of a process, too
    #[arg(long = "cpu", value_name = "NAME=PID")]
    watched: Vec<Watched>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Direction {
    Up,
    Down,
}

#[derive(Debug, Args)]
struct Udp {
    /// The sink; the flows take turns with several
    #[arg(long, value_name = "HOST:PORT", required = true)]
    to: Vec<String>,
    /// Payload bytes of each datagram
    #[arg(long, value_name = "B", default_value_t = 200)]
    size: usize,
    /// Seconds that are measured
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Datagrams a second, or max: search for the highest rate with less than 0.5 % of loss
    #[arg(long, value_name = "R", default_value = "max")]
    rate: Rate,
    /// Sockets
    #[arg(long, value_name = "F", default_value_t = 1)]
    flows: usize,
    /// The first socket's own port number, the others follow; a load that is repeated finds its flows again [default: any]
    #[arg(long, value_name = "PORT", value_parser = value_parser!(u16).range(1024..))]
    from_port: Option<u16>,
    /// Datagrams of one send call
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Report the CPU time of a process, too
    #[arg(long = "cpu", value_name = "NAME=PID")]
    watched: Vec<Watched>,
}

#[derive(Clone, Copy, Debug)]
enum Rate {
    Max,
    Fixed(u32),
}

impl std::str::FromStr for Rate {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse()) {
            ("max", _) => Ok(Self::Max),
            (_, Ok(rate)) if (1..=10_000_000).contains(&rate) => Ok(Self::Fixed(rate)),
            _ => Err("write datagrams a second, from 1 to 10000000, or max"),
        }
    }
}

#[derive(Debug, Args)]
struct Sink {
    /// Where to listen, TCP and UDP
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

impl Cli {
    /// Does what the command line asks for.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Mediators(args) => mediators(args),
            Command::Operate(args) => operate(&args),
            Command::Tcp(args) => tcp(args),
            Command::Udp(args) => udp(args),
            Command::Compare(args) => compare::compare(args),
            Command::TurnEcho(args) => compare::turn_echo(&args),
            Command::PlainHop(args) => compare::plain_hop(&args),
            Command::Setup(args) => loads::setup(args),
            Command::Pingpong(args) => loads::pingpong(args),
            Command::Idle(args) => works::idle(&args),
            Command::Storm(args) => works::storm(&args),
            Command::Mixed(args) => works::mixed(&args),
            Command::Share(args) => works::share(&args),
            Command::Flows(args) => works::flows(&args),
            Command::Doors(args) => works::doors(&args),
            Command::Report(args) => results::render(&args),
            Command::Diff(args) => results::diff(&args),
            Command::Sink(args) => {
                peer::serve(args.listen, |listen| println!("ready {listen}")).map(|()| ExitCode::SUCCESS)
            }
        }
    }
}

fn mediators(args: Mediators) -> anyhow::Result<ExitCode> {
    let tls = match &args.relay.pin {
        Some(pin) => Some(record::client_config(record::Trust::Pin(record::parse_pin(pin)?))?),
        None => None,
    };
    let settings = simulate::Settings {
        relay: resolve(&args.relay.relay)?,
        tls,
        tokens: State::open(&args.state)?.tokens().clone(),
        names: names::numbered(&args.prefix, args.first, args.count).map_err(|text| anyhow!(text))?,
        sources: args.source,
        rings: args.rings.into(),
        udp_channels: args.udp_channels,
        learned: args.learned,
        tickets: !args.no_tickets,
        at_once: args.connect_at_once,
        answer: match args.answer {
            Answer::Echo => simulate::Answer::Echo,
            Answer::Sink => simulate::Answer::Sink,
            Answer::Refuse => simulate::Answer::Refuse,
        },
        patience: Duration::from_secs(args.patience),
        hold: args.hold.map(Duration::from_secs),
    };
    let count = settings.names.len();
    let mut up_before = false;
    let figures = simulate::run(settings, |figures| {
        println!("{} {}", if up_before { "back" } else { "ready" }, figures.line());
        up_before = true;
    })?;
    println!("{}", figures.line());
    Ok(if figures.up == count { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn operate(args: &Operate) -> anyhow::Result<ExitCode> {
    use isthmus_terminal::{Config, Trust};
    let trust = match &args.relay.pin {
        Some(pin) => Trust::pin(pin)?,
        None => Trust::Plaintext,
    };
    isthmus_bench::usage::raise_descriptors(args.at_once as u64 + 64)?;
    let patience = Duration::from_secs(args.patience);
    let config = Config::new(&args.relay.relay, trust, &args.token).udp_channels(0).handshake_timeout(patience);
    let settings = operate::Settings {
        config: config.connect_timeout(patience),
        mediators: args.mediators.clone(),
        at_once: args.at_once,
        to: args.to,
        bytes: args.bytes,
        patience,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut outcome = runtime.block_on(operate::run(&settings))?;
    println!("{}", outcome.line());
    for (why, count) in &outcome.failed {
        eprintln!("{count} failed: {why}");
    }
    Ok(if outcome.answered == outcome.asked { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tcp(args: Tcp) -> anyhow::Result<ExitCode> {
    let line = load::tcp::run(&load::tcp::Settings {
        to: args.to,
        streams: args.streams.into(),
        measured: Duration::from_secs(args.seconds),
        warm_up: Duration::from_millis(args.warm_up_ms),
        up: args.direction == Direction::Up,
        watched: args.watched,
    })?;
    println!("{line}");
    Ok(ExitCode::SUCCESS)
}

fn udp(args: Udp) -> anyhow::Result<ExitCode> {
    let mut client = load::udp::Client::new(load::udp::Settings {
        to: resolve_all(&args.to)?,
        size: args.size,
        flows: args.flows,
        from_port: args.from_port,
        batch: args.batch,
        measured: Duration::from_secs(args.seconds),
        watched: args.watched,
    })?;
    let line = match args.rate {
        Rate::Max => load::search::highest(&mut client)?,
        Rate::Fixed(rate) => client.measure(rate.into())?.1,
    };
    println!("{line}");
    Ok(ExitCode::SUCCESS)
}

fn resolve_all(texts: &[String]) -> anyhow::Result<Vec<SocketAddr>> {
    texts.iter().map(|text| resolve(text)).collect()
}

fn resolve(text: &str) -> anyhow::Result<SocketAddr> {
    let mut addresses = text.to_socket_addrs().with_context(|| format!("'{text}' is no HOST:PORT that is known"))?;
    addresses.next().with_context(|| format!("'{text}' has no address"))
}

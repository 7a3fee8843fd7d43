//! The arguments of the subcommands.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use isthmus_proto::MediatorId;
use isthmus_proto::policy::AllowRule;

use crate::trust::{Glob, Operation};

/// `token`: an action, or the arguments of a new one.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct TokenCli {
    #[command(subcommand)]
    pub(super) action: Option<KeyAction>,
    #[command(flatten)]
    pub(super) issue: Option<TokenArgs>,
}

/// What `token` does with the keys and the revocation list.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyAction {
    /// Make a new key that signs; the older ones go on verifying
    #[command(after_help = "Examples:\n  isthmus-relay token rotate --state ./state")]
    Rotate(StateDir),
    /// List the keys
    #[command(after_help = "Examples:\n  isthmus-relay token keys --state ./state")]
    Keys(StateDir),
    /// Remove a key that verifies: what it signed is good no more, and its sessions end
    #[command(after_help = "Examples:\n  isthmus-relay token retire --state ./state KID")]
    Retire {
        /// Where.
        #[command(flatten)]
        at: StateDir,
        /// The key, as 'token keys' lists it
        #[arg(value_name = "KID")]
        kid: String,
    },
    /// Take back a token, or all that a mediator or a terminal was issued so far; their sessions end
    #[command(
        after_help = "Examples:\n  isthmus-relay token revoke --state ./state --mediator cpe\n  isthmus-relay token revoke --state ./state JTI"
    )]
    Revoke(RevokeArgs),
    /// Print the revocation list
    #[command(after_help = "Examples:\n  isthmus-relay token revoked --state ./state")]
    Revoked(StateDir),
}

/// A state directory.
#[derive(Clone, Debug, Args)]
pub struct StateDir {
    /// Directory of the keys
    #[arg(long, value_name = "DIR", env = "ISTHMUS_STATE")]
    pub state: PathBuf,
}

/// Arguments of `token revoke`.
#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("revoked").required(true).args(["jti", "certificate", "mediator", "terminal"]))]
pub struct RevokeArgs {
    /// Where.
    #[command(flatten)]
    pub at: StateDir,
    /// The token's identifier, or the token itself
    #[arg(value_name = "JTI")]
    pub jti: Option<String>,
    /// The certificate in this file (PEM), whatever its signature is made to look like
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// All that this mediator was issued so far
    #[arg(long, value_name = "ID")]
    pub mediator: Option<MediatorId>,
    /// All that this terminal was issued so far
    #[arg(long, value_name = "NAME", value_parser = terminal_name)]
    pub terminal: Option<String>,
    /// Drop the entry after this time, when what it revokes has ended anyway [default: with the token or certificate
    /// that is given whole, else never]
    #[arg(long, value_name = "TIME", value_parser = time_to_live)]
    pub keep: Option<Duration>,
}

/// Arguments of `enroll`.
#[derive(Clone, Debug, Args)]
pub struct EnrollArgs {
    /// The mediator's name
    #[arg(value_name = "MEDIATOR")]
    pub mediator: MediatorId,
    /// Directory of the keys; made if it is absent
    #[arg(long, value_name = "DIR", env = "ISTHMUS_STATE")]
    pub state: PathBuf,
    /// Where the mediator reaches this relay's service port
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    pub address: String,
    /// What the mediator shall allow [default: the subnets that it is attached to]
    #[arg(long, value_name = "CIDR[:PORTS]", value_delimiter = ',')]
    pub allow: Vec<AllowRule>,
    /// How long its token is good
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = time_to_live)]
    pub ttl: Duration,
}

/// Arguments of `token`.
#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("holder").required(true).args(["mediator", "terminal"]))]
pub struct TokenArgs {
    /// Directory of the keys; made if it is absent
    #[arg(long, value_name = "DIR", env = "ISTHMUS_STATE")]
    pub state: PathBuf,
    /// Issue to this mediator
    #[arg(long, value_name = "ID")]
    pub mediator: Option<MediatorId>,
    /// Issue to a terminal of this name
    #[arg(long, value_name = "NAME", requires = "mediators", value_parser = terminal_name)]
    pub terminal: Option<String>,
    /// The mediators that the terminal may use; * and ? match
    #[arg(long, value_name = "GLOB", requires = "terminal")]
    pub mediators: Option<Glob>,
    /// What the terminal may do [default: everything]
    #[arg(long, value_name = "OP", value_delimiter = ',', requires = "terminal")]
    pub allow: Vec<Operation>,
    /// Where the terminal may go through a mediator [default: anywhere that the mediator allows]
    #[arg(long, value_name = "CIDR[:PORTS]", value_delimiter = ',', requires = "terminal")]
    pub to: Vec<AllowRule>,
    /// How long the token is good
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = time_to_live)]
    pub ttl: Duration,
}

/// Arguments of `fingerprint`.
#[derive(Clone, Debug, Args)]
pub struct FingerprintArgs {
    /// Directory of the keys; made if it is absent
    #[arg(long, value_name = "DIR", env = "ISTHMUS_STATE")]
    pub state: PathBuf,
}

/// Arguments of `doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// For programs: one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ctl`.
#[derive(Clone, Debug, Args)]
pub struct CtlArgs {
    /// The relay's stats socket [default: that of --state, or else of the package's unit: /run/isthmus-relay/stats.sock]
    #[arg(long, value_name = "PATH", env = "ISTHMUS_STATS_SOCKET")]
    pub stats_socket: Option<PathBuf>,
    /// The relay's state directory, to find its stats socket
    #[arg(long, value_name = "DIR", env = "ISTHMUS_STATE")]
    pub state: Option<PathBuf>,
    /// The command, as in: show info; 'help' lists them
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// Where the package's unit keeps the stats socket.
const UNIT_RUNTIME_DIR: &str = "/run/isthmus-relay";

impl CtlArgs {
    /// Where the relay's stats socket is.
    pub fn stats_socket_path(&self) -> PathBuf {
        match (&self.stats_socket, &self.state) {
            (Some(path), _) => path.clone(),
            (None, Some(state)) => default_stats_socket(state),
            (None, None) => default_stats_socket(Path::new(UNIT_RUNTIME_DIR)),
        }
    }
}

pub(crate) fn default_stats_socket(state: &Path) -> PathBuf {
    state.join("stats.sock")
}

fn time_to_live(text: &str) -> Result<Duration, String> {
    let value = humantime::parse_duration(text).map_err(|_| "write a time such as 30d, 12h or 1year".to_owned())?;
    let century = Duration::from_secs(100 * 366 * 24 * 60 * 60);
    if (Duration::from_secs(1)..=century).contains(&value) {
        Ok(value)
    } else {
        Err("it must be from 1s to 100years".into())
    }
}

fn host_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty()
                && text.len() <= 261
                && port.parse::<u16>().is_ok_and(|port| port > 0)
                && !text.contains(|c: char| c.is_whitespace() || c.is_control())
                && (!host.contains(':') || host.starts_with('[') && host.ends_with(']')) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("write HOST:PORT; an IPv6 address stands in brackets: [2001:db8::1]:4470".into()),
    }
}

fn terminal_name(text: &str) -> Result<String, String> {
    if (1..=64).contains(&text.len()) && !text.contains(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("a terminal's name is 1 to 64 bytes without control characters".into())
    }
}

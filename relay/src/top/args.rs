//! The flags of `isthmus-relay top`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::column::Column;
use crate::config::default_stats_socket;

/// Arguments of `top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// The relay's stats socket
    #[arg(long, value_name = "PATH", env = "ISTHMUS_STATS_SOCKET", required_unless_present = "state")]
    pub stats_socket: Option<PathBuf>,
    /// The relay's state directory, to find its stats socket
    #[arg(long, value_name = "DIR", env = "ISTHMUS_STATE")]
    pub state: Option<PathBuf>,
    /// Time between two looks at the relay, from 1s to 1m
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// The list's order at the start: id, in, out, dgrams, ports, term, udp, rtt, age, idle, total, shard
    #[arg(long, value_name = "COLUMN", default_value = "out")]
    pub sort: Column,
    /// Show only mediators of this pattern, as with '/'
    #[arg(long, value_name = "GLOB", value_parser = filter)]
    pub filter: Option<String>,
    /// Print one picture as plain text, after two looks, and end
    #[arg(long)]
    pub once: bool,
}

impl TopArgs {
    /// Where the relay's stats socket is.
    pub fn stats_socket_path(&self) -> PathBuf {
        match (&self.stats_socket, &self.state) {
            (Some(path), _) => path.clone(),
            (None, state) => default_stats_socket(state.as_deref().unwrap_or(Path::new("."))),
        }
    }
}

/// Not below a second: each look costs the relay a page of rows.
fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if (Duration::from_secs(1)..=Duration::from_secs(60)).contains(&time) => Ok(time),
        _ => Err("write a time from 1s to 1m".to_owned()),
    }
}

fn filter(text: &str) -> Result<String, String> {
    super::ui::glob_of(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

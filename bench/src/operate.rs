//! One operation through each of many mediators: attach a terminal, open and connect, some bytes and their echo.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use isthmus_proto::MediatorId;
use isthmus_terminal::{Config, Mediator, Relay};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::names::Names;
use crate::report::{Line, Samples};

/// What to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Relay, trust and token.
    pub config: Config,
    /// Through which mediators.
    pub mediators: Names,
    /// Operations at once.
    pub at_once: usize,
    /// Where each connects to; simulated mediators answer for every destination.
    pub to: SocketAddr,
    /// Bytes that must come back.
    pub bytes: usize,
    /// How long one operation may take in all.
    pub patience: Duration,
}

/// What all operations came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations begun.
    pub asked: usize,
    /// Operations whose bytes came back.
    pub answered: usize,
    /// Why the others failed, and how many each.
    pub failed: BTreeMap<String, usize>,
    /// Times to attach: connection, TLS, greeting.
    pub attach: Samples,
    /// Times from the request to connect to the last echoed byte.
    pub echo: Samples,
    /// Time of all.
    pub time: Duration,
}

impl Outcome {
    /// As a line.
    pub fn line(&mut self) -> Line {
        let mut line = Line::default()
            .with("asked", self.asked)
            .with("answered", self.answered)
            .with("seconds", format_args!("{:.3}", self.time.as_secs_f64()))
            .with("rate", format_args!("{:.0}", self.answered as f64 / self.time.as_secs_f64().max(1e-9)));
        line.add_percentiles("attach", &self.attach);
        line.add_percentiles("echo", &self.echo);
        line
    }
}

/// Runs all operations. One that fails is counted.
///
/// # Errors
/// The relay does not list its mediators (`all`).
pub async fn run(settings: &Settings) -> anyhow::Result<Outcome> {
    let names = match &settings.mediators {
        Names::Given(names) => names.clone(),
        Names::All => {
            let relay = Relay::connect(&settings.config).await.context("cannot reach the relay")?;
            let list = relay.list().await.context("the relay does not list its mediators")?;
            list.into_iter().map(|summary| summary.id).collect()
        }
    };
    let started = Instant::now();
    let mut outcome = Outcome { asked: names.len(), ..Outcome::default() };
    let (mut names, mut running) = (names.into_iter(), JoinSet::new());
    loop {
        while running.len() < settings.at_once.max(1)
            && let Some(name) = names.next()
        {
            running.spawn(one(settings.clone(), name));
        }
        let Some(ended) = running.join_next().await else { break };
        match ended.context("an operation's task ended early")? {
            Ok((attach, echo)) => {
                outcome.answered += 1;
                outcome.attach.add(attach);
                outcome.echo.add(echo);
            }
            Err(error) => *outcome.failed.entry(format!("{error:#}")).or_default() += 1,
        }
    }
    outcome.time = started.elapsed();
    Ok(outcome)
}

async fn one(settings: Settings, name: MediatorId) -> anyhow::Result<(Duration, Duration)> {
    tokio::time::timeout(settings.patience, exchange(&settings, name)).await.context("it took too long")?
}

async fn exchange(settings: &Settings, name: MediatorId) -> anyhow::Result<(Duration, Duration)> {
    let started = Instant::now();
    let mediator = Mediator::attach(&settings.config, name).await.context("attach")?;
    let attached = Instant::now();
    let mut stream = mediator.connect(settings.to).await.context("connect")?;
    let sent: Vec<u8> = (0..settings.bytes).map(|n| (n % 251) as u8).collect();
    let mut echo = vec![0; sent.len()];
    let (mut reader, mut writer) = stream.split();
    let (written, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut echo));
    written.context("write")?;
    read.context("read")?;
    anyhow::ensure!(echo == sent, "other bytes came back");
    let echoed = attached.elapsed();
    writer.shutdown().await.context("end")?;
    let rest = reader.read(&mut [0]).await.context("read the end")?;
    anyhow::ensure!(rest == 0, "more bytes came back than were sent");
    Ok((attached - started, echoed))
}

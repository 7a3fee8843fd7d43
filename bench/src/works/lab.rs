//! A relay in a world, and what the works put around it.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Resource, getrlimit};

use super::Values;
use super::handshake::Path;
use crate::compare::cases::parse;
use crate::compare::{background, settled};
use crate::results::{Background, middle};
use crate::simulate::PER_RING;
use crate::systems::Tools;
use crate::usage::FAR;
use crate::world::{Process, Role, SOON, World, meter};

/// What all works are told.
#[derive(Clone, Debug)]
pub struct Common {
    /// Threads of the relay.
    pub shards: u16,
    /// TCP congestion control on every leg.
    pub congestion: String,
    /// UDP channels of each tunnel.
    pub channels: u8,
}

/// Service port.
const SERVICE: u16 = 4470;

/// How long a load may take beyond its seconds.
const BEYOND: Duration = Duration::from_secs(60);

/// Descriptors of a simulating process beside its tunnels'.
const DESCRIPTORS_BESIDE: u64 = 128;

/// Handshakes of one simulating process at once.
const AT_ONCE: &str = "64";

/// Local port numbers of the simulated mediators' machine: each tunnel takes some.
const PORT_RANGE: &str = "net.ipv4.ip_local_port_range=10000 65535";

/// Addresses of simulated mediators, on the public machine. They are not behind the world's gateway: it has one address, and
/// 20,000 UDP port numbers of it, and its search for a free one took most of the machine's time. In the field each mediator is
/// behind a gateway of its own, and none of these costs the relay anything.
const FIELD: &str = "203.0.113.0/24";

/// Percent of a core: rests of bulk use more, and the keep-alives of thousands of tunnels less.
pub(super) const RESTS_PERCENT: f64 = 60.0;

/// How long mediators may take to be up.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// The relay's machine and the rest.
pub(super) struct Lab {
    pub(super) world: World,
    tools: Tools,
    common: Common,
    relay: Relay,
    /// What others used of one core each time that nothing was measured, in percent.
    looks: RefCell<Vec<f64>>,
}

/// How much a process of ours counts for the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// As any other.
    Usual,
    /// Before relays and mediators: what is another machine's in the field, and shall not be measured as theirs.
    First,
}

/// A relay that runs.
struct Relay {
    process: Process,
    args: Vec<String>,
    /// Its name, and the name of its folder of keys in the world's.
    name: &'static str,
    service: String,
    pin: String,
}

/// Another relay on the relay's machine, and its mediator.
pub(super) struct Beside {
    relay: Relay,
    agent: Process,
}

impl Beside {
    pub(super) fn relay_pid(&self) -> u32 {
        self.relay.process.pid()
    }

    pub(super) fn agent_pid(&self) -> u32 {
        self.agent.pid()
    }
}

impl Lab {
    /// A world with a relay that publishes these ports (`PROTO:ADDR:PORT=MEDIATOR/HOST:PORT`).
    ///
    /// # Errors
    /// The world cannot be made, or a program is missing or does not start.
    pub(super) fn up(common: &Common, publish: &[String]) -> anyhow::Result<Self> {
        let publish = publish.iter().flat_map(|port| ["--publish".to_owned(), port.clone()]);
        Self::up_with(common, &publish.collect::<Vec<_>>(), &[])
    }

    /// A world with a relay that is started with these arguments, and in a further `environment` (`NAME=VALUE`).
    ///
    /// # Errors
    /// As there.
    pub(super) fn up_with(common: &Common, more: &[String], environment: &[&str]) -> anyhow::Result<Self> {
        let tools = Tools { bench: std::env::current_exe()?, rathole: None };
        // Before the world is made: it is what is missing most often.
        tools.own("isthmus-relay")?;
        let world = World::up(&common.congestion)?;
        world.run(Role::Public, "sysctl", ["-q", "-w", PORT_RANGE], SOON)?;
        world.run(Role::Public, "ip", ["route", "add", "local", FIELD, "dev", "lo"], SOON)?;
        let visitor = Role::Public.address().to_string();
        let way = ["route", "add", FIELD, "via", &visitor, "congctl", &common.congestion];
        world.run(Role::Relay, "ip", way, SOON)?;
        let relay = Relay::start(&world, &tools, common, "state", SERVICE, more, environment)?;
        Ok(Self { world, tools, common: common.clone(), relay, looks: RefCell::default() })
    }

    pub(super) fn relay_pid(&self) -> u32 {
        self.relay.process.pid()
    }

    /// Kills the relay as a crash would, and starts it again with the same keys.
    ///
    /// # Errors
    /// It does not come up again.
    pub(super) fn crash_relay(&mut self) -> anyhow::Result<()> {
        self.relay.process.kill();
        self.relay.process = self.world.start(Role::Relay, self.tools.own("isthmus-relay")?, &self.relay.args)?;
        self.relay.process.wait_for("relay runs", SOON).map(drop)
    }

    /// Looks at what others use of the machine, while nothing is measured, once the last load's rests have passed: what our own
    /// use then is the keeping of idle tunnels.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub(super) fn look(&self) -> anyhow::Result<()> {
        settled(RESTS_PERCENT)?;
        let own_s =
            || meter::family(std::process::id()).into_iter().filter_map(|pid| meter::cpu_s(pid).ok()).sum::<f64>();
        let (before, started) = (own_s(), Instant::now());
        let all = background()?;
        let own = (own_s() - before) / started.elapsed().as_secs_f64() * 100.0;
        self.looks.borrow_mut().push((all - own).max(0.0));
        Ok(())
    }

    /// What the looks have seen.
    pub(super) fn background(&self) -> Option<Background> {
        let mut looks = self.looks.take();
        looks.sort_by(f64::total_cmp);
        let max_percent = *looks.last()?;
        Some(Background { median_percent: middle(&looks), max_percent })
    }

    /// Where a relay's and a simulated mediator's end of a connection are.
    pub(super) fn path(&self) -> Path {
        let namespaces = [Role::Relay, Role::Public];
        let namespaces = namespaces.map(|role| PathBuf::from("/run/netns").join(self.world.namespace(role)));
        Path { namespaces, relay: Role::Relay.address() }
    }

    /// Where the relay's keys are.
    pub(super) fn state(&self) -> PathBuf {
        self.world.folder().join(self.relay.name)
    }

    /// Another relay on the same machine, which publishes one TCP port of the private host, with a mediator.
    ///
    /// # Errors
    /// One of them does not start.
    pub(super) fn survivor(&self, published: u16, port: u16) -> anyhow::Result<Beside> {
        let publish = format!("tcp:{}:{published}=s/{}:{port}", Role::Relay.address(), Role::Host.address());
        self.beside("survivor", "s", &["--publish".to_owned(), publish])
    }

    /// Another relay on the same machine, with a folder of keys of that name, and a real mediator behind the NAT.
    ///
    /// # Errors
    /// One of them does not start.
    pub(super) fn beside(&self, name: &'static str, mediator: &str, more: &[String]) -> anyhow::Result<Beside> {
        let relay = Relay::start(&self.world, &self.tools, &self.common, name, SERVICE + 1, more, &[])?;
        let agent = self.agent_of(&relay, mediator)?;
        Ok(Beside { relay, agent })
    }

    fn token(&self, relay: &Relay, words: &[&str]) -> anyhow::Result<String> {
        let state = self.world.folder().join(relay.name).display().to_string();
        let args = ["token", "--state", &state].into_iter().chain(words.iter().copied());
        Ok(self.world.run(Role::Relay, self.tools.own("isthmus-relay")?, args, SOON)?.trim().to_owned())
    }

    /// A real mediator behind the NAT, up.
    ///
    /// # Errors
    /// It does not come up.
    pub(super) fn agent(&self, name: &str) -> anyhow::Result<Process> {
        self.agent_of(&self.relay, name)
    }

    fn agent_of(&self, relay: &Relay, name: &str) -> anyhow::Result<Process> {
        let token = self.token(relay, &["--mediator", name])?;
        let token = self.world.write(&format!("{name}.token"), token)?.display().to_string();
        let channels = self.common.channels.to_string();
        let args =
            ["--relay", &relay.service, "--pin", &relay.pin, "--token-file", &token, "--udp-channels", &channels];
        let args = args.into_iter().chain(["--congestion", &self.common.congestion]);
        let agent = self.world.start(Role::Private, self.tools.own("isthmus-agent")?, args)?;
        agent.wait_for("tunnel up", SOON)?;
        Ok(agent)
    }

    /// A sink on a machine.
    ///
    /// # Errors
    /// It does not start.
    pub(super) fn sink(&self, role: Role, port: u16, urgency: Urgency) -> anyhow::Result<Process> {
        let args = ["sink".to_owned(), "--listen".to_owned(), format!("{}:{port}", role.address())];
        let sink = self.start(role, urgency, args.to_vec())?;
        sink.wait_for("ready", SOON)?;
        Ok(sink)
    }

    /// Simulated mediators `m<first>` to `m<first + count - 1>`, all up, in as many processes as their descriptors need, on
    /// the public machine.
    ///
    /// # Errors
    /// Not all come up.
    pub(super) fn mediators(&self, first: usize, count: usize, answer: &str) -> anyhow::Result<Vec<Process>> {
        self.mediators_with(first, count, answer, &[])
    }

    /// The same, started with further `options`.
    ///
    /// # Errors
    /// As [`Lab::mediators`].
    pub(super) fn mediators_with(
        &self,
        first: usize,
        count: usize,
        answer: &str,
        options: &[&str],
    ) -> anyhow::Result<Vec<Process>> {
        let mut processes = Vec::new();
        let (state, service, pin) = (self.state().display().to_string(), &self.relay.service, &self.relay.pin);
        let channels = self.common.channels.to_string();
        // A thread for each processor: with fewer, it would be the mediators that a storm waits for.
        let each = self.each_process()?.min(count.div_ceil(cores()).max(1));
        let mut begun = 0;
        while begun < count {
            let some = (count - begun).min(each);
            let (number, from) = (some.to_string(), (first + begun).to_string());
            let patience = PATIENCE.as_secs().to_string();
            let args = ["mediators", "--relay", service, "--pin", pin, "--state", &state, "--count", &number];
            let more = ["--first", &from, "--udp-channels", &channels, "--answer", answer, "--patience", &patience];
            let args = args
                .into_iter()
                .chain(more)
                .chain(["--connect-at-once", AT_ONCE, "--source", FIELD])
                .chain(options.iter().copied());
            let process = self.world.start(Role::Public, &self.tools.bench, args)?;
            process.wait_for("ready ", PATIENCE + SOON)?;
            processes.push(process);
            begun += some;
        }
        Ok(processes)
    }

    /// Mediators that one process can simulate.
    fn each_process(&self) -> anyhow::Result<usize> {
        let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
        let each = limit.saturating_sub(DESCRIPTORS_BESIDE) / (1 + u64::from(self.common.channels));
        ensure!(each > 0, "the limit of descriptors (ulimit -Hn) is {limit}: too low to simulate mediators");
        Ok(each.min(PER_RING as u64) as usize)
    }

    /// A visitor's load, to its end, with the relay's CPU time. When a thread of the processes at its `far` end has no time
    /// left, the load is told to be at its end.
    ///
    /// # Errors
    /// As the load's.
    pub(super) fn load(&self, far: &[Process], args: &[String], seconds: u64) -> anyhow::Result<Values> {
        Self::ended(&self.begin(Urgency::Usual, far, args, seconds)?, seconds)
    }

    /// The same, started only; [`Lab::ended`] waits for it.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn begin(
        &self,
        urgency: Urgency,
        far: &[Process],
        args: &[String],
        seconds: u64,
    ) -> anyhow::Result<Process> {
        let watched: Vec<_> =
            far.iter().map(|process| (FAR, process.pid())).chain([("relay", self.relay_pid())]).collect();
        self.begin_watching(urgency, &watched, args, seconds)
    }

    /// A visitor's load, to its end, with the CPU times of these processes.
    ///
    /// # Errors
    /// As the load's.
    pub(super) fn load_watching(
        &self,
        watched: &[(&str, u32)],
        args: &[String],
        seconds: u64,
    ) -> anyhow::Result<Values> {
        Self::ended(&self.begin_watching(Urgency::Usual, watched, args, seconds)?, seconds)
    }

    fn begin_watching(
        &self,
        urgency: Urgency,
        watched: &[(&str, u32)],
        args: &[String],
        seconds: u64,
    ) -> anyhow::Result<Process> {
        let mut args = [args, &["--seconds".to_owned(), seconds.to_string()]].concat();
        args.extend(watched.iter().flat_map(|(name, pid)| ["--cpu".to_owned(), format!("{name}={pid}")]));
        self.start(Role::Public, urgency, args)
    }

    /// The same without the relay's CPU time, for when it will not live that long.
    ///
    /// # Errors
    /// As there.
    pub(super) fn begin_alone(&self, urgency: Urgency, args: &[String], seconds: u64) -> anyhow::Result<Process> {
        let more = ["--seconds".to_owned(), seconds.to_string()];
        self.start(Role::Public, urgency, args.iter().cloned().chain(more).collect())
    }

    fn start(&self, role: Role, urgency: Urgency, args: Vec<String>) -> anyhow::Result<Process> {
        match urgency {
            Urgency::Usual => self.world.start(role, &self.tools.bench, args),
            Urgency::First => {
                let bench = self.tools.bench.display().to_string();
                let words = ["-n", "-19", &bench].map(String::from);
                self.world.start(role, "nice", words.into_iter().chain(args))
            }
        }
    }

    /// The line of a load, when it has ended.
    ///
    /// # Errors
    /// It ended without one.
    pub(super) fn ended(process: &Process, seconds: u64) -> anyhow::Result<Values> {
        parse(&process.wait_for("cpu_machine_s=", Duration::from_secs(seconds) + BEYOND)?)
    }

    /// One operation through each of the mediators `m0` to `m<count - 1>`: how many answered, and what it took.
    ///
    /// # Errors
    /// It does not end.
    pub(super) fn operate(&self, count: usize) -> anyhow::Result<Values> {
        let token = self.token(&self.relay, &["--terminal", "bench", "--mediators", "*"])?;
        let (relay, names) = (&self.relay, format!("m:{count}"));
        let args =
            ["operate", "--relay", &relay.service, "--pin", &relay.pin, "--token", &token, "--mediators", &names];
        // It fails where one does not answer; the line is there nevertheless.
        let process = self.world.start(Role::Public, &self.tools.bench, args)?;
        parse(&process.wait_for("asked=", PATIENCE).context("no operations")?)
    }
}

impl Relay {
    fn start(
        world: &World,
        tools: &Tools,
        common: &Common,
        name: &'static str,
        port: u16,
        more: &[String],
        environment: &[&str],
    ) -> anyhow::Result<Self> {
        let program = tools.own("isthmus-relay")?;
        let state = world.folder().join(name).display().to_string();
        let service = SocketAddr::from((Role::Relay.address(), port)).to_string();
        let mut args: Vec<String> =
            ["--state", &state, "--listen", &service, "--congestion", &common.congestion].map(String::from).into();
        args.extend(["--shards".to_owned(), common.shards.to_string()]);
        // A line for each of thousands of tunnels would be our reading of them, not the relay's work.
        args.extend(["--log", "info,isthmus_relay::shard=warn"].map(String::from));
        args.extend_from_slice(more);
        let process = match environment {
            [] => world.start(Role::Relay, &program, &args)?,
            _ => {
                let own = environment.iter().map(OsStr::new).chain([program.as_os_str()]);
                world.start(Role::Relay, "env", own.chain(args.iter().map(OsStr::new)))?
            }
        };
        process.wait_for("relay runs", SOON)?;
        let pin = world.run(Role::Relay, &program, ["fingerprint", "--state", &state], SOON)?.trim().to_owned();
        Ok(Self { process, args, name, service, pin })
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Words of a command line.
pub(super) fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

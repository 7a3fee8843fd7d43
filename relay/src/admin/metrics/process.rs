//! The process as Linux sees it, under the names that all programs' metrics have; and the shards' threads.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::text::{Text, Type};

/// Adds what can be read; a family without a sample is one that cannot.
pub(super) fn render(text: &mut Text, shards: usize) {
    let stat = Stat::read("/proc/self/stat");
    let one = |text: &mut Text, name, kind, help, value: Option<f64>| {
        text.family(name, kind, help);
        if let Some(value) = value {
            text.sample(&[], value);
        }
    };
    let cpu = stat.as_ref().and_then(Stat::cpu_seconds);
    one(text, "process_cpu_seconds_total", Type::Counter, "Processor time of all threads, user's and system's", cpu);
    let started = stat.as_ref().and_then(|stat| Some(boot_time()? + stat.seconds(START)?));
    one(text, "process_start_time_seconds", Type::Gauge, "When the process started, in seconds since 1970", started);
    let resident = stat.as_ref().and_then(|stat| Some(stat.number(RESIDENT)? * page_size() as f64));
    one(text, "process_resident_memory_bytes", Type::Gauge, "Memory that is in use", resident);
    let virtual_bytes = stat.as_ref().and_then(|stat| stat.number(VIRTUAL));
    one(text, "process_virtual_memory_bytes", Type::Gauge, "Addresses that are in use", virtual_bytes);
    let threads = stat.as_ref().and_then(|stat| stat.number(THREADS));
    one(text, "process_threads", Type::Gauge, "Threads", threads);
    one(text, "process_open_fds", Type::Gauge, "Descriptors that are open", open_descriptors());
    let limit = getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |limit| limit as f64);
    let limit = if limit.is_finite() { Some(limit) } else { None };
    one(text, "process_max_fds", Type::Gauge, "Descriptors that may be open", limit);
    threads_cpu(text, shards);
}

/// Where processor time goes: a shard is one thread, and the machine's cores do not tell which one is full.
fn threads_cpu(text: &mut Text, shards: usize) {
    let help =
        "Processor time of a shard's thread; with --busy-poll it grows while payload moves, whether needed or not";
    text.family("isthmus_shard_cpu_seconds_total", Type::Counter, help);
    let mut seconds = vec![None; shards];
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let Some(stat) = task.path().join("stat").to_str().and_then(Stat::read) else { continue };
        let number = stat.name.strip_prefix("shard-").and_then(|number| number.parse::<usize>().ok());
        if let Some(slot) = number.and_then(|number| seconds.get_mut(number)) {
            *slot = stat.cpu_seconds();
        }
    }
    for (shard, seconds) in seconds.into_iter().enumerate() {
        if let Some(seconds) = seconds {
            text.sample(&[("shard", &shard.to_string())], seconds);
        }
    }
}

/// proc(5)'s numbers of the fields of `stat` that follow the name, which is field 2.
const USER: usize = 14;
const SYSTEM: usize = 15;
const THREADS: usize = 20;
const START: usize = 22;
const VIRTUAL: usize = 23;
const RESIDENT: usize = 24;

/// One line of a `stat` file.
struct Stat {
    name: String,
    rest: Vec<String>,
}

impl Stat {
    fn read(path: &str) -> Option<Self> {
        let line = fs::read_to_string(path).ok()?;
        // The name may have blanks and brackets.
        let (open, close) = (line.find('(')?, line.rfind(')')?);
        let name = line.get(open + 1..close)?.to_owned();
        Some(Self { name, rest: line.get(close + 1..)?.split_whitespace().map(str::to_owned).collect() })
    }

    fn number(&self, field: usize) -> Option<f64> {
        self.rest.get(field - 3)?.parse().ok()
    }

    fn seconds(&self, field: usize) -> Option<f64> {
        Some(self.number(field)? / clock_ticks_per_second() as f64)
    }

    fn cpu_seconds(&self) -> Option<f64> {
        // Ticks are summed first: sums of fractions would go back now and then.
        Some((self.number(USER)? + self.number(SYSTEM)?) / clock_ticks_per_second() as f64)
    }
}

fn boot_time() -> Option<f64> {
    fs::read_to_string("/proc/stat").ok()?.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()
}

/// Since Linux 6.2 the directory's size is their number; before, they are counted.
/// How many are open, if that can be read.
pub(in crate::admin) fn open_descriptors() -> Option<f64> {
    let size = fs::metadata("/proc/self/fd").ok()?.len();
    // Counting opens one for the directory.
    let counted = || fs::read_dir("/proc/self/fd").map(|entries| entries.count().saturating_sub(1)).ok();
    if size > 0 { Some(size as f64) } else { counted().map(|count| count as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_read_and_its_threads_by_name() {
        let (ready, waits) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let body = move || {
            ready.send(()).unwrap();
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().name("shard-1".into()).spawn(body).unwrap();
        waits.recv().unwrap();
        let mut text = Text::default();
        render(&mut text, 2);
        let text = text.finish();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse::<f64>().unwrap()
        };
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!((now - 86_400.0..=now + 1.0).contains(&value("process_start_time_seconds")), "{text}");
        assert!(value("process_resident_memory_bytes") > 1e6 && value("process_open_fds") >= 3.0, "{text}");
        assert!(value("process_max_fds") >= value("process_open_fds") && value("process_threads") >= 2.0, "{text}");
        assert!(value("isthmus_shard_cpu_seconds_total{shard=\"1\"}") >= 0.0);
        assert!(!text.contains("shard=\"0\""), "{text}");
        drop(end);
        thread.join().unwrap();
    }
}

//! How much of a core each shard takes, from the system's account of the relay's threads.
//!
//! It is to be had where `top` and the relay see each other's processes; elsewhere it is left out.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The relay's shard threads, once they are found.
#[derive(Debug, Default)]
pub(super) struct ShardTimes {
    pid: u32,
    /// Their accounts, in the order of the shards.
    files: Vec<PathBuf>,
}

impl ShardTimes {
    /// The processor time of each shard so far; nothing if not all are to be had.
    pub(super) fn read(&mut self, pid: u32, shards: usize) -> Vec<Duration> {
        if self.pid != pid || self.files.len() != shards {
            self.pid = pid;
            self.files = find(pid, shards).unwrap_or_default();
        }
        let times: Option<Vec<Duration>> =
            self.files.iter().map(|file| time(&fs::read_to_string(file).ok()?)).collect();
        times.unwrap_or_default()
    }
}

/// The accounts of the threads `shard-0`, `shard-1` and so on.
fn find(pid: u32, shards: usize) -> Option<Vec<PathBuf>> {
    let mut found = vec![None; shards];
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let Ok(name) = fs::read_to_string(task.path().join("comm")) else { continue };
        let number = name.trim().strip_prefix("shard-").and_then(|number| number.parse::<usize>().ok());
        if let Some(place) = number.and_then(|number| found.get_mut(number)) {
            *place = Some(task.path().join("schedstat"));
        }
    }
    found.into_iter().collect()
}

/// The first word of `schedstat`: nanoseconds on a processor.
fn time(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_threads_of_that_name_count_and_only_if_all_are_there() {
        let (ready, wait) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            let sleeper = || {
                ready.wait();
                wait.wait();
            };
            std::thread::Builder::new().name("shard-0".into()).spawn_scoped(scope, sleeper).unwrap();
            ready.wait();
            let pid = std::process::id();
            assert_eq!(ShardTimes::default().read(pid, 1).len(), 1);
            assert!(ShardTimes::default().read(pid, 2).is_empty());
            wait.wait();
        });
        assert!(ShardTimes::default().read(0, 1).is_empty());
    }

    #[test]
    fn account_is_read_in_nanoseconds() {
        assert_eq!(time("1500 20 3\n"), Some(Duration::from_nanos(1500)));
        assert_eq!(time(""), None);
    }
}

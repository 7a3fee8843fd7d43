//! What a process and the machine use: memory, CPU time, children.

use std::fs;

use anyhow::Context;

/// Memory of a process in KiB, from the kernel's sum over all mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident.
    pub rss_kib: u64,
    /// Resident, with what is shared divided among those who share it.
    pub pss_kib: u64,
}

/// Memory of a process.
///
/// # Errors
/// It is gone, or not ours to look into.
pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    rollup(&text).with_context(|| format!("{path} is not understood"))
}

/// CPU time of a process so far, all threads, in seconds. Softirq work that its own system calls trigger is in it, and
/// that of the kernel's threads is not.
///
/// # Errors
/// It is gone.
pub fn cpu_s(pid: u32) -> anyhow::Result<f64> {
    crate::usage::process_s(pid)
}

/// CPU time of the whole machine, whoever used it, in seconds since some moment: differences count.
///
/// # Errors
/// There is no `/proc`.
pub fn busy_s() -> anyhow::Result<f64> {
    crate::usage::machine_s()
}

/// A process and all that it has started and that still runs, itself first.
pub fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(&pid) = family.get(at) {
        at += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
    }
    family
}

fn rollup(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Memory { rss_kib: field("Rss:")?, pss_kib: field("Pss:")? })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn sums_are_found_among_their_parts() {
        let text = "55-7f ---p 00000000 00:00 0 [rollup]\nRss:      5120 kB\nPss:      3072 kB\nPss_Dirty:  9 kB\n";
        assert_eq!(rollup(text), Some(Memory { rss_kib: 5120, pss_kib: 3072 }));
        assert_eq!(rollup("Rss: 1 kB\n"), None);
    }

    #[test]
    fn own_memory_and_time_are_known_and_a_dead_process_has_none() {
        let me = std::process::id();
        let memory = memory(me).unwrap();
        assert!(memory.pss_kib > 0 && memory.pss_kib <= memory.rss_kib);
        assert!(busy_s().is_ok() && cpu_s(me).is_ok());
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(cpu_s(child.id()).is_err());
    }

    #[test]
    fn family_is_a_process_and_its_children() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let family = family(std::process::id());
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(family[0], std::process::id());
        assert!(family.contains(&child.id()));
    }
}

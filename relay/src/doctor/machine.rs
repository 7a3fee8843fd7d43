//! What the relay needs of the machine that it runs on.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use isthmus_service::{Findings, Severity};
use rustix::process::{Resource, getrlimit};

/// A clock that shows less is wrong: 2026-01-01.
const CLOCK_MIN: Duration = Duration::from_secs(1_767_225_600);

/// Share of its connection tracking table that may be in use.
const CONNTRACK_PERCENT_MAX: u64 = 80;

/// What a million idle tunnels took in all, the kernel's part with it, by the tunnel: docs/operations.md.
const TUNNEL_BYTES: u64 = 11_900;

/// A shard's buffers at the most, and its ring.
const SHARD_BYTES: u64 = 192 << 20;

/// Locked memory that each shard's ring and buffer tables may need, well counted.
const LOCKED_BYTES: u64 = 2 << 20;

/// Whoever has this capability may lock any amount (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;

/// Looks at all of it; files are looked for below `root`.
pub(super) fn look(findings: &mut Findings, shards: usize, root: &Path) {
    kernel(findings);
    memory(findings, shards as u64, root);
    clock(findings);
    cores(findings, shards);
    port_numbers(findings, root);
    conntrack(findings, root);
}

/// What there is of it, and what may be locked.
fn memory(findings: &mut Findings, shards: u64, root: &Path) {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
    if let Some(bytes) = kib.map(|kib| kib << 10) {
        let tunnels = bytes.saturating_sub(shards * SHARD_BYTES) / TUNNEL_BYTES;
        let found = format!("{} MiB are free: room for some {tunnels} idle tunnels", bytes >> 20);
        if bytes < shards * SHARD_BYTES {
            let cure = "give the machine more, or the relay fewer --shards: each may fill 192 MiB of buffers";
            findings.add("memory", Severity::Warning, found, cure);
        } else {
            findings.ok("memory", found);
        }
    }
    let capable = may_lock(&std::fs::read_to_string(root.join("proc/self/status")).unwrap_or_default());
    match getrlimit(Resource::Memlock).current.filter(|_| !capable) {
        Some(limit) if limit < shards * LOCKED_BYTES => {
            let cure = "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited: rings and buffers are locked memory";
            findings.add("memory lock", Severity::Warning, format!("{} KiB may be locked", limit >> 10), cure);
        }
        Some(limit) => findings.ok("memory lock", format!("{} MiB may be locked", limit >> 20)),
        None => findings.ok("memory lock", "any amount may be locked"),
    }
}

/// Whether a process's `status` has the capability in force.
fn may_lock(status: &str) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

/// Whether something keeps the clock right; `None` where that cannot be told.
fn synchronised() -> Option<bool> {
    let output = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output().ok()?;
    match output.stdout.trim_ascii() {
        b"yes" => Some(true),
        b"no" => Some(false),
        _ => None,
    }
}

/// Hosts' UDP flows to exposed services, and TCP connections to public addresses, take one each.
fn port_numbers(findings: &mut Findings, root: &Path) {
    let text = std::fs::read_to_string(root.join("proc/sys/net/ipv4/ip_local_port_range")).unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
    let (Some(first), Some(last)) = (numbers.next(), numbers.next()) else { return };
    let found = format!("{first} to {last} are given to connections that go out");
    if last.saturating_sub(first) < 10_000 {
        let cure = "sysctl -w net.ipv4.ip_local_port_range='15000 65000', if services are exposed";
        findings.add("port numbers", Severity::Warning, found, cure);
    } else {
        findings.ok("port numbers", found);
    }
}

/// Kernel, io_uring, limits.
fn kernel(findings: &mut Findings) {
    for finding in isthmus_ring::probe() {
        let needed = ["kernel", "io_uring"].contains(&finding.what);
        let severity = match (finding.ok, needed) {
            (true, _) => Severity::Ok,
            (false, true) => Severity::Error,
            (false, false) => Severity::Warning,
        };
        findings.add(finding.what, severity, finding.cause, finding.cure);
    }
}

fn clock(findings: &mut Findings) {
    let now = SystemTime::now();
    let shown = humantime::format_rfc3339_seconds(now).to_string();
    let cure = "timedatectl set-ntp true: tokens and certificates are held against the clock";
    if now.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since >= CLOCK_MIN) {
        match synchronised() {
            Some(true) => findings.ok("clock", format!("{shown}, kept right by NTP")),
            Some(false) => {
                findings.add("clock", Severity::Warning, format!("{shown}, and nothing keeps it right"), cure)
            }
            None => findings.ok("clock", shown),
        }
    } else {
        let cure = "set it (timedatectl set-ntp true): tokens that are issued now would be expired or not valid yet";
        findings.add("clock", Severity::Error, format!("it shows {shown}"), cure);
    }
}

fn cores(findings: &mut Findings, shards: usize) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{shards} shards on {cores} cores");
    if shards > cores {
        findings.add(
            "shards",
            Severity::Warning,
            found,
            "leave --shards out, or give at most as many as there are cores",
        );
    } else {
        findings.ok("shards", found);
    }
    #[cfg(target_arch = "x86_64")]
    {
        let aes = std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq");
        if aes {
            findings.ok("AES", "the processor has instructions for it");
        } else {
            let cure = "let the virtual machine see the host's processor (cpu type 'host')";
            findings.add(
                "AES",
                Severity::Warning,
                "without the processor's help: encryption takes most of the time",
                cure,
            );
        }
    }
}

/// Where the machine tracks connections, each visitor takes an entry.
fn conntrack(findings: &mut Findings, root: &Path) {
    let read = |name: &str| {
        let path = root.join("proc/sys/net/netfilter").join(name);
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let (Some(count), Some(max)) = (read("nf_conntrack_count"), read("nf_conntrack_max")) else { return };
    let found = format!("{count} of {max} connections are tracked");
    if count * 100 > max * CONNTRACK_PERCENT_MAX {
        let cure = "sysctl -w net.netfilter.nf_conntrack_max=…, or exempt the relay's ports (nft: notrack)";
        findings.add("nf_conntrack", Severity::Warning, found, cure);
    } else {
        findings.ok("nf_conntrack", found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn severity(findings: &Findings, name: &str) -> Severity {
        let json = serde_json::to_value(findings).unwrap();
        let one = json.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
        serde_json::from_value(one["severity"].clone()).unwrap()
    }

    #[test]
    fn capability_to_lock_is_read_from_its_bit() {
        assert!(may_lock("Name:\tx\nCapEff:\t0000000000004000\n") && may_lock("CapEff:\t000001ffffffffff"));
        assert!(!may_lock("CapEff:\t0000000000002000") && !may_lock("") && !may_lock("CapEff:\tx"));
    }

    #[test]
    fn too_little_memory_and_too_few_port_numbers_are_warnings() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/sys/net/ipv4")).unwrap();
        for (kib, range, expected) in
            [(400_000, "32768 60999", Severity::Ok), (300_000, "60000 60999", Severity::Warning)]
        {
            std::fs::write(root.path().join("proc/meminfo"), format!("MemAvailable:   {kib} kB\n")).unwrap();
            std::fs::write(root.path().join("proc/sys/net/ipv4/ip_local_port_range"), range).unwrap();
            let mut findings = Findings::default();
            memory(&mut findings, 2, root.path());
            port_numbers(&mut findings, root.path());
            assert_eq!([severity(&findings, "memory"), severity(&findings, "port numbers")], [expected; 2], "{kib}");
        }
    }

    #[test]
    fn full_table_of_tracked_connections_is_a_warning() {
        let root = tempfile::tempdir().unwrap();
        let table = root.path().join("proc/sys/net/netfilter");
        std::fs::create_dir_all(&table).unwrap();
        for (count, severity) in [(80, Severity::Ok), (81, Severity::Warning)] {
            std::fs::write(table.join("nf_conntrack_count"), format!("{count}\n")).unwrap();
            std::fs::write(table.join("nf_conntrack_max"), "100\n").unwrap();
            let mut findings = Findings::default();
            conntrack(&mut findings, root.path());
            assert_eq!(self::severity(&findings, "nf_conntrack"), severity);
        }
    }
}

//! What the machine offers, before a start: for the operator, with cause and cure.

use std::{fs, io};

use crate::error::RingError;
use crate::ring::{Ring, RingConfig};
use crate::udp::udp_gso_supported;

/// Descriptors below which a relay for thousands of tunnels cannot do.
const NOFILE_MIN: u64 = 65_536;
const SOMAXCONN_MIN: u64 = 4096;
const SOCKET_BUFFER_MIN: u64 = 4 << 20;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// Whether it is good.
    pub ok: bool,
    /// What was found.
    pub cause: String,
    /// What to do; empty when `ok`.
    pub cure: String,
}

impl Finding {
    fn at_least(what: &'static str, found: Option<u64>, wanted: u64, cure: &str) -> Self {
        let ok = found.is_some_and(|found| found >= wanted);
        let cause = match found {
            Some(found) => format!("it is {found}; {wanted} is advised"),
            None => "it cannot be read".to_owned(),
        };
        Self { what, ok, cause, cure: if ok { String::new() } else { cure.to_owned() } }
    }
}

/// Looks at the kernel's version, io_uring, UDP segmentation, the limit of descriptors, the accept backlog and the
/// socket buffers.
pub fn probe() -> Vec<Finding> {
    vec![
        kernel(),
        io_uring(),
        udp_segmentation(),
        Finding::at_least(
            "RLIMIT_NOFILE",
            descriptors_max().ok(),
            NOFILE_MIN,
            "set LimitNOFILE= in the unit, or ulimit -n",
        ),
        sysctl("net.core.somaxconn", SOMAXCONN_MIN),
        sysctl("net.core.rmem_max", SOCKET_BUFFER_MIN),
        sysctl("net.core.wmem_max", SOCKET_BUFFER_MIN),
    ]
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let ok = version(release).is_some_and(|version| version >= (6, 10));
    let cure = if ok { String::new() } else { "run Linux 6.10 or newer".to_owned() };
    Finding { what: "kernel", ok, cause: format!("Linux {release}"), cure }
}

/// Major and minor number of a release such as `6.10.3-generic`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn io_uring() -> Finding {
    match Ring::new(RingConfig::small()) {
        Ok(_) => Finding { what: "io_uring", ok: true, cause: "a ring could be made".to_owned(), cure: String::new() },
        Err(RingError { step, source, cause, cure }) => Finding {
            what: "io_uring",
            ok: false,
            cause: format!("cannot {step}: {source}: {cause}"),
            cure: cure.to_owned(),
        },
    }
}

fn udp_segmentation() -> Finding {
    let (what, ok) = ("UDP_SEGMENT", udp_gso_supported());
    let (cause, cure) = match ok {
        true => ("datagrams can be sent in trains", ""),
        false => ("each datagram needs a send of its own", "run Linux 6.10 or newer"),
    };
    Finding { what, ok, cause: cause.to_owned(), cure: cure.to_owned() }
}

fn descriptors_max() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is good for the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => Ok(limit.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}

fn sysctl(name: &'static str, wanted: u64) -> Finding {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let found = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    Finding::at_least(name, found, wanted, &format!("sysctl -w {name}={wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(version("6.10.3-generic"), Some((6, 10)));
        assert!(version("6.9").unwrap() < (6, 10) && version("7.0-rc1").unwrap() > (6, 10));
        assert_eq!(version("odd"), None);
    }

    #[test]
    fn a_bad_finding_has_a_cure_and_a_good_one_has_none() {
        let findings = probe();
        assert!(findings.iter().any(|f| f.what == "io_uring" && f.ok), "{findings:?}");
        for finding in findings {
            assert_eq!(finding.ok, finding.cure.is_empty(), "{finding:?}");
        }
        let edge = |found| Finding::at_least("x", Some(found), 10, "cure").ok;
        assert!(edge(10) && !edge(9));
    }
}

//! Why a ring could not be made, and what an operator can do about it.

use std::{fs, io};

/// A ring could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}: {cause}; {cure}")]
pub struct RingError {
    /// What was tried.
    pub step: &'static str,
    /// The system's answer.
    pub source: io::Error,
    /// What that means.
    pub cause: String,
    /// What to do.
    pub cure: &'static str,
}

impl RingError {
    pub(crate) fn new(step: &'static str, source: io::Error) -> Self {
        let (cause, cure) = explain(&source);
        Self { step, source, cause, cure }
    }

    pub(crate) fn bad_config(cause: &str) -> Self {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        Self { step: "use the ring's configuration", source, cause: cause.to_owned(), cure: "correct that setting" }
    }

    pub(crate) fn too_old(missing: &str) -> Self {
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        Self { step: "use this kernel's io_uring", source, cause: format!("it lacks {missing}"), cure: UPGRADE }
    }
}

const UPGRADE: &str = "run Linux 6.10 or newer";

fn explain(error: &io::Error) -> (String, &'static str) {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => match disabled_by_sysctl() {
            Some(level) => (
                format!("kernel.io_uring_disabled is {level}"),
                "set it to 0: sysctl -w kernel.io_uring_disabled=0, or join its group if it is 1",
            ),
            None => (
                "a seccomp filter or security module forbids io_uring".to_owned(),
                "in a container, allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile",
            ),
        },
        Some(libc::ENOSYS) => (
            "this kernel has no io_uring, or a sandbox hides it".to_owned(),
            "run Linux 6.10 or newer, outside of gVisor and the like",
        ),
        Some(libc::EINVAL) => (
            "this kernel is too old for single-issuer rings with deferred task work, no SQ array and receive bundles"
                .to_owned(),
            UPGRADE,
        ),
        Some(libc::EMFILE | libc::ENFILE) => {
            ("no descriptors are left".to_owned(), "raise RLIMIT_NOFILE: LimitNOFILE= in the unit, or ulimit -n")
        }
        Some(libc::ENOMEM) => (
            "memory is short, or RLIMIT_MEMLOCK too small".to_owned(),
            "raise LimitMEMLOCK= and the memory limit of the unit, or configure smaller rings",
        ),
        _ => ("unexpected".to_owned(), "see io_uring_setup(2)"),
    }
}

fn disabled_by_sysctl() -> Option<u8> {
    let text = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok().filter(|&level| level > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expected_error_has_its_own_cause_and_a_cure() {
        let mut causes = Vec::new();
        for code in [libc::EPERM, libc::ENOSYS, libc::EINVAL, libc::EMFILE, libc::ENOMEM] {
            let error = RingError::new("set up io_uring", io::Error::from_raw_os_error(code));
            assert!(!causes.contains(&error.cause) && !error.cure.is_empty(), "{error}");
            causes.push(error.cause);
        }
    }
}

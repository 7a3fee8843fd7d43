//! Threads and cores.

use std::io;

/// Binds the calling thread to processor `core`, from 0.
///
/// # Errors
/// `EINVAL` when there is no such core, or this process may not use it.
pub fn pin_thread_to_core(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a `cpu_set_t` is an array of integers, for which zeros are valid; `core` was checked against its size.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_does_not_exist_is_an_error() {
        std::thread::spawn(|| {
            assert!(pin_thread_to_core(0).is_ok());
            assert!(pin_thread_to_core(1023).is_err());
            assert!(pin_thread_to_core(usize::MAX).is_err());
        })
        .join()
        .unwrap();
    }
}

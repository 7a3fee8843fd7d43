//! Worlds go, however the process ends that made them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

/// The worlds that stand.
static STANDING: Mutex<Vec<Standing>> = Mutex::new(Vec::new());

/// Set when a signal ends the process.
static ENDING: AtomicBool = AtomicBool::new(false);

struct Standing {
    name: String,
    folder: PathBuf,
}

/// Makes a world by `make`, and removes it when it fails. A signal that comes meanwhile waits until it stands.
pub(super) fn guard(name: &str, folder: &Path, make: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    watch_signals();
    watch_panics();
    let mut standing = lock();
    let world = Standing { name: name.to_owned(), folder: folder.to_owned() };
    match make() {
        Ok(()) => {
            standing.push(world);
            Ok(())
        }
        Err(error) => {
            remove(&world);
            Err(error)
        }
    }
}

/// Removes a world.
pub(super) fn release(name: &str) {
    let mut standing = lock();
    if let Some(at) = standing.iter().position(|world| world.name == name) {
        remove(&standing.swap_remove(at));
    }
}

/// Where a signal ends the process, what fails meanwhile fails by that, and is nobody's fault: this does not return then.
pub fn wait_if_ending() {
    while ENDING.load(Ordering::Acquire) {
        thread::park();
    }
}

fn remove(world: &Standing) {
    // At the end of a run there is nobody who could do better.
    let _ = super::nat(&["down", &world.name]);
    let _ = fs::remove_dir_all(&world.folder);
}

fn lock() -> MutexGuard<'static, Vec<Standing>> {
    // The list is whole at every moment.
    STANDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on a panic removes the worlds, too: the release build ends by it without running any destructor.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            if cfg!(panic = "abort") {
                // Unless the one who panics has the list: then the next run removes them.
                if let Ok(standing) = STANDING.try_lock() {
                    standing.iter().for_each(remove);
                }
            }
        }));
    });
}

/// Whether whoever started us wanted the hang-up ignored.
fn hangup_is_ignored() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status).unwrap_or(false))
}

fn ignores_hangup(status: &str) -> Option<bool> {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    // Signal 1 is the lowest bit.
    Some(u64::from_str_radix(ignored.trim(), 16).ok()? & 1 == 1)
}

/// From now on a signal that would end the process removes the worlds first.
fn watch_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let watch = || -> std::io::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            let code = runtime.block_on(async {
                let mut interrupt = signal(SignalKind::interrupt())?;
                let mut quit = signal(SignalKind::quit())?;
                let mut terminate = signal(SignalKind::terminate())?;
                // nohup ignores it for us, and it stays so.
                let mut hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
                std::io::Result::Ok(tokio::select! {
                    _ = interrupt.recv() => 130,
                    _ = quit.recv() => 131,
                    _ = terminate.recv() => 143,
                    Some(_) = async { hangup.as_mut()?.recv().await } => 129,
                })
            })?;
            ENDING.store(true, Ordering::Release);
            // Kept locked: nothing is made any more.
            let standing = lock();
            standing.iter().for_each(remove);
            std::process::exit(code)
        };
        let watched = thread::Builder::new().name("signals".into()).spawn(move || {
            if let Err(error) = watch() {
                tracing::warn!(%error, "signals are not watched: an interrupted run leaves its namespaces to the next one");
            }
        });
        if let Err(error) = watched {
            tracing::warn!(%error, "signals are not watched: an interrupted run leaves its namespaces to the next one");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_hangup_is_the_lowest_bit() {
        let status = |mask| format!("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\nSigCgt:\t0\n");
        assert_eq!(ignores_hangup(&status("0000000000001001")), Some(true));
        assert_eq!(ignores_hangup(&status("0000000000001000")), Some(false));
        assert_eq!(ignores_hangup("Name:\tx\n"), None);
        assert!(ignores_hangup(&fs::read_to_string("/proc/self/status").unwrap()).is_some());
    }
}

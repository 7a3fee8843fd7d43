//! Worlds go, however the process ends that made them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

/// The worlds that stand.
static STANDING: Mutex<Vec<Standing>> = Mutex::new(Vec::new());

struct Standing {
    name: String,
    folder: PathBuf,
}

/// Makes a world by `make`, and removes it when it fails. A signal that comes meanwhile waits until it stands.
pub(super) fn guard(name: &str, folder: &Path, make: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    watch_signals();
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

fn remove(world: &Standing) {
    // At the end of a run there is nobody who could do better.
    let _ = super::nat(&["down", &world.name]);
    let _ = fs::remove_dir_all(&world.folder);
}

fn lock() -> MutexGuard<'static, Vec<Standing>> {
    // The list is whole at every moment.
    STANDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on a signal that would end the process removes the worlds first.
fn watch_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let watch = || -> std::io::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            let code = runtime.block_on(async {
                let mut interrupt = signal(SignalKind::interrupt())?;
                let mut terminate = signal(SignalKind::terminate())?;
                let mut hangup = signal(SignalKind::hangup())?;
                std::io::Result::Ok(tokio::select! {
                    _ = interrupt.recv() => 130,
                    _ = terminate.recv() => 143,
                    _ = hangup.recv() => 129,
                })
            })?;
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

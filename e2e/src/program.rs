//! Where the programs under test are.

use std::path::PathBuf;

/// The path of a binary of this workspace: it lies where cargo put this very test, one folder up
/// (`target/<profile>/deps/test` and `target/<profile>/program`).
///
/// # Panics
/// When it has not been built: `scripts/test` builds all of them before it runs tests.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let path = test.parent().and_then(|deps| deps.parent()).map(|profile| profile.join(name));
    match path {
        Some(path) if path.is_file() => path,
        _ => panic!("{name} has not been built; run: cargo build --workspace --bins"),
    }
}

/// Whether a program of the system is installed; says `skipped: needs …` when it is not.
pub fn have(name: &str) -> bool {
    let found = on_path(name);
    if !found {
        eprintln!("skipped: needs {name}");
    }
    found
}

pub(crate) fn on_path(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder: PathBuf| folder.join(name).is_file())
}

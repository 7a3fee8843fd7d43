//! Files that are whole or not there: a full disk does not cost the one that was there before.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use tempfile::{Builder, NamedTempFile};

/// Whether it can be written, without doing so.
///
/// # Errors
/// The system's.
pub fn check(path: &Path) -> anyhow::Result<()> {
    if is_special(path) {
        return Ok(());
    }
    anyhow::ensure!(!path.is_dir(), "cannot write {}: it is a folder", path.display());
    beside(path).map(drop).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes it under another name first. What is no file, such as `/dev/stdout`, is written as it is.
///
/// # Errors
/// The system's.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = || {
        if is_special(path) {
            return fs::write(path, bytes);
        }
        let mut file = beside(path)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map(drop).map_err(|error| error.error)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

fn is_special(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

fn beside(path: &Path) -> std::io::Result<NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As the system's mask says, as for any file that a program writes: it is no secret.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    Builder::new().prefix(".isthmus-bench-").permissions(mode).tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_replaced_as_a_whole_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        check(&path).unwrap();
        assert!(!path.exists());
        for text in ["longer than the next", "short"] {
            write(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_said_before() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), &folder.path().join("none/run.json")] {
            for error in [check(path), write(path, b"x")] {
                assert!(error.unwrap_err().to_string().starts_with("cannot write "));
            }
        }
        write(Path::new("/dev/null"), b"x").unwrap();
        check(Path::new("/dev/null")).unwrap();
    }
}

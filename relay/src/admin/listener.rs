//! The stats socket's file: made, protected, and removed at the end.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

const MODE: u32 = 0o660;
const BACKLOG: i32 = 128;

/// The bound stats socket. Its drop removes the file.
#[derive(Debug)]
pub struct StatsSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl StatsSocket {
    /// Binds `path` with mode 0660 and listens. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// Another relay listens there; something that is no socket is there; the path is too long; the system refuses.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let address = SocketAddrUnix::new(path)
            .with_context(|| format!("the path {shown} is too long for a socket; give a shorter --stats-socket"))?;
        remove_stale(path)?;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context("cannot make the stats socket")?;
        // The file inherits the mode that the socket has when it is bound, less the umask: at no moment can others
        // connect. What the umask took from the group is given back after.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(MODE)).context("cannot protect the stats socket")?;
        rustix::net::bind(&fd, &address).with_context(|| format!("cannot bind the stats socket {shown}"))?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(MODE))
            .with_context(|| format!("cannot give the stats socket {shown} its mode"))?;
        rustix::net::listen(&fd, BACKLOG).with_context(|| format!("cannot listen on {shown}"))?;
        let inode = std::fs::symlink_metadata(path).with_context(|| format!("cannot examine {shown}"))?.ino();
        Ok(Self { listener: fd.into(), path: path.to_owned(), inode })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second handle of the listening socket, not blocking.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}

impl Drop for StatsSocket {
    fn drop(&mut self) {
        // Not one that somebody else has put in its place.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot examine {shown}")),
    };
    ensure!(metadata.file_type().is_socket(), "{shown} exists and is no socket; give another --stats-socket");
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot remove the stale stats socket {shown}"))
        }
        Ok(_) => bail!("another relay listens on {shown}; stop it, or give another --stats-socket"),
        Err(error) => Err(error).with_context(|| format!("cannot tell whether another relay listens on {shown}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_has_its_mode_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = StatsSocket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let _socket = StatsSocket::bind(&path).unwrap();
        let error = StatsSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("another relay"), "{error}");
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        assert!(StatsSocket::bind(&path).unwrap_err().to_string().contains("no socket"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn socket_that_took_our_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = StatsSocket::bind(&path).unwrap();
        let other = dir.path().join("other");
        let _listener = UnixListener::bind(&other).unwrap();
        std::fs::rename(&other, &path).unwrap();
        drop(socket);
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn path_that_does_not_fit_is_named() {
        let error = StatsSocket::bind(Path::new(&format!("/{}", "x".repeat(120)))).unwrap_err();
        assert!(error.to_string().contains("--stats-socket"), "{error}");
    }
}

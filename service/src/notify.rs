//! The service manager's protocol (sd_notify(3)): ready, reloading, stopping, a line of status, and signs of life.
//!
//! Where no manager asks for it (no `NOTIFY_SOCKET`), everything here does nothing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A manager whose queue is full may take this long: its word is worth less than our loop's next turn.
const PATIENCE: Duration = Duration::from_millis(200);

/// Longest status: what a person reads on one line.
const STATUS_LEN_MAX: usize = 200;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As this process's environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_env() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let Some(path) = variable("NOTIFY_SOCKET") else { return Self::default() };
        let number = |name: &str| variable(name).and_then(|value| value.to_str()?.parse::<u64>().ok());
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&usec| ours && usec > 0).map(Duration::from_micros);
        Self::to(&path, watchdog).unwrap_or_else(|error| {
            tracing::warn!(%error, "NOTIFY_SOCKET cannot be used: the service manager hears nothing");
            Self::default()
        })
    }

    /// To the manager that listens there (an `@` in front stands for Linux's abstract names), and that wants a sign of life
    /// at least every `watchdog`.
    ///
    /// # Errors
    /// The system's.
    pub fn to(path: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket: Some((socket, address)), watchdog })
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// How often [`Notifier::alive`] is due: half of what the manager tolerates, so that one that comes late does no harm.
    pub fn beat(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// It serves; after [`Notifier::reloading`]: it serves again.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// It reads its configuration again, and says [`Notifier::ready`] when that is over, however it ends.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let usec = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// It goes, in order.
    pub fn stopping(&self, why: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}", line(why)));
    }

    /// How it is, for a person.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", line(text)));
    }

    /// The sign of life, where one is wanted. To be sent by what has to turn, or after it has answered.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, state: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::warn!(%error, "the service manager does not take: {}", line(state));
        }
    }
}

/// A text that may have come from anywhere, as one line that sets no other field.
fn line(text: &str) -> String {
    text.chars().take(STATUS_LEN_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager() -> (UnixDatagram, tempfile::TempDir, std::ffi::OsString) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        (socket, dir, path.into_os_string())
    }

    fn said(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn states_are_said_in_the_managers_words() {
        let (socket, _dir, path) = manager();
        let notifier = Notifier::to(&path, Some(Duration::from_secs(30))).unwrap();
        assert!(notifier.is_heard());
        assert_eq!(notifier.beat(), Some(Duration::from_secs(15)));
        notifier.ready("2 tunnels");
        assert_eq!(said(&socket), "READY=1\nSTATUS=2 tunnels");
        notifier.reloading();
        let text = said(&socket);
        let usec = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(usec.parse::<u64>().unwrap() > 0);
        notifier.stopping("SIGTERM");
        assert_eq!(said(&socket), "STOPPING=1\nSTATUS=SIGTERM");
        notifier.alive();
        assert_eq!(said(&socket), "WATCHDOG=1");
    }

    #[test]
    fn status_cannot_forge_another_field() {
        let (socket, _dir, path) = manager();
        let notifier = Notifier::to(&path, None).unwrap();
        notifier.status("no tunnel: x\nWATCHDOG=trigger");
        assert_eq!(said(&socket), "STATUS=no tunnel: x WATCHDOG=trigger");
        notifier.status(&"x".repeat(5000));
        assert_eq!(said(&socket).len(), "STATUS=".len() + STATUS_LEN_MAX);
    }

    #[test]
    fn abstract_names_are_reached_and_unwanted_beats_not_sent() {
        let name = format!("isthmus-notify-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notifier = Notifier::to(OsStr::new(&format!("@{name}")), None).unwrap();
        assert_eq!(notifier.beat(), None);
        notifier.alive();
        notifier.status("here");
        assert_eq!(said(&socket), "STATUS=here");
    }
}

//! Direct descriptors: sockets in the ring's own table instead of the process's.
//!
//! The limit of descriptors (`RLIMIT_NOFILE`) holds for a process's table and again for each ring's, so that a process
//! with many rings holds many times as many sockets; and an operation on a direct descriptor is about 43 ns cheaper.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::Submitter;

use crate::socket::Socket;

/// Places of one ring's table, beyond which sockets stay in the process's: what the kernel allows is more.
const PLACES_MAX: u64 = 1 << 19;

/// How an operation names a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub(crate) Named);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Process(RawFd),
    Ring(u32),
}

/// What operations can be done on.
pub trait Target {
    /// What it is called, good for as long as it lives.
    fn name(&self) -> Name;
}

impl<T: AsRawFd> Target for T {
    fn name(&self) -> Name {
        Name(Named::Process(self.as_raw_fd()))
    }
}

/// A socket in its ring's table, made by [`crate::Ring::make_direct`], or in the process's where that has no room.
///
/// In the ring's table it has no options any more, it belongs to its ring's thread, and its place is taken until
/// [`crate::Ring::close_connection`].
pub struct Connection(pub(crate) Held);

pub(crate) enum Held {
    Process(Socket),
    Ring(u32),
}

impl Connection {
    /// Whether it takes no descriptor of the process.
    pub fn is_direct(&self) -> bool {
        matches!(self.0, Held::Ring(_))
    }

    /// The socket, where it is in the process's table still.
    ///
    /// # Errors
    /// The connection as it was.
    pub fn into_socket(self) -> Result<Socket, Self> {
        match self.0 {
            Held::Process(socket) => Ok(socket),
            direct @ Held::Ring(_) => Err(Self(direct)),
        }
    }
}

impl From<Socket> for Connection {
    fn from(socket: Socket) -> Self {
        Self(Held::Process(socket))
    }
}

impl Target for Connection {
    fn name(&self) -> Name {
        match &self.0 {
            Held::Process(socket) => socket.name(),
            Held::Ring(place) => Name(Named::Ring(*place)),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({:?})", self.name())
    }
}

/// Which places of the ring's table are free.
#[derive(Default)]
pub(crate) struct Places {
    free: Vec<u32>,
    /// Places from here on were never used.
    next: u32,
    count: u32,
}

impl Places {
    /// Asks the kernel for a table as large as the limit of descriptors allows. Without one, sockets stay where they are.
    pub(crate) fn register(submitter: &Submitter<'_>) -> Self {
        let limit = socket_limit().min(PLACES_MAX) as u32;
        let count = if submitter.register_files_sparse(limit).is_ok() { limit } else { 0 };
        Self { free: Vec::new(), next: 0, count }
    }

    /// Moves a socket into the table, if there is room.
    pub(crate) fn take(&mut self, submitter: &Submitter<'_>, connection: &mut Connection) {
        let Held::Process(socket) = &connection.0 else { return };
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.next < self.count => {
                self.next += 1;
                self.next - 1
            }
            None => return,
        };
        match submitter.register_files_update(place, &[socket.as_raw_fd()]) {
            // Drops the socket, and with it the process's descriptor.
            Ok(_) => connection.0 = Held::Ring(place),
            Err(_) => self.free.push(place),
        }
    }

    /// The kernel has emptied a place.
    pub(crate) fn give_back(&mut self, place: u32) {
        self.free.push(place);
    }

    /// Places in use.
    pub(crate) fn used(&self) -> usize {
        self.next as usize - self.free.len()
    }
}

fn socket_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a structure of the call's own kind, good for the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { limit.rlim_cur } else { 0 }
}

/// Raises the soft limit of descriptors to the hard one, and tells it: the default soft limit of 1,024 is made for
/// programs that use `select(2)`. Rings made before keep the room that they have.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: as above.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above; the kernel only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

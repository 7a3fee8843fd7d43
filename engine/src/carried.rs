//! What one stream or flow has carried.

/// Payload at its socket: "in" is what came from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes received from the socket.
    pub bytes_in: u64,
    /// Bytes sent to it.
    pub bytes_out: u64,
    /// Datagrams received; of flows only, as below.
    pub datagrams_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
}

impl Carried {
    /// From the other end's side.
    #[must_use]
    pub fn turned(self) -> Self {
        let Self { bytes_in, bytes_out, datagrams_in, datagrams_out } = self;
        Self { bytes_in: bytes_out, bytes_out: bytes_in, datagrams_in: datagrams_out, datagrams_out: datagrams_in }
    }

    pub(crate) fn add_in(&mut self, length: usize) {
        self.datagrams_in += 1;
        self.bytes_in += length as u64;
    }

    pub(crate) fn add_out(&mut self, length: usize) {
        self.datagrams_out += 1;
        self.bytes_out += length as u64;
    }
}

//! What it does with a stream.

use isthmus_proto::limits::FRAME_PAYLOAD_MAX;
use isthmus_proto::link::{Link, Slot};
use isthmus_proto::wire::{HEADER_LEN, write_data_header};
use isthmus_proto::{Code, Instant};

use super::{COUNT, ECHO, HELLO, RESET, SOURCE};

#[derive(Default)]
pub(super) struct Stream {
    pub(super) what: u16,
    /// To be sent.
    pub(super) out: Vec<u8>,
    sent: usize,
    pub(super) taken: u64,
    pub(super) fin_in: bool,
    fin_out: bool,
}

impl Stream {
    /// At this port number of the host, with something to send.
    pub(super) fn new(what: u16, out: Vec<u8>) -> Self {
        Self { what, out, ..Self::default() }
    }

    /// Queues what credit allows; `false` when nothing is left to be done.
    pub(super) fn pump(&mut self, link: &mut Link<Vec<u8>>, slot: Slot, now: Instant) -> bool {
        while self.sent < self.out.len() {
            let room = link.room(slot).min(FRAME_PAYLOAD_MAX);
            if room == 0 || link.is_congested() {
                return link.owner(slot).is_some();
            }
            let part = &self.out[self.sent..self.out.len().min(self.sent + room)];
            let mut header = [0; HEADER_LEN];
            write_data_header(&mut header, slot.id(), part.len() as u16);
            link.enqueue(slot, [&header, part].concat(), now);
            self.sent += part.len();
        }
        let done = match self.what {
            HELLO | SOURCE => true,
            ECHO | COUNT => self.fin_in,
            _ => false,
        };
        if done && !self.fin_out {
            self.fin_out = true;
            link.finish(slot);
        }
        // Once the bytes are on their way.
        if self.what == RESET && link.queued() == 0 {
            link.reset(slot, Code::Reset);
        }
        link.owner(slot).is_some()
    }
}

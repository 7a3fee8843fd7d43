//! Frames -> records -> one contiguous piece for the socket.

use std::ops::Range;

use isthmus_proto::link::Transmit;
use isthmus_proto::record::{PLAINTEXT_MAX, RECORD_HEADER, RecordError, Session};

use crate::state::State;

/// Most bytes of one send. More would only make an interactive frame wait longer behind it.
const BATCH_MAX: usize = 256 * 1024;

/// What is to be written to the socket.
#[derive(Default)]
pub(crate) struct Egress {
    out: Vec<u8>,
    written: usize,
    /// Records of `out` that are to be sealed.
    records: Vec<Range<usize>>,
    /// The batch was full: the link may have more.
    more: bool,
}

impl Egress {
    /// What the socket has not taken yet.
    pub(crate) fn unwritten(&self) -> &[u8] {
        self.out.get(self.written..).unwrap_or_default()
    }

    /// The socket took `n` bytes.
    pub(crate) fn on_written(&mut self, n: usize) {
        self.written += n;
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
    }

    /// Whether the driver need not wait for anything before the next batch.
    pub(crate) fn has_more(&self) -> bool {
        self.more
    }

    /// # Errors
    /// [`RecordError`]: the connection's end.
    pub(crate) fn write_key_update(&mut self, session: &mut Session) -> Result<(), RecordError> {
        session.write_key_update(false, &mut self.out)
    }

    /// # Errors
    /// [`RecordError`]: the connection's end.
    pub(crate) fn write_close_notify(&mut self, session: &mut Session) -> Result<(), RecordError> {
        session.write_close_notify(&mut self.out)
    }

    /// # Errors
    /// [`RecordError`]: the connection's end.
    pub(crate) fn write_alert(&mut self, session: &mut Session, alert: u8) -> Result<(), RecordError> {
        session.write_alert(alert, &mut self.out)
    }

    /// Lays the next batch's frames out in records, unsealed, so that the lock around `state` is held for
    /// copying only. Small frames share a record.
    pub(crate) fn gather(&mut self, state: &mut State, tail: usize) {
        let mut record = Open { out: &mut self.out, records: &mut self.records, tail, start: None };
        self.more = false;
        loop {
            if record.out.len() >= BATCH_MAX {
                self.more = true;
                break;
            }
            match state.link.transmit() {
                None => break,
                Some(Transmit::Frame { owner, frame, .. }) => {
                    if record.room() < frame.len() {
                        record.close();
                    }
                    record.open();
                    record.out.extend_from_slice(&frame);
                    state.on_sent(owner, frame.len());
                }
                Some(Transmit::Control) => {
                    let room = record.room();
                    let frames = state.link.control().take(room);
                    if frames.is_empty() {
                        // The next one needs a record of its own. No frame needs more than a record.
                        if room == PLAINTEXT_MAX {
                            break;
                        }
                        record.close();
                        continue;
                    }
                    record.open();
                    record.out.extend_from_slice(frames);
                }
            }
        }
        record.close();
        state.link.control().reclaim();
    }

    /// Seals what was gathered.
    ///
    /// # Errors
    /// [`RecordError`]: the connection's end.
    pub(crate) fn seal(&mut self, session: &mut Session) -> Result<(), RecordError> {
        for range in self.records.drain(..) {
            // They were laid out in it a moment ago.
            session.seal(self.out.get_mut(range).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// The record that is being filled.
struct Open<'a> {
    out: &'a mut Vec<u8>,
    records: &'a mut Vec<Range<usize>>,
    tail: usize,
    start: Option<usize>,
}

impl Open<'_> {
    fn room(&self) -> usize {
        self.start.map_or(PLAINTEXT_MAX, |start| PLAINTEXT_MAX + RECORD_HEADER - (self.out.len() - start))
    }

    fn open(&mut self) {
        if self.start.is_none() {
            self.start = Some(self.out.len());
            self.out.extend_from_slice(&[0; RECORD_HEADER]);
        }
    }

    fn close(&mut self) {
        if let Some(start) = self.start.take() {
            self.out.resize(self.out.len() + self.tail, 0);
            self.records.push(start..self.out.len());
        }
    }
}

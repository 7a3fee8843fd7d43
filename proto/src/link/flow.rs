//! Credit, as absolute offsets (RFC 9000 section 4.1), and the growth of receive windows.
//!
//! A sender sends a frame only when the whole of it fits its credit. That never deadlocks: a receiver
//! whose window is at least [`WINDOW_START`] has, after each grant, at least three quarters of it
//! outstanding, which is more than a frame; a smaller window is granted afresh whenever less than a
//! frame is left of it.

use std::time::Duration;

use super::port::{Port, PortKind, Slot};
use super::{Link, Payload};
use crate::limits::{FRAME_PAYLOAD_MAX, GATHER_MAX, LINK_WINDOW_SUM_MAX, WINDOW_EARLY, WINDOW_MAX, WINDOW_START};
use crate::time::Instant;
use crate::wire::Frame;

/// Round trip that is assumed before one is measured: windows then grow at once to what a path of
/// this length needs.
const RTT_UNKNOWN: Duration = Duration::from_millis(50);

/// Shortest interval over which consumption is measured: shorter ones see single batches, not a rate.
const RTT_FLOOR: Duration = Duration::from_millis(2);

/// A window shrinks to no less because of a queue.
const QUEUED_MIN: u64 = 256 * 1024;

/// What bulk may have ahead, all of it together, on a link that it shares with ports that have a little now and then, unless the
/// path's own round trip needs more: each byte of it that waits at the receiver is a delay for them.
const SHARED_MAX: u64 = 1024 * 1024;

/// A link counts as shared for so long after a little.
const SHARED_FOR: Duration = Duration::from_millis(100);

/// Less left of a link's budget is too little for all.
const SCARCE: u64 = LINK_WINDOW_SUM_MAX as u64 / 8;

impl<P: Payload> Link<P> {
    /// How many more payload bytes the source of this port may read: its credit less what is sent or queued.
    pub fn room(&self, slot: Slot) -> usize {
        self.ports.get(slot).map_or(0, |port| {
            let ahead = port.send_max.saturating_sub(port.sent);
            usize::try_from(ahead).unwrap_or(usize::MAX).saturating_sub(port.queued)
        })
    }

    /// Whether the other end may still send a whole frame on this port: then it needs no word of what was
    /// consumed, which its next frame, or any other, will bring about. A port that is gone needs none.
    pub fn has_credit_left(&self, slot: Slot) -> bool {
        self.ports.get(slot).is_none_or(|port| {
            let enough = if port.unanswered { WINDOW_EARLY / 2 } else { FRAME_PAYLOAD_MAX as u32 };
            port.fin_received || port.granted.saturating_sub(port.received) >= u64::from(enough)
        })
    }

    /// The driver has got rid of `n` received payload bytes of a port; more may be granted. A slot
    /// that is gone is passed over.
    pub fn consumed(&mut self, slot: Slot, n: usize, now: Instant) {
        let rtt = self.pulse.rtt().unwrap_or(RTT_UNKNOWN).max(RTT_FLOOR);
        let Some(port) = self.ports.get_mut(slot) else { return };
        port.consumed += n as u64;
        if port.kind != PortKind::Tcp {
            return;
        }
        if (1..=GATHER_MAX).contains(&n) && port.window <= WINDOW_START {
            self.shared_until = now + SHARED_FOR;
        }
        if port.fin_received {
            return self.charge(slot);
        }
        let elapsed = now.since(port.epoch);
        if elapsed >= rtt {
            let bytes = port.consumed - port.epoch_consumed;
            let per = |time: Duration| (u128::from(bytes) * time.as_nanos() / elapsed.as_nanos().max(1)) as u64;
            port.epoch = now;
            port.epoch_consumed = port.consumed;
            let window = u64::from(port.window);
            let queued = std::mem::replace(&mut port.epoch_empty, self.empty) == self.empty && self.backlog;
            let most = if now < self.shared_until {
                let share = SHARED_MAX / u64::from(self.windows_wanted.max(1));
                let path = per(self.pulse.rtt_min().unwrap_or(rtt)) * 2;
                share.max(path).clamp(QUEUED_MIN, u64::from(WINDOW_MAX))
            } else {
                u64::from(WINDOW_MAX)
            };
            let wanted = if queued || window > most {
                let least = if queued { QUEUED_MIN } else { most };
                window.min(least.max(window - window / 8))
            } else {
                (per(rtt) * 2).clamp(window, most)
            };
            // Where the budget runs out, who came first does not keep what others could use: windows beyond an equal share
            // shrink to it as they are used.
            let wants = wanted > window || window > u64::from(WINDOW_START);
            self.windows_wanted = self.windows_wanted - u32::from(port.wants_window) + u32::from(wants);
            port.wants_window = wants;
            let share = u64::from((LINK_WINDOW_SUM_MAX / self.windows_wanted.max(1)).max(WINDOW_START));
            let left = u64::from(LINK_WINDOW_SUM_MAX).saturating_sub(self.window_sum);
            let next = wanted.min(window + left);
            port.window = if left < SCARCE { next.min(share) } else { next } as u32;
        }
        self.charge(slot);
        if self.grant(slot) {
            self.pulse.sample(now, &mut self.control);
        }
    }

    /// Opens a new port's receive window as far as the link's budget lasts.
    pub(super) fn start_window(&mut self, slot: Slot, now: Instant) {
        self.reserve_window(slot, now);
        self.grant(slot);
    }

    /// The same, without telling yet.
    pub(super) fn reserve_window(&mut self, slot: Slot, now: Instant) {
        let extra = u64::from(WINDOW_START - WINDOW_EARLY);
        let Some(port) = self.ports.get_mut(slot) else { return };
        port.epoch = now;
        if self.window_sum + extra <= u64::from(LINK_WINDOW_SUM_MAX) {
            port.window = WINDOW_START;
            self.charge(slot);
        }
    }

    /// Charges the link's budget with what a port may still bring and has not got rid of: its window, or more where that has
    /// shrunk; after the other end's FIN, what has come.
    pub(super) fn charge(&mut self, slot: Slot) {
        let Some(port) = self.ports.get_mut(slot) else { return };
        let most = if port.fin_received {
            port.received.saturating_sub(port.consumed)
        } else {
            port.granted.saturating_sub(port.consumed).max(u64::from(port.window))
        };
        let charged = most.saturating_sub(u64::from(WINDOW_EARLY));
        self.window_sum = self.window_sum + charged - std::mem::replace(&mut port.charged, charged);
        if port.fin_received && std::mem::take(&mut port.wants_window) {
            self.windows_wanted -= 1;
        }
    }

    /// Gives a port's share of the budget back.
    pub(super) fn end_window(&mut self, port: &Port<P>) {
        self.windows_wanted -= u32::from(port.wants_window);
        self.window_sum -= port.charged;
    }

    pub(super) fn grant(&mut self, slot: Slot) -> bool {
        let Some(port) = self.ports.get_mut(slot) else { return false };
        let target = port.consumed + u64::from(port.window);
        let gain = target.saturating_sub(port.granted);
        let scarce = port.window < WINDOW_START && port.granted - port.received < FRAME_PAYLOAD_MAX as u64;
        if gain < u64::from(port.window / 4) && !(scarce && gain > 0) {
            return false;
        }
        port.granted = target;
        self.control.push(&Frame::Credit { port: port.id, offset: target });
        true
    }
}

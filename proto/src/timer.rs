//! A hierarchical timer wheel: one for all the timers of a shard.

use std::time::Duration;

use crate::time::Instant;

/// Bits of a tick's number that choose the slot in one level.
const LEVEL_BITS: u32 = 6;
const SLOTS: usize = 1 << LEVEL_BITS;

/// Enough for every [`Instant`]: 2^64 ns are less than 2^42 ticks, so that nothing overflows or wraps.
const LEVELS: usize = 7;

/// The list of those that are due already; the number behind the last slot's.
const DUE: usize = LEVELS * SLOTS;

/// No key: an end of a list.
const NIL: u32 = u32::MAX;

/// In no list.
const UNSET: u16 = u16::MAX;

/// Timers with caller-given keys, at most one each. Keys are dense: memory is 24 B times the largest
/// one, and none is given back. No call but the growth for a new key allocates.
///
/// Time counts in ticks. Level 0 has a slot for each of the next 64 ticks, level 1 one for each 64 ticks after
/// that, and so on; a slot of a higher level is dealt out to the lower ones when its time comes.
///
/// ```text
/// tick   ..| digit 2 | digit 1 | digit 0 |     6 bits each
/// A timer is in the level of the highest digit in which its tick differs from the wheel's, in the
/// slot of that digit. The wheel only moves up to the next occupied slot, so this stays true.
/// ```
#[derive(Clone, Debug)]
pub struct TimerWheel {
    nodes: Vec<Node>,
    heads: [u32; DUE + 1],
    /// A bit for each occupied slot, one word for each level.
    occupied: [u64; LEVELS],
    /// Every timer up to this tick has been given out or is in the due list.
    now: u64,
    count: usize,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    tick: u64,
    prev: u32,
    next: u32,
    list: u16,
}

const _: () = assert!(size_of::<Node>() == 24 && DUE < UNSET as usize);
const _: () = assert!((u64::MAX / TimerWheel::TICK.as_nanos() as u64) < 1 << (LEVEL_BITS * LEVELS as u32));

impl TimerWheel {
    /// The wheel's resolution. A ring that waits in shorter steps pays for it in latency.
    pub const TICK: Duration = Duration::from_millis(8);

    /// An empty wheel.
    pub fn new() -> Self {
        Self { nodes: Vec::new(), heads: [NIL; DUE + 1], occupied: [0; LEVELS], now: 0, count: 0 }
    }

    /// Timers that are set.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Sets `key`'s timer, in place of the one that it may have.
    pub fn set(&mut self, key: u32, deadline: Instant) {
        debug_assert!(key != NIL, "the largest number is no key");
        let index = key as usize;
        if index >= self.nodes.len() {
            self.nodes.resize(index + 1, Node { tick: 0, prev: NIL, next: NIL, list: UNSET });
        }
        // Rounded up, so that no timer is early.
        let tick = deadline.0.div_ceil(TICK_NS);
        let list = self.list_of(tick);
        if usize::from(self.nodes[index].list) != list {
            self.unlink(key);
            self.link(key, list);
        }
        self.nodes[index].tick = tick;
    }

    /// Takes `key`'s timer off, if it has one.
    pub fn cancel(&mut self, key: u32) {
        if (key as usize) < self.nodes.len() {
            self.unlink(key);
        }
    }

    /// Appends to `out` the keys whose deadline is `now` or before, in no order, and takes their
    /// timers off. None is early; each is late by less than [`TimerWheel::TICK`], besides how late
    /// the call is.
    pub fn expire(&mut self, now: Instant, out: &mut Vec<u32>) {
        let target = now.0 / TICK_NS;
        while let Some((level, slot, tick)) = self.first_slot().filter(|&(_, _, tick)| tick <= target) {
            self.now = tick;
            let list = level * SLOTS + slot;
            let mut key = self.heads[list];
            while key != NIL {
                let Node { tick, next, .. } = self.nodes[key as usize];
                self.unlink(key);
                // Lower levels, or the due list: never the same list again, so this ends.
                self.link(key, self.list_of(tick));
                key = next;
            }
        }
        self.now = self.now.max(target);
        while self.heads[DUE] != NIL {
            let key = self.heads[DUE];
            self.unlink(key);
            out.push(key);
        }
    }

    /// When to call [`TimerWheel::expire`] next; `None` when no timer is set. Never later than the
    /// earliest time at which it would give a key out; it may be earlier, when that call only deals out a
    /// slot. A call at the time told always gets on: the answer then is a later one. May change
    /// after each call of the others.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.heads[DUE] != NIL {
            return Some(Instant(self.now.saturating_mul(TICK_NS)));
        }
        self.first_slot().map(|(_, _, tick)| Instant(tick.saturating_mul(TICK_NS)))
    }

    /// The occupied slot that is earliest, with its first tick. All of a level is earlier than any
    /// of the next, and in a level all occupied slots are ahead of the wheel's own digit.
    fn first_slot(&self) -> Option<(usize, usize, u64)> {
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        let shift = LEVEL_BITS * level as u32;
        let above = self.now >> (shift + LEVEL_BITS) << (shift + LEVEL_BITS);
        Some((level, slot, above | (slot as u64) << shift))
    }

    fn list_of(&self, tick: u64) -> usize {
        if tick <= self.now {
            return DUE;
        }
        let level = (tick ^ self.now).ilog2() / LEVEL_BITS;
        let slot = (tick >> (LEVEL_BITS * level)) as usize % SLOTS;
        level as usize * SLOTS + slot
    }

    /// Puts `key`, which is in no list, at the front of one.
    fn link(&mut self, key: u32, list: usize) {
        let head = self.heads[list];
        let node = &mut self.nodes[key as usize];
        (node.prev, node.next, node.list) = (NIL, head, list as u16);
        if head != NIL {
            self.nodes[head as usize].prev = key;
        }
        self.heads[list] = key;
        if list != DUE {
            self.occupied[list / SLOTS] |= 1 << (list % SLOTS);
        }
        self.count += 1;
    }

    /// Takes `key` out of its list, if it is in one.
    fn unlink(&mut self, key: u32) {
        let Node { prev, next, list, .. } = self.nodes[key as usize];
        if list == UNSET {
            return;
        }
        let list = usize::from(list);
        if next != NIL {
            self.nodes[next as usize].prev = prev;
        }
        if prev != NIL {
            self.nodes[prev as usize].next = next;
        } else {
            self.heads[list] = next;
            if next == NIL && list != DUE {
                self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
            }
        }
        self.nodes[key as usize].list = UNSET;
        self.count -= 1;
    }
}

impl Default for TimerWheel {
    fn default() -> Self {
        Self::new()
    }
}

const TICK_NS: u64 = TimerWheel::TICK.as_nanos() as u64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn expired(wheel: &mut TimerWheel, now: u64) -> Vec<u32> {
        let mut out = Vec::new();
        wheel.expire(Instant(now), &mut out);
        out.sort_unstable();
        out
    }

    #[test]
    fn timer_is_given_out_once_never_early_and_within_a_tick() {
        let mut wheel = TimerWheel::new();
        wheel.set(3, Instant(5 * TICK_NS + 1));
        assert_eq!(wheel.len(), 1);
        assert_eq!(expired(&mut wheel, 5 * TICK_NS + 1), []);
        assert_eq!(wheel.next_deadline(), Some(Instant(6 * TICK_NS)));
        assert_eq!(expired(&mut wheel, 6 * TICK_NS - 1), []);
        assert_eq!(expired(&mut wheel, 6 * TICK_NS), [3]);
        assert_eq!(expired(&mut wheel, 7 * TICK_NS), []);
        assert!(wheel.is_empty() && wheel.next_deadline().is_none());
    }

    #[test]
    fn deadline_on_a_tick_is_given_out_at_it() {
        let mut wheel = TimerWheel::new();
        for tick in [1, 63, 64, 65, 4095, 4096, 4097, 1 << 30, (1 << 30) + 1] {
            wheel.set(0, Instant(tick * TICK_NS));
            assert_eq!(expired(&mut wheel, tick * TICK_NS - 1), [], "{tick}");
            assert_eq!(expired(&mut wheel, tick * TICK_NS), [0], "{tick}");
        }
    }

    #[test]
    fn past_deadline_is_due_at_once() {
        let mut wheel = TimerWheel::new();
        assert_eq!(expired(&mut wheel, 1000 * TICK_NS), []);
        wheel.set(1, Instant(999 * TICK_NS));
        wheel.set(2, Instant(1000 * TICK_NS));
        assert!(wheel.next_deadline().unwrap() <= Instant(1000 * TICK_NS));
        assert_eq!(expired(&mut wheel, 1000 * TICK_NS), [1, 2]);
    }

    #[test]
    fn later_set_replaces_and_cancel_takes_off() {
        let mut wheel = TimerWheel::new();
        wheel.set(1, Instant(10 * TICK_NS));
        wheel.set(1, Instant(20 * TICK_NS));
        wheel.set(2, Instant(10 * TICK_NS));
        wheel.cancel(2);
        wheel.cancel(2);
        wheel.cancel(77);
        assert_eq!(wheel.len(), 1);
        assert_eq!(expired(&mut wheel, 15 * TICK_NS), []);
        assert_eq!(expired(&mut wheel, 20 * TICK_NS), [1]);
    }

    #[test]
    fn last_instant_of_all_can_be_set() {
        let mut wheel = TimerWheel::new();
        wheel.set(0, Instant(u64::MAX));
        wheel.set(1, Instant(u64::MAX - TICK_NS));
        assert_eq!(expired(&mut wheel, u64::MAX / 2), []);
        assert_eq!(expired(&mut wheel, u64::MAX), [1]);
        assert_eq!(wheel.len(), 1);
        assert!(wheel.next_deadline().is_some());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(u32, u64),
        Cancel(u32),
        Advance(u64),
        Follow,
    }

    fn op() -> impl Strategy<Value = Op> {
        let span = prop_oneof![0..3u64, 0..70u64, 0..5000u64, 0..400_000u64, 0..1u64 << 35];
        let nanos = (span, 0..TICK_NS).prop_map(|(ticks, rest)| ticks * TICK_NS + rest);
        prop_oneof![
            6 => (0..40u32, nanos.clone()).prop_map(|(key, after)| Op::Set(key, after)),
            1 => (0..50u32).prop_map(Op::Cancel),
            2 => nanos.prop_map(Op::Advance),
            4 => Just(Op::Follow),
        ]
    }

    proptest! {
        #[test]
        fn wheel_agrees_with_a_sorted_map(ops in prop::collection::vec(op(), 1..300)) {
            let mut wheel = TimerWheel::new();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = 0u64;
            for op in ops {
                match op {
                    Op::Set(key, after) => {
                        wheel.set(key, Instant(now + after));
                        model.insert(key, now + after);
                    }
                    Op::Cancel(key) => {
                        wheel.cancel(key);
                        model.remove(&key);
                    }
                    Op::Advance(by) => now += by,
                    // As a driver does: sleep until the time told.
                    Op::Follow => {
                        if let Some(next) = wheel.next_deadline() {
                            now = now.max(next.0);
                        }
                    }
                }
                let got = expired(&mut wheel, now);
                for key in &got {
                    let deadline = model.remove(key);
                    prop_assert!(deadline.is_some_and(|deadline| deadline <= now), "{} is early or unknown", key);
                }
                for (key, &deadline) in &model {
                    prop_assert!(deadline + TICK_NS > now, "{} is late", key);
                }
                prop_assert_eq!(wheel.len(), model.len());
                let next = wheel.next_deadline();
                prop_assert_eq!(next.is_none(), model.is_empty());
                if let (Some(next), Some(&first)) = (next, model.values().min()) {
                    prop_assert!(next.0 < first + TICK_NS, "the wait would be too long");
                    prop_assert!(next.0 > now, "a call at the time told must get on");
                }
            }
        }
    }
}

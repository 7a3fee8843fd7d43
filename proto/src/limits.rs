//! The bounds of every queue, table, window and wait, in one place.

use std::time::Duration;

/// Most payload bytes of one frame: a record's plaintext without the frame header.
pub const FRAME_PAYLOAD_MAX: usize = crate::record::PLAINTEXT_MAX - crate::wire::HEADER_LEN;

/// Frames up to this payload are gathered into one record; copying them costs less than a record each.
pub const GATHER_MAX: usize = 1024;

/// Bytes that either end may send on a new port before any credit is granted: one full frame.
pub const WINDOW_EARLY: u32 = 16 * 1024;

/// Receive window of a port once it is granted, while the link's budget lasts.
pub const WINDOW_START: u32 = 64 * 1024;

/// Largest receive window of one port.
pub const WINDOW_MAX: u32 = 4 * 1024 * 1024;

/// Sum of what a link's ports may have beyond [`WINDOW_EARLY`] each. A link's buffered bytes are
/// bounded by this and `ports_max * WINDOW_EARLY`.
pub const LINK_WINDOW_SUM_MAX: u32 = 16 * 1024 * 1024;

/// A link's egress queue at which its sources are paused.
pub const EGRESS_HIGH: usize = 512 * 1024;

/// And at which they go on.
pub const EGRESS_LOW: usize = 256 * 1024;

/// Bytes of datagrams that may wait for a link's TCP channel per port before more are dropped and counted.
pub const DATAGRAM_QUEUE_MAX: usize = 1024 * 1024;

/// Frame bytes queued on a whole link beyond which new datagrams for its TCP channel are dropped.
pub const LINK_DATAGRAM_QUEUE_MAX: usize = 16 * 1024 * 1024;

/// Bytes queued on all links and streams of one thread beyond which no new port is opened there.
pub const SHARD_QUEUED_MAX: usize = 1024 * 1024 * 1024;

/// Largest UDP payload over IPv4 (65,535 less 20 of IP and 8 of UDP).
pub const DATAGRAM_MAX: usize = 65_507;

/// Default for the most ports of one link.
pub const PORTS_MAX: u32 = 32_768;

/// Most ports that any configuration may ask for: the identifier's index has 19 bits.
pub const PORTS_MAX_MAX: u32 = 1 << 19;

/// Most bytes of encoded control frames that may wait on a link; a peer that makes us queue more
/// (by asking without reading the answers) is cut off.
pub const CONTROL_QUEUE_MAX: usize = 4 * 1024 * 1024;

/// No new port is opened on a link on which so many bytes of control frames wait: control goes before payload, so that
/// visitors who come and go faster than the link can tell of them would starve it, and end it at [`CONTROL_QUEUE_MAX`].
pub const CONTROL_QUEUE_HIGH: usize = 256 * 1024;

/// Most ports and names together that one mediator may ask the relay for.
pub const ASKS_MAX: usize = 16;

/// Most UDP channels of one link.
pub const CHANNELS_MAX: u8 = 16;

/// Interval of maintain packets on an idle TCP channel. Many firewalls forget after 60 s or less.
pub const KEEPALIVE_TCP: Duration = Duration::from_secs(20);

/// Interval of maintain packets on each UDP channel: below the 10 s of the strictest gateways; 30 s
/// is the shortest common one.
pub const KEEPALIVE_UDP: Duration = Duration::from_secs(8);

/// Longest silence that is tried when a mediator learns how long its gateway keeps UDP bindings: the minimum that RFC
/// 4787 (REQ-5) allows a gateway. Longer ones would save little and be noticed late when they are wrong.
pub const KEEPALIVE_UDP_MAX: Duration = Duration::from_secs(120);

/// A channel without any answer for this long after a maintain packet is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(10);

/// A handshake, TLS and greeting together, must end within this.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for a destination to answer a connect, unless the request says otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest plaintext UDP payload that a channel carries, for a path MTU of 1,500 bytes over IPv4 or
/// 1,480 over IPv6-in-something: 1,452 bytes of UDP payload less the channel's own overhead.
pub const CHANNEL_PLAINTEXT_MAX: usize = 1452 - crate::record::DATAGRAM_OVERHEAD;

const _: () = assert!(FRAME_PAYLOAD_MAX <= u16::MAX as usize);
const _: () = assert!(WINDOW_EARLY as usize >= 4096 && WINDOW_EARLY <= WINDOW_START && WINDOW_START <= WINDOW_MAX);
// A sender waits until a whole piece (at most a frame) fits its credit; a grant every quarter window
// must therefore always leave room for one: see `link::flow`.
const _: () = assert!(WINDOW_START as usize * 3 / 4 >= FRAME_PAYLOAD_MAX);
const _: () = assert!(WINDOW_EARLY as usize >= FRAME_PAYLOAD_MAX);
const _: () = assert!(EGRESS_LOW < EGRESS_HIGH);
const _: () = assert!(CHANNEL_PLAINTEXT_MAX > 1400);

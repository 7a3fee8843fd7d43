//! What an engine counts. Plain numbers of one thread; the party publishes them.

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the engine's start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        impl Counts {
            /// Name and value of each.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

impl Counts {
    /// Grows whenever payload moved; maintain packets and control are none.
    pub(crate) fn payload_moved(&self) -> u64 {
        let streams = self.stream_bytes_in + self.stream_bytes_out + self.bridge_bytes;
        streams + self.datagrams_in + self.datagrams_out
    }
}

counts! {
    /// Turns of the loop.
    turns,
    /// Those that were kept short, since something was interactive.
    turns_short,
    /// Stream bytes from plain sockets into links.
    stream_bytes_in,
    /// Stream bytes from links out to plain sockets.
    stream_bytes_out,
    /// Stream and datagram bytes from one link to another.
    bridge_bytes,
    /// Records sealed.
    records_sealed,
    /// Records opened.
    records_opened,
    /// Payloads copied since their buffer had no room for headers.
    payloads_copied,
    /// Bytes of partial records moved in front of the next receive.
    partial_bytes_moved,
    /// Frames gathered into a shared record.
    frames_gathered,
    /// Receives that found no buffer and were tried again.
    buffers_exhausted,
    /// Stalled payloads moved to memory of their own size, to free shared buffers.
    stalled_bytes_compacted,
    /// Callers' handshakes with a ticket of an earlier connection.
    handshakes_resumed,
    /// Key updates received and sent.
    key_updates,
    /// Datagrams from plain sockets.
    datagrams_in,
    /// Datagrams out to plain sockets.
    datagrams_out,
    /// Datagrams sealed for UDP channels.
    channel_datagrams_out,
    /// Authentic datagrams from UDP channels.
    channel_datagrams_in,
    /// Redirected datagrams that went over TCP since they did not fit a UDP channel.
    datagrams_oversize,
    /// Redirected datagrams that went over TCP since no UDP channel worked, or none was known yet.
    datagrams_by_tcp,
    /// Datagrams dropped since too many waited.
    datagrams_dropped_full,
    /// Redirected datagrams dropped: no UDP channel worked and the fallback was not allowed.
    datagrams_dropped_channel,
    /// UDP channel datagrams whose authentication failed.
    datagrams_forged,
    /// UDP channel datagrams dropped unlooked at: they claimed a new key epoch, and so did too many others in that second.
    datagrams_epoch_limited,
    /// UDP channel datagrams seen before, or too old to tell.
    datagrams_replayed,
    /// UDP channel datagrams that name no channel.
    datagrams_unknown_channel,
    /// Datagrams for a port that is gone.
    datagrams_unknown_port,
    /// Visitors' and hosts' datagrams refused by the bound on flows.
    datagrams_refused_flows,
    /// Dismissed guests cut off with a reset, since too many others were reading their last reply.
    guests_cut,
    /// Fragments of SOCKS5 clients, dropped.
    associations_fragments,
    /// Other datagrams of SOCKS5 clients that were dropped: from elsewhere, malformed, or to where they may not go.
    associations_refused,
    /// Datagrams that the system refused to send.
    datagrams_send_failed,
    /// Datagrams larger than the receive buffer, cut by the system, dropped.
    datagrams_truncated,
    /// UDP channels whose other end's address changed, after authentication.
    channels_roamed,
    /// Farewells that a send in flight kept from going out in time, or for which too many others waited.
    farewells_cut,
    /// Accepts that failed.
    accept_errors,
}

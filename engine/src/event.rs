//! What the engine tells the party that uses it.

use std::net::SocketAddr;

use isthmus_proto::Code;
use isthmus_proto::link::{LinkStats, Slot};
use isthmus_proto::wire::{Frame, NamedTarget, OpenFlags, RequestKind};
use isthmus_ring::Socket;

use crate::Engine;
use crate::carried::Carried;
use crate::key::Key;

/// The party's decisions. Called from within a turn, with the engine free to be used.
pub trait Control {
    /// Something happened that the data plane does not decide.
    fn on_event(&mut self, engine: &mut Engine, event: Event<'_>);

    /// Once a turn, before what is queued goes out: take messages from other threads.
    fn on_turn(&mut self, engine: &mut Engine);

    /// Whether messages wait (asked before the thread sleeps).
    fn has_work(&self) -> bool;
}

/// Something that the control decides or wants to know.
#[derive(Debug)]
pub enum Event<'a> {
    /// A connection came to a listener.
    Accepted {
        /// The listener's number, as given.
        tag: u32,
        /// The connection.
        socket: Socket,
        /// Who.
        peer: SocketAddr,
    },
    /// A caller's TLS handshake is done: greet.
    LinkReady {
        /// The link.
        link: Key,
    },
    /// A frame came on a link that is not yet established.
    Greeting {
        /// The link.
        link: Key,
        /// The frame.
        frame: Frame<'a>,
    },
    /// A link ended. Its ports' streams and flows are ended already; bridged ports were reset.
    LinkEnded {
        /// The link (gone).
        link: Key,
        /// Why.
        code: Code,
        /// More about it, from the other end or from TLS.
        text: String,
        /// What the other end asked us to wait.
        retry_after_ms: u32,
        /// The other end's address.
        peer: SocketAddr,
        /// What it carried, once it was authenticated.
        stats: LinkStats,
    },
    /// A responder's link was asked for something.
    Request {
        /// The link.
        link: Key,
        /// The port.
        slot: Slot,
        /// Its owner; zero for a port that is new.
        owner: Key,
        /// Number for the answer.
        request: u16,
        /// For what.
        ask: Ask,
    },
    /// A responder's link was asked to connect a port to a host by its name; answered as a connect.
    RequestName {
        /// The link.
        link: Key,
        /// The port.
        slot: Slot,
        /// Its owner.
        owner: Key,
        /// Number for the answer.
        request: u16,
        /// Where to.
        to: NamedTarget<'a>,
        /// Milliseconds; 0 for the default.
        timeout_ms: u32,
    },
    /// A requester's link was answered.
    Answered {
        /// The link.
        link: Key,
        /// The port.
        slot: Slot,
        /// Its owner.
        owner: Key,
        /// To which request.
        to: RequestKind,
        /// Its number.
        request: u16,
        /// How it went.
        code: Code,
        /// The port's address on the mediator, where known.
        local: SocketAddr,
        /// Whether the port is gone by it.
        over: bool,
    },
    /// A host connected to a server port of the mediator.
    PortAccepted {
        /// The tunnel.
        link: Key,
        /// Owner of the server port.
        owner: Key,
        /// The new port.
        slot: Slot,
        /// The server port.
        parent: Slot,
        /// The host.
        peer: SocketAddr,
        /// Where it connected to.
        local: SocketAddr,
    },
    /// A port whose owner is the control's (no stream yet) or a listener was reset or has ended.
    PortEnded {
        /// The link.
        link: Key,
        /// The port's owner.
        owner: Key,
        /// Why.
        code: Code,
    },
    /// A UDP port's ICMP error, from the mediator.
    UdpError {
        /// The tunnel.
        link: Key,
        /// The port's owner.
        owner: Key,
        /// The port.
        slot: Slot,
        /// Refused or unreachable.
        code: Code,
        /// Whose packet failed.
        remote: SocketAddr,
    },
    /// A mediator's new report.
    Report {
        /// The tunnel.
        link: Key,
        /// JSON.
        json: &'a [u8],
    },
    /// A caller's new token, instead of the one that it greeted with.
    Renew {
        /// The link.
        link: Key,
        /// The token.
        token: &'a str,
    },
    /// Who is meant by a number in [`Ask::Open`].
    Asker {
        /// The link.
        link: Key,
        /// The number.
        asker: u16,
        /// Who.
        name: &'a str,
    },
    /// What became of a mediator's asks.
    Outcomes {
        /// The tunnel.
        link: Key,
        /// JSON.
        json: &'a [u8],
    },
    /// A terminal's question.
    Query {
        /// The terminal's link.
        link: Key,
        /// Its number.
        query: u32,
        /// JSON.
        json: &'a [u8],
    },
    /// A connect of a stream ended. On failure the stream is gone.
    Connected {
        /// The stream.
        stream: Key,
        /// The link that its port is on.
        link: Key,
        /// The port.
        slot: Slot,
        /// How it went.
        result: std::io::Result<()>,
    },
    /// A stream is gone.
    StreamEnded {
        /// The stream.
        stream: Key,
        /// The number given with it.
        tag: u32,
        /// [`Code::Closed`] for an orderly end.
        code: Code,
        /// What it carried, as far as its socket is concerned.
        carried: Carried,
    },
    /// Bytes came from a guest ([`Engine::guest_bytes`]), or its end.
    GuestBytes {
        /// The guest.
        guest: Key,
        /// The number given with it.
        tag: u32,
        /// It sends no more.
        ended: bool,
    },
    /// A guest is gone before it was admitted or dismissed.
    GuestEnded {
        /// The guest (gone).
        guest: Key,
        /// The number given with it.
        tag: u32,
        /// [`Code::TimedOut`], or [`Code::Reset`] when its connection failed.
        code: Code,
    },
    /// A datagram came from a visitor without a flow: call [`Engine::add_flow`] to give it one.
    Visitor {
        /// The published socket.
        socket: Key,
        /// The number given with it.
        tag: u32,
        /// Who.
        visitor: SocketAddr,
    },
    /// A datagram came to an outlet from a host without a flow: call [`Engine::add_host`] to give it one.
    Host {
        /// The outlet's number.
        tag: u32,
        /// Who.
        host: SocketAddr,
    },
    /// A datagram of a host's flow did not arrive at the public address, for the first time. The flow goes on.
    FlowFailed {
        /// The outlet's number.
        tag: u32,
    },
    /// A flow was idle, or its port ended.
    FlowEnded {
        /// The published socket's number, or the outlet's.
        tag: u32,
        /// The flow.
        flow: Key,
        /// What it carried, as far as its socket is concerned.
        carried: Carried,
    },
    /// A datagram that is no channel's came to the service socket, or one of [`crate::UdpRole::Stray`]. It may be
    /// anybody's, under a forged address: see [`Engine::send_stray`].
    Stray {
        /// The socket.
        socket: Key,
        /// Who sent it, by its own word.
        from: SocketAddr,
        /// All of it.
        datagram: &'a [u8],
    },
    /// UDP channels of this link began or ceased to work (caller's end).
    ChannelsChanged {
        /// The link.
        link: Key,
    },
    /// A caller's link: how long the gateway's UDP bindings live was learned, in part, or forgotten.
    Lifetime {
        /// The link.
        link: Key,
        /// The longest silence that an answer survived, or the start value.
        proven: std::time::Duration,
        /// How far apart maintain packets on resting UDP channels are from now on.
        period: std::time::Duration,
        /// Whether nothing more is asked.
        settled: bool,
    },
    /// A timer of the control's.
    Timer {
        /// Its number.
        number: u32,
    },
    /// A watched descriptor is readable.
    Watched {
        /// Its number.
        number: u32,
    },
}

/// What a responder is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A new port.
    Open {
        /// How.
        flags: OpenFlags,
        /// Where.
        local: SocketAddr,
        /// Its only party.
        peer: Option<SocketAddr>,
        /// On whose behalf, by a number that [`Event::Asker`] told; zero for untold.
        asker: u16,
    },
    /// Connect it.
    Connect {
        /// Where to.
        to: SocketAddr,
        /// Milliseconds; 0 for the default.
        timeout_ms: u32,
    },
    /// Make it a server.
    Serve,
    /// Close it.
    Close,
    /// Switch it between open and redirect.
    Switch {
        /// To what.
        flags: OpenFlags,
    },
}

impl Ask {
    /// Which request it is, for the answer.
    pub fn kind(&self) -> RequestKind {
        match self {
            Self::Open { .. } => RequestKind::Open,
            Self::Connect { .. } => RequestKind::Connect,
            Self::Serve => RequestKind::Serve,
            Self::Close => RequestKind::Close,
            Self::Switch { .. } => RequestKind::Switch,
        }
    }
}

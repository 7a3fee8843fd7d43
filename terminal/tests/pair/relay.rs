//! A relay and mediator in one, of the same machines that the real ones use. What it does with a
//! connection is told by the destination's port number.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_proto::hello::{self, Hello, MediatorInfo, MediatorSummary, Query, QueryAnswer, Report, Welcome};
use isthmus_proto::limits::FRAME_PAYLOAD_MAX;
use isthmus_proto::link::{Input, Link, LinkConfig, Maintain, Side, Slot, Transmit};
use isthmus_proto::record::{
    ChannelKeys, DatagramHeader, End, Established, Opened, RECORD_HEADER, ServerHandshake, Session, Step, fingerprint,
    parse_header, server_config,
};
use isthmus_proto::wire::{
    ControlBuf, Frame, HEADER_LEN, InnerDatagrams, OpenFlags, RequestKind, TRAILER_ADDR_LEN, channel_kind, read_header,
    write_data_header, write_datagram_header, write_trailer,
};
use isthmus_proto::{ChannelId, Code, Instant, MediatorId, PortId, ShardId};
use isthmus_terminal::{Config, Mediator, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;

/// Sends back what comes.
pub(crate) const ECHO: u16 = 7;
/// Takes all; after the end, sends the count of bytes.
pub(crate) const COUNT: u16 = 9;
/// Sends "hello" and ends; then takes all, and the count goes to [`Seen::Sunk`].
pub(crate) const HELLO: u16 = 13;
/// Connects and never takes a byte.
pub(crate) const STALL: u16 = 19;
/// Sends "hello" and resets.
pub(crate) const RESET: u16 = 21;
/// Sends [`SOURCE_BYTES`] and ends.
pub(crate) const SOURCE: u16 = 25;
/// Never answers.
pub(crate) const SILENT: u16 = 30;
/// And the code's number: refuses with that code.
pub(crate) const REFUSE: u16 = 1000;

pub(crate) const SOURCE_BYTES: usize = 3_000_000;

pub(crate) const SESSION: u64 = 77;

#[derive(Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) plaintext: bool,
    pub(crate) goodbye: Option<(Code, u32, &'static str)>,
    pub(crate) channels: u8,
    /// Nothing comes back on the channels.
    pub(crate) deaf: bool,
}

/// From the test.
pub(crate) enum Command {
    Accept { peer: SocketAddr },
    Goodbye(Code),
    UpdateKeys,
    Cut,
}

/// To the test.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Opened(u8),
    Reset(Code),
    Closed,
    Sunk(u64),
    KeysUpdated,
    /// A datagram, and whether a channel brought it.
    Datagram {
        len: usize,
        channel: bool,
    },
    Gone,
}

pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    pub(crate) pin: [u8; 32],
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) seen: mpsc::UnboundedReceiver<Seen>,
    plaintext: bool,
}

impl Relay {
    /// Serves one connection after the other.
    pub(crate) async fn start(options: Options) -> Self {
        let (listener, udp) = sockets().await;
        let addr = listener.local_addr().unwrap();
        let certified = rcgen::generate_simple_self_signed(["isthmus-relay".to_owned()]).unwrap();
        let certificate = certified.cert.der().clone();
        let pin = fingerprint(&certificate);
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let tls = server_config(vec![certificate], key).unwrap();
        let (commands, command) = mpsc::unbounded_channel();
        let (tell, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut command = command;
            let udp = Arc::new(udp);
            while let Ok((socket, _)) = listener.accept().await {
                let party = Party::greet(socket, udp.clone(), tls.clone(), options, tell.clone()).await;
                if let Some(party) = party {
                    party.run(&mut command).await;
                }
                let _ = tell.send(Seen::Gone);
            }
        });
        Self { addr, pin, commands, seen, plaintext: options.plaintext }
    }

    pub(crate) fn config(&self) -> Config {
        let trust = if self.plaintext { Trust::Plaintext } else { Trust::Pin(self.pin) };
        Config::new(self.addr.to_string(), trust, "token")
    }

    pub(crate) async fn attach(&self) -> Mediator {
        Mediator::attach(&self.config(), "cpe-1".parse().unwrap()).await.unwrap()
    }

    /// Waits until `wanted` was seen; what was seen before it is dropped.
    pub(crate) async fn expect(&mut self, wanted: Seen) {
        loop {
            let seen = self.seen.recv().await.expect("the relay is alive");
            if seen == wanted {
                return;
            }
            assert_ne!(seen, Seen::Gone, "the connection ended before {wanted:?}");
        }
    }
}

/// The same number for TCP and UDP.
async fn sockets() -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (tcp, udp);
        }
    }
}

struct Party {
    socket: TcpStream,
    udp: Arc<UdpSocket>,
    session: Session,
    input: Vec<u8>,
    link: Link<Vec<u8>>,
    channels: HashMap<ChannelId, Channel>,
    streams: HashMap<Slot, Stream>,
    redirected: HashMap<PortId, bool>,
    server: Option<Slot>,
    assembly: Option<(SocketAddr, Vec<u8>)>,
    tell: mpsc::UnboundedSender<Seen>,
    start: std::time::Instant,
    deaf: bool,
    numbers: u16,
}

struct Channel {
    keys: ChannelKeys,
    peer: Option<SocketAddr>,
}

#[derive(Default)]
struct Stream {
    what: u16,
    /// To be sent.
    out: Vec<u8>,
    sent: usize,
    taken: u64,
    fin_in: bool,
    fin_out: bool,
}

impl Party {
    async fn greet(
        mut socket: TcpStream,
        udp: Arc<UdpSocket>,
        tls: Arc<rustls::ServerConfig>,
        options: Options,
        tell: mpsc::UnboundedSender<Seen>,
    ) -> Option<Self> {
        let mut input = Vec::new();
        let (mut session, secret) = if options.plaintext {
            (Session::plaintext(), [9; 32])
        } else {
            let mut server = ServerHandshake::new(tls).unwrap();
            loop {
                let mut output = Vec::new();
                let step = server.feed(&mut input, &mut output);
                socket.write_all(&output).await.ok()?;
                match step.ok()? {
                    Step::Done => break,
                    Step::NeedMore => assert_ne!(socket.read_buf(&mut input).await.ok()?, 0),
                }
            }
            let Established { session, udp_secret } = server.into_session().unwrap();
            (session, udp_secret)
        };
        let hello = loop {
            match parse_header(&input).unwrap() {
                Some(len) if len <= input.len() => break input.drain(..len).collect::<Vec<u8>>(),
                _ => assert_ne!(socket.read_buf(&mut input).await.ok()?, 0),
            }
        };
        let mut hello = hello;
        let Opened::Data(range) = session.open(&mut hello).unwrap() else { panic!("no hello") };
        let plain = &hello[range];
        let Frame::Hello { version: hello::VERSION, json } =
            Frame::decode(read_header(plain).unwrap(), &plain[HEADER_LEN..]).unwrap()
        else {
            panic!("no hello")
        };
        let hello: Hello = serde_json::from_slice(json).unwrap();
        assert_eq!(hello.token, "token");
        let mut control = ControlBuf::default();
        if let Some((code, retry_after_ms, text)) = options.goodbye {
            control.push(&Frame::Goodbye { code: Some(code), retry_after_ms, text });
            let record = seal(&mut session, control.take(16_384));
            socket.write_all(&record).await.ok()?;
            return None;
        }
        let ids: Vec<_> = (0..options.channels).map(|n| ChannelId::new(n.into(), 3)).collect();
        let welcome = Welcome {
            session: SESSION,
            observed: socket.peer_addr().unwrap(),
            version: "test".into(),
            shard: ShardId(5),
            channels: ids.clone(),
            udp_secret: options.plaintext.then(|| "09".repeat(32)),
            keepalive_tcp_ms: 20_000,
            keepalive_udp_ms: 8_000,
            keepalive_udp_max_ms: 0,
            dead_ms: 10_000,
            ports_max: 64,
            report: Some(Box::new(Report { hostname: "host".into(), ..Report::default() })),
        };
        let json = serde_json::to_vec(&welcome).unwrap();
        control.push(&Frame::Welcome { version: hello::VERSION, json: &json });
        let record = seal(&mut session, control.take(16_384));
        socket.write_all(&record).await.ok()?;
        let channel = |id| Channel { keys: ChannelKeys::derive(&secret, id, 0, End::Relay).unwrap(), peer: None };
        let maintain = Maintain::Relay { silence: std::time::Duration::from_secs(60) };
        let config = LinkConfig { side: Side::Responder, ports_max: 64, maintain };
        Some(Self {
            socket,
            udp,
            session,
            input,
            link: Link::new(config, Instant::ZERO),
            channels: ids.into_iter().map(|id| (id, channel(id))).collect(),
            streams: HashMap::new(),
            redirected: HashMap::new(),
            server: None,
            assembly: None,
            tell,
            start: std::time::Instant::now(),
            deaf: options.deaf,
            numbers: 40_000,
        })
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }

    fn tell(&self, seen: Seen) {
        let _ = self.tell.send(seen);
    }

    async fn run(mut self, commands: &mut mpsc::UnboundedReceiver<Command>) {
        let mut packet = vec![0; 65_536];
        loop {
            if self.flush().await.is_err() {
                return;
            }
            tokio::select! {
                read = self.socket.read_buf(&mut self.input) => {
                    if !matches!(read, Ok(1..)) || !self.on_bytes().await {
                        return;
                    }
                }
                received = self.udp.recv_from(&mut packet) => {
                    let (len, from) = received.unwrap();
                    self.on_packet(&mut packet[..len], from).await;
                }
                command = commands.recv() => {
                    let Some(command) = command else {
                        // The test is over but for its connection.
                        while matches!(self.socket.read_buf(&mut self.input).await, Ok(1..)) {
                            self.input.clear();
                        }
                        return;
                    };
                    if !self.on_command(command).await {
                        return;
                    }
                }
            }
        }
    }

    async fn on_command(&mut self, command: Command) -> bool {
        match command {
            Command::Accept { peer } => {
                let now = self.now();
                let local = "10.0.0.2:8080".parse().unwrap();
                let slot = self.link.accepted(self.server.unwrap(), 1, peer, local, now).unwrap();
                self.streams.insert(slot, Stream { what: ECHO, out: b"hi".to_vec(), ..Stream::default() });
            }
            Command::Goodbye(code) => {
                self.link.control().push(&Frame::Goodbye { code: Some(code), retry_after_ms: 1500, text: "told" });
            }
            Command::UpdateKeys => {
                let mut out = Vec::new();
                self.session.write_key_update(true, &mut out).unwrap();
                self.socket.write_all(&out).await.unwrap();
            }
            Command::Cut => return false,
        }
        true
    }

    async fn on_bytes(&mut self) -> bool {
        while let Some(len) = parse_header(&self.input).unwrap().filter(|&len| len <= self.input.len()) {
            let mut record: Vec<u8> = self.input.drain(..len).collect();
            match self.session.open(&mut record).unwrap() {
                Opened::Data(range) => {
                    if !self.on_frames(&record[range]).await {
                        return false;
                    }
                }
                Opened::KeyUpdate { .. } => self.tell(Seen::KeysUpdated),
                Opened::Ignored => {}
                Opened::CloseNotify | Opened::Alert(_) => return false,
            }
        }
        true
    }

    async fn on_frames(&mut self, mut frames: &[u8]) -> bool {
        while !frames.is_empty() {
            let header = read_header(frames).unwrap();
            let (frame, rest) = frames.split_at(HEADER_LEN + usize::from(header.len));
            frames = rest;
            let payload = &frame[HEADER_LEN..];
            let now = self.now();
            let input = self.link.receive(Frame::decode(header, payload).unwrap(), now).unwrap();
            if !self.on_input(input, payload).await {
                return false;
            }
        }
        true
    }

    async fn on_input(&mut self, input: Input<'_>, payload: &[u8]) -> bool {
        let now = self.now();
        match input {
            Input::Open { slot, request, flags, local, .. } => {
                self.link.set_owner(slot, 1);
                self.tell(Seen::Opened(flags.0));
                let taken = local.port() == 80 && flags.has(OpenFlags::OBLIGATORY);
                let code = if taken { Code::AddressInUse } else { Code::Ok };
                self.numbers += 1;
                let number = if local.port() == 0 { self.numbers } else { local.port() };
                self.redirected.insert(slot.id(), flags.has(OpenFlags::REDIRECT));
                let local = SocketAddr::new([10, 0, 0, 2].into(), number);
                self.link.answer(slot, RequestKind::Open, request, code, Some(local));
            }
            Input::Connect { slot, request, to, .. } => {
                let code = match to.port() {
                    SILENT => return true,
                    _ if self.streams.contains_key(&slot) => Code::Dedicated,
                    port => port.checked_sub(REFUSE).and_then(Code::from_u16).unwrap_or(Code::Ok),
                };
                if code.is_ok() {
                    let out = match to.port() {
                        HELLO | RESET => b"hello".to_vec(),
                        SOURCE => (0..SOURCE_BYTES).map(|n| (n % 251) as u8).collect(),
                        _ => Vec::new(),
                    };
                    self.streams.insert(slot, Stream { what: to.port(), out, ..Stream::default() });
                }
                let local = "10.0.0.2:50000".parse().unwrap();
                self.link.answer(slot, RequestKind::Connect, request, code, Some(local));
            }
            Input::Serve { slot, request, .. } => {
                self.server = Some(slot);
                self.link.answer(slot, RequestKind::Serve, request, Code::Ok, None);
            }
            Input::Close { slot, request, .. } => {
                self.tell(Seen::Closed);
                self.streams.remove(&slot);
                self.link.answer(slot, RequestKind::Close, request, Code::Ok, None);
            }
            Input::Switch { slot, request, flags, .. } => {
                self.redirected.insert(slot.id(), flags.has(OpenFlags::REDIRECT));
                self.link.answer(slot, RequestKind::Switch, request, Code::Ok, None);
            }
            Input::Data { slot, len, .. } => {
                let bytes = &payload[payload.len() - len..];
                let Some(stream) = self.streams.get_mut(&slot) else { return true };
                stream.taken += len as u64;
                match stream.what {
                    STALL => {}
                    ECHO => {
                        stream.out.extend_from_slice(bytes);
                        self.link.consumed(slot, len, now);
                    }
                    _ => self.link.consumed(slot, len, now),
                }
            }
            Input::Fin { slot, .. } => {
                let Some(stream) = self.streams.get_mut(&slot) else { return true };
                stream.fin_in = true;
                let taken = stream.taken;
                if stream.what == COUNT {
                    stream.out = taken.to_be_bytes().to_vec();
                }
                if stream.what == HELLO {
                    self.tell(Seen::Sunk(taken));
                }
            }
            Input::Reset { code, .. } => self.tell(Seen::Reset(code)),
            Input::Datagram { slot, remote, more, len, .. } => {
                self.on_part(slot, remote, more, &payload[payload.len() - len..]).await;
            }
            Input::Query { query, json } => {
                let answer = answer(&serde_json::from_slice(json).unwrap());
                let json = serde_json::to_vec(&answer).unwrap();
                self.link.control().push(&Frame::QueryAnswer { query, json: &json });
            }
            Input::Goodbye { .. } => return false,
            _ => {}
        }
        true
    }

    async fn on_part(&mut self, slot: Slot, remote: Option<SocketAddr>, more: bool, part: &[u8]) {
        match remote {
            Some(remote) => self.assembly = Some((remote, part.to_vec())),
            None => self.assembly.as_mut().unwrap().1.extend_from_slice(part),
        }
        if more {
            return;
        }
        let (remote, bytes) = self.assembly.take().unwrap();
        self.tell(Seen::Datagram { len: bytes.len(), channel: false });
        self.echo_datagram(slot.id(), slot, remote, &bytes).await;
    }

    /// Back the way that the port's mode says, where it fits.
    async fn echo_datagram(&mut self, port: PortId, slot: Slot, remote: SocketAddr, bytes: &[u8]) {
        if remote.port() == 1 {
            self.link.udp_error(slot, Code::Refused, remote);
            return;
        }
        let now = self.now();
        let redirected = self.redirected.get(&port).copied().unwrap_or(false);
        let heard = self.channels.iter_mut().find(|(_, channel)| channel.peer.is_some());
        if let Some((&id, channel)) = heard
            && redirected
            && bytes.len() < 1300
        {
            let mut trailer = [0; TRAILER_ADDR_LEN];
            let len = write_trailer(&mut trailer, port, Some(remote), bytes.len() as u16);
            // Two inner datagrams in one packet: the echo, and its length.
            let mut plain = bytes.to_vec();
            plain.extend_from_slice(&trailer[..len]);
            let count = (bytes.len() as u16).to_be_bytes();
            plain.extend_from_slice(&count);
            let len = write_trailer(&mut trailer, port, Some(remote), 2);
            plain.extend_from_slice(&trailer[..len]);
            send_on(&self.udp, id, channel, channel_kind::DATA, &plain).await;
            return;
        }
        let count = bytes.len().div_ceil(16_000).max(1);
        let frames: Vec<Vec<u8>> = (0..count)
            .map(|n| {
                let part = &bytes[n * 16_000..bytes.len().min((n + 1) * 16_000)];
                let mut frame = vec![0; HEADER_LEN + if n == 0 { 18 } else { 0 }];
                write_datagram_header(&mut frame, port, (n == 0).then_some(remote), n + 1 < count, part.len() as u16);
                frame.extend_from_slice(part);
                frame
            })
            .collect();
        self.link.enqueue_datagram(slot, frames.into_iter(), now);
    }

    async fn on_packet(&mut self, packet: &mut [u8], from: SocketAddr) {
        let header = DatagramHeader::parse(packet).unwrap();
        assert_eq!(header.shard, ShardId(5));
        let now = self.now();
        let channel = self.channels.get_mut(&header.channel).unwrap();
        let range = channel.keys.open(packet).unwrap();
        channel.peer = Some(from);
        let plain = packet[range].to_vec();
        match header.kind {
            channel_kind::PING if !self.deaf => {
                send_on(&self.udp, header.channel, channel, channel_kind::PONG, &plain).await;
            }
            channel_kind::DATA => {
                let inner: Vec<_> = InnerDatagrams::new(&plain).collect();
                for one in inner {
                    let bytes = &plain[one.payload];
                    self.tell(Seen::Datagram { len: bytes.len(), channel: true });
                    let (slot, _) = self.link.datagram_received(one.port, bytes.len(), now).unwrap();
                    self.echo_datagram(one.port, slot, one.remote.unwrap(), bytes).await;
                }
            }
            _ => {}
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        loop {
            let now = self.now();
            let link = &mut self.link;
            self.streams.retain(|&slot, stream| stream.pump(link, slot, now));
            let mut out = Vec::new();
            if self.session.key_update_due() {
                self.session.write_key_update(false, &mut out).unwrap();
            }
            for _ in 0..32 {
                match self.link.transmit() {
                    None => break,
                    Some(Transmit::Control) => {
                        out.extend(seal(&mut self.session, self.link.control().take(16_384)));
                        self.link.control().reclaim();
                    }
                    Some(Transmit::Frame { frame, .. }) => out.extend(seal(&mut self.session, &frame)),
                }
            }
            if out.is_empty() {
                return Ok(());
            }
            self.socket.write_all(&out).await?;
        }
    }
}

impl Stream {
    /// Queues what credit allows; `false` when nothing is left to be done.
    fn pump(&mut self, link: &mut Link<Vec<u8>>, slot: Slot, now: Instant) -> bool {
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

async fn send_on(udp: &UdpSocket, id: ChannelId, channel: &mut Channel, kind: u8, plain: &[u8]) {
    let header = DatagramHeader { shard: ShardId(5), kind, epoch: 0, channel: id, packet: 0 };
    let mut out = vec![0; plain.len() + 64];
    let len = channel.keys.seal_into(header, plain, &[], &mut out).unwrap();
    udp.send_to(&out[..len], channel.peer.unwrap()).await.unwrap();
}

fn seal(session: &mut Session, frames: &[u8]) -> Vec<u8> {
    let mut record = vec![0; RECORD_HEADER + frames.len() + session.tail()];
    record[RECORD_HEADER..RECORD_HEADER + frames.len()].copy_from_slice(frames);
    session.seal(&mut record).unwrap();
    record
}

fn summary(n: u32) -> MediatorSummary {
    let id: MediatorId = format!("cpe-{n}").parse().unwrap();
    MediatorSummary { id, observed: "192.0.2.1:99".parse().unwrap(), age_s: 5, service: String::new() }
}

fn answer(query: &Query) -> QueryAnswer {
    match query {
        Query::Info => QueryAnswer::Info(Box::new(MediatorInfo {
            summary: summary(1),
            report: Report::default(),
            session: SESSION,
            ports: 3,
            udp_channels_live: 1,
            rtt_us: None,
            bytes_to_mediator: 0,
            bytes_from_mediator: 0,
        })),
        Query::List { after } => {
            let all: Vec<_> = (0..5).map(summary).collect();
            let page: Vec<_> = all.iter().filter(|one| Some(&one.id) > after.as_ref()).take(2).cloned().collect();
            let more = page.last().map(|last| &last.id) < all.last().map(|last| &last.id);
            QueryAnswer::List { mediators: page, more }
        }
    }
}

//! One connection: requests and streams.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_proto::link::{Input, Link, Slot, Transmit};
use isthmus_proto::record::{Opened, Session, parse_header};
use isthmus_proto::wire::{Frame, HEADER_LEN, OpenFlags, RequestKind, read_header};
use isthmus_proto::{ChannelId, Code, Instant, PortId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;

use super::answer::answer;
use super::datagram::Channel;
use super::greet::seal;
use super::stream::Stream;
use super::{COUNT, Command, ECHO, HELLO, PAGE, REFUSE, RESET, Refusals, SILENT, SOURCE, SOURCE_BYTES, STALL, Seen};

pub(super) struct Party {
    pub(super) socket: TcpStream,
    pub(super) udp: Arc<UdpSocket>,
    pub(super) session: Session,
    pub(super) input: Vec<u8>,
    pub(super) link: Link<Vec<u8>>,
    pub(super) channels: HashMap<ChannelId, Channel>,
    pub(super) streams: HashMap<Slot, Stream>,
    pub(super) redirected: HashMap<PortId, bool>,
    pub(super) server: Option<Slot>,
    pub(super) assembly: Option<(SocketAddr, Vec<u8>)>,
    pub(super) tell: mpsc::UnboundedSender<Seen>,
    pub(super) start: std::time::Instant,
    pub(super) deaf: bool,
    pub(super) shift: u16,
    pub(super) refusals: Refusals,
    pub(super) numbers: u16,
    /// Of the port that was opened last.
    pub(super) local: SocketAddr,
}

impl Party {
    pub(super) fn now(&self) -> Instant {
        Instant::ZERO + self.start.elapsed()
    }

    pub(super) fn tell(&self, seen: Seen) {
        let _ = self.tell.send(seen);
    }

    pub(super) async fn run(mut self, commands: &mut mpsc::UnboundedReceiver<Command>) {
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
                self.streams.insert(slot, Stream::new(ECHO, b"hi".to_vec()));
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
                let refusal = self.refusals.lock().unwrap().pop();
                let code = refusal.unwrap_or(if taken { Code::AddressInUse } else { Code::Ok });
                self.numbers += 1;
                let number = if local.port() == 0 { self.numbers } else { local.port() + self.shift };
                self.redirected.insert(slot.id(), flags.has(OpenFlags::REDIRECT));
                let local = SocketAddr::new([10, 0, 0, 2].into(), number);
                self.local = local;
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
                    self.streams.insert(slot, Stream::new(to.port(), out));
                }
                let local = "10.0.0.2:50000".parse().unwrap();
                self.link.answer(slot, RequestKind::Connect, request, code, Some(local));
            }
            Input::Serve { slot, request, .. } => {
                self.server = Some(slot);
                self.tell(Seen::Served(self.local));
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
                    PAGE => {
                        stream.out.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
                        self.link.consumed(slot, len, now);
                    }
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

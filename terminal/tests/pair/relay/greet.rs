//! The beginning of a connection.

use std::collections::HashMap;
use std::sync::Arc;

use isthmus_proto::hello::{self, Hello, Report, Welcome};
use isthmus_proto::link::{Link, LinkConfig, Maintain, Side};
use isthmus_proto::record::{
    ChannelKeys, End, Established, Opened, RECORD_HEADER, ServerHandshake, Session, Step, parse_header,
};
use isthmus_proto::wire::{ControlBuf, Frame, HEADER_LEN, read_header};
use isthmus_proto::{ChannelId, Instant, ShardId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::datagram::Channel;
use super::party::Party;
use super::{SESSION, Service};

impl Party {
    pub(super) async fn greet(mut socket: TcpStream, udp: Arc<UdpSocket>, service: &Service) -> Option<Self> {
        let Service { options, tls, tell, refusals, .. } = service.clone();
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
            let Established { session, udp_secret, .. } = server.into_session().unwrap();
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
            udp_after_ms: 0,
            udp_secret: options.plaintext.then(|| "09".repeat(32)),
            keepalive_tcp_ms: 20_000,
            keepalive_udp_ms: 8_000,
            keepalive_udp_max_ms: 0,
            dead_ms: 10_000,
            ports_max: 64,
            asks_max: 0,
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
            refusals,
            start: std::time::Instant::now(),
            deaf: options.deaf,
            shift: options.shift,
            numbers: 40_000,
            local: isthmus_proto::link::UNSPECIFIED,
        })
    }
}

pub(super) fn seal(session: &mut Session, frames: &[u8]) -> Vec<u8> {
    let mut record = vec![0; RECORD_HEADER + frames.len() + session.tail()];
    record[RECORD_HEADER..RECORD_HEADER + frames.len()].copy_from_slice(frames);
    session.seal(&mut record).unwrap();
    record
}

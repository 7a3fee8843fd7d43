//! Records and channel datagrams sealed and opened. Most of it is the cryptographic library's, whose code differs from
//! CPU to CPU (callgrind's own has AVX2 at most).

use gungraun::{library_benchmark, library_benchmark_group};
use isthmus_proto::ChannelId;
use isthmus_proto::record::{
    ChannelKeys, ClientHandshake, DATAGRAM_OVERHEAD, DatagramHeader, End, Opened, PLAINTEXT_MAX, RECORD_HEADER,
    RECORD_TAIL, ServerHandshake, Session, Step, Trust, client_config, fingerprint, server_config,
};
use isthmus_proto::wire::TRAILER_LEN;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{PrivateKeyDer, ServerName};

use crate::roughly;

const DATAGRAM: usize = 200;
const CHANNEL: ChannelId = ChannelId(5);

/// Both ends of a connection.
fn sessions() -> (Session, Session) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    let pin = fingerprint(cert.der());
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let mut server = ServerHandshake::new(server_config(vec![cert.der().clone()], key).unwrap()).unwrap();
    let name = ServerName::try_from("relay.test").unwrap();
    let mut client = ClientHandshake::new(client_config(Trust::Pin(pin)).unwrap(), name).unwrap();
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    loop {
        let client = client.feed(&mut to_client, &mut to_server).unwrap();
        let server = server.feed(&mut to_server, &mut to_client).unwrap();
        if (client, server) == (Step::Done, Step::Done) {
            break;
        }
    }
    (client.into_session().unwrap().session, server.into_session().unwrap().session)
}

fn record() -> Vec<u8> {
    vec![0x5a; RECORD_HEADER + PLAINTEXT_MAX + RECORD_TAIL]
}

/// A session that has sealed before, so that its key's context is there, and a record to seal.
fn to_seal() -> (Session, Vec<u8>) {
    let (mut sender, _) = sessions();
    sender.seal(&mut record()).unwrap();
    (sender, record())
}

/// A session that has opened before, and a sealed record.
fn to_open() -> (Session, Vec<u8>) {
    let (mut sender, mut receiver) = sessions();
    let mut sealed = [record(), record()];
    sealed.iter_mut().for_each(|record| sender.seal(record).unwrap());
    let [mut first, second] = sealed;
    receiver.open(&mut first).unwrap();
    (receiver, second)
}

#[library_benchmark(config = roughly(38_064))]
#[bench::of_16_kib(to_seal())]
fn seal_record((mut session, mut record): (Session, Vec<u8>)) -> (Session, Vec<u8>) {
    session.seal(&mut record).unwrap();
    (session, record)
}

#[library_benchmark(config = roughly(38_179))]
#[bench::of_16_kib(to_open())]
fn open_record((mut session, mut record): (Session, Vec<u8>)) -> (Session, Vec<u8>, Opened) {
    let opened = session.open(&mut record).unwrap();
    (session, record, opened)
}

fn keys(end: End) -> ChannelKeys {
    ChannelKeys::derive(&[7; 32], CHANNEL, 0, end).unwrap()
}

fn packet() -> Vec<u8> {
    vec![0; DATAGRAM_OVERHEAD + DATAGRAM + TRAILER_LEN]
}

fn seal(keys: &mut ChannelKeys, out: &mut [u8]) {
    let header = DatagramHeader { channel: CHANNEL, ..DatagramHeader::default() };
    keys.seal_into(header, &[0x5a; DATAGRAM], &[1; TRAILER_LEN], out).unwrap();
}

/// Keys that have sealed before, and room for a datagram.
fn datagram_to_seal() -> (ChannelKeys, Vec<u8>) {
    let mut keys = keys(End::Caller);
    seal(&mut keys, &mut packet());
    (keys, packet())
}

/// Keys that have opened before, and a sealed datagram.
fn datagram_to_open() -> (ChannelKeys, Vec<u8>) {
    let (mut from, mut to) = (keys(End::Caller), keys(End::Relay));
    let (mut first, mut second) = (packet(), packet());
    seal(&mut from, &mut first);
    seal(&mut from, &mut second);
    to.open(&mut first).unwrap();
    (to, second)
}

#[library_benchmark(config = roughly(1_913))]
#[bench::of_200_bytes(datagram_to_seal())]
fn seal_datagram((mut keys, mut packet): (ChannelKeys, Vec<u8>)) -> (ChannelKeys, Vec<u8>) {
    seal(&mut keys, &mut packet);
    (keys, packet)
}

#[library_benchmark(config = roughly(1_712))]
#[bench::of_200_bytes(datagram_to_open())]
fn open_datagram((mut keys, mut packet): (ChannelKeys, Vec<u8>)) -> (ChannelKeys, Vec<u8>) {
    keys.open(&mut packet).unwrap();
    (keys, packet)
}

library_benchmark_group!(name = records, benchmarks = [seal_record, open_record, seal_datagram, open_datagram]);

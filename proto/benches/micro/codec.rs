//! Frames to bytes and back.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use gungraun::{library_benchmark, library_benchmark_group};
use isthmus_proto::wire::{ControlBuf, Frame, HEADER_LEN, RequestKind, read_header, write_data_header};
use isthmus_proto::{Code, PortId};

use crate::{REPEAT, about};

const PORT: PortId = PortId(0x0012_3456);
const PAYLOAD: usize = 1024;

fn answer() -> Frame<'static> {
    let local = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 5), 4470));
    Frame::Answer { port: PORT, to: RequestKind::Connect, request: 7, code: Code::Ok, local }
}

fn data_frame() -> Vec<u8> {
    let mut frame = vec![0x5a; HEADER_LEN + PAYLOAD];
    write_data_header(frame.first_chunk_mut().unwrap(), PORT, PAYLOAD as u16);
    frame
}

fn answer_frame() -> Vec<u8> {
    let mut control = ControlBuf::new();
    control.push(&answer());
    control.take(usize::MAX).to_vec()
}

/// One that has held as much before, so that it does not grow.
fn grown() -> ControlBuf {
    let mut control = ControlBuf::new();
    (0..REPEAT).for_each(|_| control.push(&answer()));
    control.take(usize::MAX);
    control
}

#[library_benchmark(config = about(1_518))]
fn encode_data_header() -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    for _ in 0..REPEAT {
        write_data_header(black_box(&mut header), black_box(PORT), black_box(PAYLOAD as u16));
    }
    header
}

#[library_benchmark(config = about(4_539))]
#[bench::data(data_frame())]
fn decode_data_header(frame: Vec<u8>) -> Vec<u8> {
    decode(&frame);
    frame
}

#[library_benchmark(config = about(13_078))]
#[bench::answer(grown())]
fn encode_control(mut control: ControlBuf) -> ControlBuf {
    for _ in 0..REPEAT {
        control.push(black_box(&answer()));
    }
    control
}

#[library_benchmark(config = about(30_239))]
#[bench::answer(answer_frame())]
fn decode_control(frame: Vec<u8>) -> Vec<u8> {
    decode(&frame);
    frame
}

fn decode(frame: &[u8]) {
    for _ in 0..REPEAT {
        let frame = black_box(frame);
        let header = read_header(frame).unwrap();
        let payload = &frame[HEADER_LEN..HEADER_LEN + usize::from(header.len)];
        black_box(Frame::decode(header, payload)).unwrap();
    }
}

library_benchmark_group!(
    name = frames,
    benchmarks = [encode_data_header, decode_data_header, encode_control, decode_control]
);

//! How fast one connection goes through `recv_stream` and `send`: a sink and a source in threads of their own, the copy
//! in this one. `copy [GIGABYTES] [stream|bulk|plain]`, where `plain` is read(2) and write(2) of 256 KiB for comparison;
//! the congestion control is cubic if it is to be had. The processor time is this thread's alone.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Instant;

use isthmus_ring::{Completion, Ring, RingConfig, SendMode, Socket};

const SEND_BYTES: usize = 256 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let total = args.next().map_or(Ok(4), |n| n.parse::<u64>())? << 30;
    let kind = args.next().unwrap_or_else(|| "stream".to_owned());

    let (mut source, ingress) = pair()?;
    let (egress, mut sink) = pair()?;
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let block = vec![0x5a; SEND_BYTES];
        let mut left = total;
        while left > 0 {
            let count = left.min(block.len() as u64) as usize;
            source.write_all(&block[..count])?;
            left -= count as u64;
        }
        source.shutdown(Shutdown::Write)
    });
    let reader = std::thread::spawn(move || -> std::io::Result<u64> {
        let (mut block, mut sum) = (vec![0; SEND_BYTES], 0);
        loop {
            match sink.read(&mut block)? {
                0 => return Ok(sum),
                count => sum += count as u64,
            }
        }
    });

    let mut ring = Ring::new(RingConfig::default())?;
    let (start, cpu) = (Instant::now(), thread_cpu_seconds()?);
    let turns = if kind == "plain" {
        copy_plain(ingress, egress)?
    } else {
        let (ingress, egress) = (Socket::from(OwnedFd::from(ingress)), Socket::from(OwnedFd::from(egress)));
        copy(&mut ring, &ingress, &egress, kind == "bulk")?
    };
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), thread_cpu_seconds()? - cpu);
    writer.join().map_err(|_| "the writer failed")??;
    let arrived = reader.join().map_err(|_| "the reader failed")??;
    let gigabytes = arrived as f64 / 1e9;
    println!("{kind}: {:.2} GB/s, {:.3} CPU-s per GB in the copying thread", gigabytes / seconds, cpu / gigabytes);
    println!("{arrived} of {total} bytes, {} bytes a turn, {:?}", arrived / turns.max(1), ring.pool_stats());
    Ok(())
}

/// Receives while the previous batch is being sent; one of each in flight.
fn copy(ring: &mut Ring, ingress: &Socket, egress: &Socket, bulk: bool) -> Result<u64, Box<dyn Error>> {
    let (mut received, mut turns) = (Vec::new(), 0);
    let (mut waiting, mut sending, mut receiving, mut ended) = (ring.send_batch(), false, false, false);
    loop {
        if !receiving && !ended && waiting.bytes() < SEND_BYTES && waiting.len() < 32 {
            match bulk {
                true => ring.recv_bulk(ingress, 0, false, 0),
                false => ring.recv_stream(ingress, SEND_BYTES as u32, false, 0),
            };
            receiving = true;
        }
        if !sending && !waiting.is_empty() {
            let batch = std::mem::replace(&mut waiting, ring.send_batch());
            ring.send(egress, batch, SendMode::WaitAll, 1);
            sending = true;
        }
        if ended && !sending {
            return Ok(turns);
        }
        turns += 1;
        ring.enter(None, || false)?;
        while let Some(completion) = ring.next(&mut received) {
            match completion {
                Completion::Recv { result, .. } => {
                    receiving = false;
                    // An empty pool (ENOBUFS) fills again as sends complete.
                    ended = matches!(result, Ok(0));
                    for piece in received.drain(..) {
                        waiting.push(piece);
                    }
                }
                Completion::Send { result, .. } => {
                    result?;
                    sending = false;
                }
                _ => {}
            }
        }
    }
}

fn copy_plain(mut ingress: TcpStream, mut egress: TcpStream) -> std::io::Result<u64> {
    let (mut block, mut turns) = (vec![0; SEND_BYTES], 0);
    loop {
        match ingress.read(&mut block)? {
            0 => return Ok(turns),
            count => egress.write_all(&block[..count])?,
        }
        turns += 1;
    }
}

/// First field of `schedstat`: nanoseconds on a processor.
fn thread_cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().ok_or("empty schedstat")?.parse::<f64>()? / 1e9)
}

fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = Socket::tcp_listener("127.0.0.1:0".parse().map_err(std::io::Error::other)?, false, 1)?;
    // Inherited by what is accepted; without the privilege the system's default stays.
    let _ = listener.set_congestion("cubic");
    let listener = TcpListener::from(OwnedFd::from(listener));
    let near = TcpStream::connect(listener.local_addr()?)?;
    let near = Socket::from(OwnedFd::from(near));
    let _ = near.set_congestion("cubic");
    Ok((OwnedFd::from(near).into(), listener.accept()?.0))
}

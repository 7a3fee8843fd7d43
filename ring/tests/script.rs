//! One random script of sends, receives, half-closes and resets, through the ring and through plain system calls: the
//! same results.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use common::{Random, errno, run, small_block_ring, socket, std_pair, take_recv};
use isthmus_ring::{Completion, Piece, Ring, SendMode, Socket};

const OUTSTANDING_MAX: usize = 40_000;

#[derive(Clone, Debug)]
enum Step {
    Send { side: usize, bytes: Vec<u8>, wait: bool },
    Recv { side: usize, bytes_max: usize },
    HalfClose { side: usize },
    Reset { side: usize },
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Sent(usize),
    Received(Vec<u8>),
    Closed,
    Error(i32),
}

trait Lane {
    fn send(&mut self, side: usize, bytes: &[u8], wait: bool) -> Outcome;
    /// Some bytes, at most `bytes_max`; none is the end.
    fn recv(&mut self, side: usize, bytes_max: usize) -> Result<Vec<u8>, i32>;
    fn half_close(&mut self, side: usize) -> Outcome;
    fn reset(&mut self, side: usize) -> Outcome;
}

struct Plain([Option<TcpStream>; 2]);

impl Lane for Plain {
    fn send(&mut self, side: usize, bytes: &[u8], _: bool) -> Outcome {
        let result = self.0[side].as_ref().unwrap().write(bytes);
        errno(&result).map_or_else(|| Outcome::Sent(result.unwrap()), Outcome::Error)
    }

    fn recv(&mut self, side: usize, bytes_max: usize) -> Result<Vec<u8>, i32> {
        let mut buffer = vec![0; bytes_max];
        let result = self.0[side].as_ref().unwrap().read(&mut buffer);
        errno(&result).map_or(Ok(()), Err)?;
        buffer.truncate(result.unwrap());
        Ok(buffer)
    }

    fn half_close(&mut self, side: usize) -> Outcome {
        self.0[side].as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
        Outcome::Closed
    }

    fn reset(&mut self, side: usize) -> Outcome {
        let closing = socket(self.0[side].take().unwrap());
        closing.set_reset_on_close().unwrap();
        Outcome::Closed
    }
}

struct Ringed {
    ring: Ring,
    sockets: [Option<Socket>; 2],
    random: Random,
}

impl Lane for Ringed {
    fn send(&mut self, side: usize, bytes: &[u8], wait: bool) -> Outcome {
        let mut batch = self.ring.send_batch();
        let mut rest = Piece::copy_from(bytes, 0, 0);
        while rest.len() > 1 && batch.len() < 60 {
            let cut = 1 + self.random.below(rest.len() - 1);
            batch.push(rest.split_to(cut));
        }
        batch.push(rest);
        let socket = self.sockets[side].as_ref().unwrap();
        match (wait, self.random.below(2)) {
            (true, _) => self.ring.send(socket, batch, SendMode::WaitAll, 5),
            (false, 0) => self.ring.send(socket, batch, SendMode::TryNow, 5),
            (false, _) => {
                let id = self.ring.send_quietly(socket, batch, 5);
                self.ring.attend(id);
                id
            }
        };
        run(&mut self.ring, |_, completion, _| match completion {
            Completion::Send { user: 5, result, .. } => {
                Some(errno(&result).map_or_else(|| Outcome::Sent(result.unwrap()), Outcome::Error))
            }
            _ => None,
        })
    }

    fn recv(&mut self, side: usize, bytes_max: usize) -> Result<Vec<u8>, i32> {
        let poll_first = self.random.below(2) == 0;
        let socket = self.sockets[side].as_ref().unwrap();
        self.ring.recv_stream(socket, bytes_max as u32, poll_first, 6);
        let (result, pieces) = take_recv(&mut self.ring, 6);
        errno(&result).map_or(Ok(()), Err)?;
        let bytes = common::bytes_of(&pieces);
        assert_eq!(bytes.len(), result.unwrap());
        assert!(bytes.len() <= bytes_max, "{} bytes of at most {bytes_max}", bytes.len());
        Ok(bytes)
    }

    fn half_close(&mut self, side: usize) -> Outcome {
        self.sockets[side].as_ref().unwrap().shutdown_write().unwrap();
        Outcome::Closed
    }

    fn reset(&mut self, side: usize) -> Outcome {
        let closing = self.sockets[side].take().unwrap();
        closing.set_reset_on_close().unwrap();
        self.ring.close(closing);
        self.ring.enter(Some(std::time::Duration::ZERO), || false).unwrap();
        Outcome::Closed
    }
}

/// A script that never blocks: it receives only what was sent, or an end that was announced.
fn script(random: &mut Random) -> Vec<Step> {
    let (mut steps, mut outstanding, mut closed) = (Vec::new(), [0usize; 2], [false; 2]);
    for _ in 0..60 {
        let side = random.below(2);
        match random.below(20) {
            0 if !closed[side] => {
                closed[side] = true;
                steps.push(Step::HalfClose { side });
            }
            0..=9 => {
                let room = OUTSTANDING_MAX - outstanding[side];
                let bound = [10, 1000, 20_000][random.below(3)];
                let count = (1 + random.below(bound)).min(room);
                if count > 0 {
                    outstanding[side] += if closed[side] { 0 } else { count };
                    steps.push(Step::Send { side, bytes: random.bytes(count), wait: random.below(2) == 0 });
                }
            }
            _ => {
                let bound = [50, 3000, 50_000][random.below(3)];
                let bytes_max = 1 + random.below(bound);
                let from = 1 - side;
                if outstanding[from] > 0 || closed[from] {
                    outstanding[from] -= bytes_max.min(outstanding[from]);
                    steps.push(Step::Recv { side, bytes_max });
                }
            }
        }
    }
    if let Some(side) = (0..2).find(|&side| outstanding[side] == 0 && !closed[side]) {
        // The other side's unread bytes die with the reset in either lane.
        steps.push(Step::Reset { side });
        steps.push(Step::Recv { side: 1 - side, bytes_max: 100 });
    }
    steps
}

fn play(lane: &mut impl Lane, steps: &[Step]) -> Vec<Outcome> {
    let (mut outstanding, mut outcomes) = ([0usize; 2], Vec::new());
    for step in steps {
        outcomes.push(match step {
            Step::Send { side, bytes, wait } => {
                let outcome = lane.send(*side, bytes, *wait);
                if let Outcome::Sent(count) = outcome {
                    outstanding[*side] += count;
                }
                outcome
            }
            Step::Recv { side, bytes_max } => {
                // How TCP cuts the stream is chance: receive until all that is due has come.
                let due = outstanding[1 - side].min(*bytes_max);
                let mut bytes = Vec::new();
                let error = loop {
                    match lane.recv(*side, bytes_max - bytes.len()) {
                        Ok(some) => bytes.extend(some),
                        Err(code) => break Some(code),
                    }
                    if bytes.len() >= due {
                        break None;
                    }
                };
                outstanding[1 - side] -= bytes.len();
                error.map_or(Outcome::Received(bytes), Outcome::Error)
            }
            Step::HalfClose { side } => lane.half_close(*side),
            Step::Reset { side } => lane.reset(*side),
        });
    }
    outcomes
}

#[test]
fn random_scripts_have_the_same_results_as_plain_system_calls() {
    let (mut ends, mut errors) = (0, 0);
    for seed in 1..=60 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let steps = script(&mut random);
        let (near, far) = std_pair();
        let plain = play(&mut Plain([Some(near), Some(far)]), &steps);
        let (near, far) = std_pair();
        let sockets = [Some(socket(near)), Some(socket(far))];
        let ring = small_block_ring(1000, 16, 64);
        let ringed = play(&mut Ringed { ring, sockets, random: Random::new(seed) }, &steps);
        for (at, (plain, ringed)) in plain.iter().zip(&ringed).enumerate() {
            assert_eq!(plain, ringed, "seed {seed}, step {at}");
        }
        ends += plain.iter().filter(|o| **o == Outcome::Received(Vec::new())).count();
        errors += plain.iter().filter(|o| matches!(o, Outcome::Error(_))).count();
    }
    // The scripts did reach ends of streams and refused operations.
    assert!(ends > 10 && errors > 10, "{ends} ends, {errors} errors");
}

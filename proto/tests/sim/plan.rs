//! The script of one run, made of its seed before anything happens. Times are milliseconds.

use isthmus_proto::Code;

use crate::path::Weather;
use crate::rng::Rng;

/// The script's faults and new conversations lie before this.
pub(crate) const ACTIVE_MS: u64 = 2500;

pub(crate) struct Plan {
    pub(crate) tls: bool,
    pub(crate) weather: Weather,
    /// Bytes that one read of the receiving end gives at most.
    pub(crate) chunk: usize,
    /// Bytes that the byte stream takes in before its writer has to wait.
    pub(crate) in_flight_max: usize,
    /// When the path fails for good.
    pub(crate) cut_at: Option<u64>,
    pub(crate) talks: Vec<Talk>,
}

/// One conversation between the two ends; its place in [`Plan::talks`] is its name.
#[derive(Clone, Debug)]
pub(crate) enum Talk {
    Stream(Stream),
    Server { start: u64, close_at: u64 },
    Udp(Udp),
}

#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) start: u64,
    pub(crate) via: Via,
    /// What the requester's end and the responder's end do.
    pub(crate) sides: [Side; 2],
    pub(crate) close_at: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Via {
    /// Opened and connected; `early`: bytes are sent before any answer.
    Asked { quiet: bool, early: bool, open: Code, connect: Code, takes: u64 },
    /// A host connects to that server.
    Accepted { server: usize },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) bytes: u64,
    /// Largest piece of one write.
    pub(crate) piece: u64,
    /// Queues whole pieces without a look at the credit.
    pub(crate) eager: bool,
    pub(crate) reset_at: Option<u64>,
    pub(crate) reading: Reading,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reading {
    Fast,
    Slow {
        bytes: u64,
        every: u64,
    },
    /// Never takes a byte off.
    Stalled,
}

#[derive(Clone, Debug)]
pub(crate) struct Udp {
    pub(crate) start: u64,
    pub(crate) redirect: bool,
    /// When it is switched over, and to what.
    pub(crate) switches: Vec<(u64, bool)>,
    /// When each end sends how many bytes.
    pub(crate) sends: [Vec<(u64, usize)>; 2],
    pub(crate) close_at: Option<u64>,
}

impl Stream {
    /// Whether both directions should come to their orderly ends.
    pub(crate) fn should_complete(&self) -> bool {
        let connects = !matches!(self.via, Via::Asked { open, connect, .. } if !open.is_ok() || !connect.is_ok());
        connects && self.close_at.is_none() && self.sides.iter().all(|side| side.reset_at.is_none())
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.sides.iter().any(|side| side.reading == Reading::Stalled)
    }
}

impl Plan {
    pub(crate) fn new(rng: &mut Rng, cut: bool) -> Self {
        let delay = rng.between(1, 60) * 1_000_000;
        let weather = Weather {
            lost: rng.pick(&[0, 5, 30]),
            doubled: rng.pick(&[0, 10]),
            damaged: rng.pick(&[0, 5]),
            delay,
            jitter: rng.pick(&[0, delay / 2, delay * 2]),
        };
        let mut talks = Vec::new();
        for _ in 0..rng.between(1, 8) {
            let start = rng.below(ACTIVE_MS / 2);
            talks.push(match rng.below(10) {
                0..6 => Talk::Stream(stream(rng, start, asked)),
                6 | 7 => Talk::Server { start, close_at: rng.between(start, ACTIVE_MS) },
                _ => Talk::Udp(udp(rng, start)),
            });
        }
        for server in 0..talks.len() {
            if let Talk::Server { start, close_at } = talks[server] {
                for _ in 0..rng.below(5) {
                    // Some come while the server closes, or too late.
                    let start = rng.between(start, close_at + 50);
                    talks.push(Talk::Stream(stream(rng, start, |_| Via::Accepted { server })));
                }
            }
        }
        if rng.percent(50) {
            let mut stalled = stream(rng, 0, |_| CONNECTED);
            stalled.sides.iter_mut().for_each(|side| side.reset_at = None);
            stalled.close_at = None;
            stalled.sides[rng.below(2) as usize].reading = Reading::Stalled;
            talks.push(Talk::Stream(stalled));
        }
        Self {
            tls: rng.percent(50),
            weather,
            chunk: rng.pick(&[40, 1500, 20_000, 200_000]),
            in_flight_max: rng.pick(&[2000, 60_000, 1_000_000]),
            cut_at: cut.then(|| rng.between(100, ACTIVE_MS * 2)),
            talks,
        }
    }
}

const CONNECTED: Via = Via::Asked { quiet: false, early: false, open: Code::Ok, connect: Code::Ok, takes: 5 };

fn asked(rng: &mut Rng) -> Via {
    let quiet = rng.percent(50);
    let or_ok = |rng: &mut Rng, code| if rng.percent(10) { code } else { Code::Ok };
    Via::Asked {
        quiet,
        early: quiet && rng.percent(50),
        open: or_ok(rng, Code::AddressInUse),
        connect: or_ok(rng, Code::Refused),
        takes: rng.below(80),
    }
}

fn stream(rng: &mut Rng, start: u64, via: impl FnOnce(&mut Rng) -> Via) -> Stream {
    let via = via(rng);
    let sides = [side(rng, start), side(rng, start)];
    let close_at = rng.percent(15).then(|| rng.between(start, ACTIVE_MS.max(start)));
    Stream { start, via, sides, close_at }
}

fn side(rng: &mut Rng, start: u64) -> Side {
    let most = rng.pick(&[0, 10, 3000, 60_000, 300_000]);
    Side {
        bytes: rng.below(most + 1),
        piece: rng.pick(&[100, 1400, 20_000]),
        eager: rng.percent(30),
        reset_at: rng.percent(10).then(|| rng.between(start, ACTIVE_MS.max(start))),
        reading: match rng.percent(30) {
            true => Reading::Slow { bytes: rng.between(500, 20_000), every: rng.between(1, 20) },
            false => Reading::Fast,
        },
    }
}

fn udp(rng: &mut Rng, start: u64) -> Udp {
    let mut sends = || -> Vec<(u64, usize)> {
        (0..rng.below(30))
            .map(|_| {
                let most = rng.pick(&[1, 200, 1400, 1500, 20_000, 65_507]);
                (rng.between(start, ACTIVE_MS), rng.below(most + 1) as usize)
            })
            .collect()
    };
    let sends = [sends(), sends()];
    let switches = (0..rng.below(3)).map(|_| (rng.between(start, ACTIVE_MS), rng.percent(50))).collect();
    let close_at = rng.percent(20).then(|| rng.between(start, ACTIVE_MS));
    Udp { start, redirect: rng.percent(60), switches, sends, close_at }
}

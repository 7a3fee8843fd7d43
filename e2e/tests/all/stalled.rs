//! Ends that do not read: whoever has something for them waits asleep.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use isthmus_e2e::{Loopback, Process, silence};

use crate::common::published;

/// A socket that takes nothing for so long is full.
const FULL: Duration = Duration::from_millis(500);

/// How long is watched, and the CPU time, in hundredths of a second, that both programs need far less of to do nothing.
const WATCHED: Duration = Duration::from_secs(1);
const TICKS_MAX: u64 = 20;

/// Writes until nobody takes any more; how much it was.
fn fill(mut to: &TcpStream) -> usize {
    to.set_write_timeout(Some(FULL)).unwrap();
    let mut filled = 0;
    loop {
        match to.write(&[0x5a; 65_536]) {
            Ok(written) => filled += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return filled,
            Err(error) => panic!("{error}"),
        }
    }
}

/// CPU time so far, in hundredths of a second.
fn ticks(process: &Process) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

#[test]
fn ends_that_send_no_more_and_do_not_read_keep_no_core_busy() {
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    let world = Loopback::start(&["--publish", &format!("tcp:127.0.0.1:0=cpe/{}", host.local_addr().unwrap())], &[]);
    let both = || {
        let visitor = TcpStream::connect(published(&world, "tcp")).unwrap();
        (visitor, host.accept().unwrap().0)
    };
    // The relay has something for the one, the mediator for the other.
    let [(mut visitor, giving), (sending, mut ended)] = [both(), both()];
    visitor.shutdown(Shutdown::Write).unwrap();
    ended.shutdown(Shutdown::Write).unwrap();
    let filled = [fill(&giving), fill(&sending)];
    let before = [&world.relay, &world.agent].map(ticks);
    silence(WATCHED);
    for ((process, before), name) in [&world.relay, &world.agent].into_iter().zip(before).zip(["relay", "mediator"]) {
        let spent = ticks(process) - before;
        assert!(spent < TICKS_MAX, "the {name} spent {spent} of 100 ticks on nothing");
    }
    // Nothing is lost by that.
    drop((giving, sending));
    for (end, filled) in [&mut visitor, &mut ended].into_iter().zip(filled) {
        assert_eq!(std::io::copy(&mut end.take(u64::MAX), &mut std::io::sink()).unwrap(), filled as u64);
    }
}

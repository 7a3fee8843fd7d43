//! Waking: no message waits for a sleeper.

mod common;

use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::std_pair;
use isthmus_ring::{BUSY_POLL_MAX, Completion, PollEvents, Ring, RingConfig};

const HANG: Duration = Duration::from_secs(20);

#[test]
fn no_wake_is_lost_between_a_look_at_the_queue_and_sleep() {
    exchange_messages(Duration::ZERO);
}

#[test]
fn no_wake_is_lost_while_the_ring_polls_nor_after() {
    // The shortest spell ends before most answers come, so that many wakes meet its end; the longest meets all.
    exchange_messages(Duration::from_micros(2));
    exchange_messages(BUSY_POLL_MAX);
}

#[test]
fn no_completion_is_lost_to_polling() {
    const ROUNDS: u64 = 5_000;
    for spell in [Duration::from_micros(5), BUSY_POLL_MAX] {
        let mut ring = Ring::new(RingConfig::small()).unwrap();
        ring.set_busy_poll(spell);
        let (near, mut far) = std_pair();
        far.set_read_timeout(Some(HANG)).unwrap();
        let echo = std::thread::spawn(move || {
            let mut byte = [0];
            for _ in 0..ROUNDS {
                far.read_exact(&mut byte).unwrap();
                far.write_all(&byte).unwrap();
            }
        });
        let mut received = Vec::new();
        for round in 0..ROUNDS {
            (&near).write_all(&[round as u8]).unwrap();
            ring.recv_small(&near, true, round);
            let start = Instant::now();
            let user = loop {
                ring.enter(Some(HANG), || false).unwrap();
                match ring.next(&mut received) {
                    Some(Completion::Recv { user, result, .. }) => {
                        assert_eq!(result.unwrap(), 1);
                        break user;
                    }
                    Some(other) => panic!("{other:?}"),
                    None => assert!(start.elapsed() < HANG, "round {round} never completed"),
                }
            };
            assert_eq!((user, received[0][0]), (round, round as u8));
        }
        echo.join().unwrap();
    }
}

#[test]
fn polling_is_bounded_and_takes_no_more_than_the_timeout() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    ring.set_busy_poll(Duration::from_secs(3600));
    let start = Instant::now();
    ring.enter(Some(Duration::from_millis(20)), || false).unwrap();
    assert!((Duration::from_millis(20)..HANG).contains(&start.elapsed()));
    // Polled over: it sleeps, and a wake ends that.
    let waker = ring.waker();
    let mut looks = 0;
    let asleep = || {
        looks += 1;
        waker.wake();
        false
    };
    ring.enter(Some(HANG), asleep).unwrap();
    assert!(looks > 1 && start.elapsed() < HANG);
}

fn exchange_messages(busy_poll: Duration) {
    const MESSAGES: u32 = 20_000;
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    ring.set_busy_poll(busy_poll);
    let (queue, messages) = shared_queue();
    let (answer, answers) = mpsc::channel();
    let waker = ring.waker();
    let producer = std::thread::spawn(move || {
        for n in 0..MESSAGES {
            queue.lock().unwrap().push(n);
            waker.wake();
            // Each message has to wake by itself: the next one comes only after its answer.
            assert_eq!(answers.recv_timeout(HANG), Ok(n));
        }
    });
    let mut got = 0;
    let mut received = Vec::new();
    while got < MESSAGES {
        let start = Instant::now();
        ring.enter(Some(HANG), || !messages.lock().unwrap().is_empty()).unwrap();
        assert!(start.elapsed() < HANG, "message {got} did not wake the ring");
        assert!(ring.next(&mut received).is_none(), "a wake is not a completion");
        for n in messages.lock().unwrap().drain(..) {
            assert_eq!(n, got);
            got += 1;
            answer.send(n).unwrap();
        }
    }
    producer.join().unwrap();
}

type Queue = std::sync::Arc<std::sync::Mutex<Vec<u32>>>;

fn shared_queue() -> (Queue, Queue) {
    let queue = Queue::default();
    (queue.clone(), queue)
}

#[test]
fn work_at_hand_and_waiting_completions_forbid_sleep() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let mut received = Vec::new();
    // No timeout: sleeping would be for ever.
    ring.enter(None, || true).unwrap();
    let (near, _far) = std_pair();
    ring.poll(&near, PollEvents::WRITABLE, 1);
    ring.enter(None, || false).unwrap();
    ring.enter(None, || false).unwrap();
    assert!(ring.next(&mut received).is_some());
}

#[test]
fn a_timeout_is_no_error_and_wakers_outlive_the_ring() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    let waker = ring.waker();
    let start = Instant::now();
    ring.enter(Some(Duration::from_millis(20)), || false).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert!(ring.next(&mut Vec::new()).is_none());
    drop(ring);
    waker.wake();
}

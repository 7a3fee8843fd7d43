//! Waking: no message waits for a sleeper.

mod common;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::std_pair;
use isthmus_ring::{PollEvents, Ring, RingConfig};

const HANG: Duration = Duration::from_secs(20);

#[test]
fn no_wake_is_lost_between_a_look_at_the_queue_and_sleep() {
    const MESSAGES: u32 = 20_000;
    let mut ring = Ring::new(RingConfig::small()).unwrap();
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

#[test]
fn a_patient_ring_loses_neither_completions_nor_wakes() {
    let mut ring = Ring::new(RingConfig::small()).unwrap();
    ring.set_patience(Duration::from_millis(1));
    let mut received = Vec::new();
    for round in 0..20 {
        let (near, _far) = std_pair();
        ring.poll(&near, PollEvents::WRITABLE, round);
        let start = Instant::now();
        while ring.next(&mut received).is_none() {
            ring.enter(Some(HANG), || false).unwrap();
        }
        assert!(start.elapsed() < HANG, "one completion ends the wait, once patience is over");
    }
    let said = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (waker, say) = (ring.waker(), said.clone());
    let start = Instant::now();
    let thread = std::thread::spawn(move || {
        say.store(true, std::sync::atomic::Ordering::SeqCst);
        waker.wake();
    });
    ring.enter(Some(HANG), || said.load(std::sync::atomic::Ordering::SeqCst)).unwrap();
    assert!(start.elapsed() < HANG, "the wake ends the wait");
    thread.join().unwrap();
}

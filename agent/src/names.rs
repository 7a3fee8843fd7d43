//! Connects by name: the name is looked up in the private network, on threads of its own since the system's resolver
//! blocks for as long as a name server is silent, and every address that comes of it has to pass the policy.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use isthmus_engine::Engine;
use isthmus_proto::Code;
use isthmus_proto::policy::{self, AllowRule};
use isthmus_proto::wire::{NamedTarget, RequestKind};
use isthmus_ring::Waker;

use crate::mediator::Mediator;
use crate::ports::{Asked, Target, connect_timeout};
use crate::resolve::ADDRESSES_MAX;

/// Threads that look names up: so many silent name servers' questions do not hold up another one.
const THREADS: usize = 4;

/// Questions that may wait for a thread; more are refused ([`Code::NoResources`]).
const QUESTIONS_MAX: usize = 1024;

/// What each of a name's addresses is given at least, before the next one is tried.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// The threads, and what they answered.
pub(crate) struct Names {
    questions: SyncSender<Question>,
    answers: Receiver<Answer>,
    /// An answer waits.
    answered: Arc<AtomicBool>,
}

/// Which port waits.
struct Waiting {
    name: Box<str>,
    asked: Asked,
    timeout_ms: u32,
    rules: Vec<AllowRule>,
}

struct Question {
    port: u16,
    waiting: Waiting,
}

struct Answer {
    found: Result<Vec<SocketAddr>, Code>,
    waiting: Waiting,
}

impl Names {
    /// Starts the threads; they end with this.
    ///
    /// # Errors
    /// The system's, when it has no thread left.
    pub(crate) fn new(waker: Waker) -> io::Result<Self> {
        let (questions, asked) = sync_channel::<Question>(QUESTIONS_MAX);
        let (answer, answers) = channel();
        let (asked, answered) = (Arc::new(Mutex::new(asked)), Arc::new(AtomicBool::new(false)));
        for n in 0..THREADS {
            let (asked, answer, answered, waker) = (asked.clone(), answer.clone(), answered.clone(), waker.clone());
            let work = move || {
                while serve(&asked, &answer) {
                    answered.store(true, Ordering::Release);
                    waker.wake();
                }
            };
            thread::Builder::new().name(format!("names-{n}")).spawn(work)?;
        }
        Ok(Self { questions, answers, answered })
    }

    /// Whether an answer waits.
    pub(crate) fn has_answers(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    fn ask(&self, question: Question) -> Result<(), Code> {
        self.questions.try_send(question).map_err(|error| match error {
            TrySendError::Full(_) => Code::NoResources,
            TrySendError::Disconnected(_) => Code::NameFailed,
        })
    }
}

/// One question, on a thread; `false` when nobody asks any more.
fn serve(asked: &Mutex<Receiver<Question>>, answer: &Sender<Answer>) -> bool {
    let next = asked.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let Ok(Question { port, waiting }) = next else { return false };
    let found = look_up(&waiting.name, port);
    answer.send(Answer { found, waiting }).is_ok()
}

fn look_up(name: &str, port: u16) -> Result<Vec<SocketAddr>, Code> {
    match (name, port).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.take(ADDRESSES_MAX).collect()),
        // The library has no kind for it, but the C library's text. Any other failure is that of a name which is not
        // there, or which no resolver would ask for.
        Err(error) if error.to_string().contains("Temporary failure") => Err(Code::NameFailed),
        Err(_) => Err(Code::NameNotFound),
    }
}

impl Mediator {
    /// Asked to connect a port to a host by its name.
    pub(crate) fn on_connect_name(&mut self, engine: &mut Engine, asked: Asked, to: NamedTarget<'_>, timeout_ms: u32) {
        let waiting = Waiting { name: to.name.into(), asked, timeout_ms, rules: rules(to.rules) };
        let looked = self.ports.begin_look(asked.owner).and_then(|()| {
            let question = Question { port: to.port, waiting };
            let looked = self.names.ask(question);
            if looked.is_err() {
                self.ports.end_look(asked.owner);
            }
            looked
        });
        if let Err(code) = looked {
            self.audit.record_connect(asked.slot, Some(to.name), None, None, code);
            self.answer(engine, asked, RequestKind::Connect, Err(code));
        }
    }

    /// Connects the ports whose names were found, or tells why not.
    pub(crate) fn on_names(&mut self, engine: &mut Engine) {
        if !self.names.answered.swap(false, Ordering::AcqRel) {
            return;
        }
        while let Ok(Answer { found, waiting }) = self.names.answers.try_recv() {
            let Asked { link, slot, owner, .. } = waiting.asked;
            // The port may be gone meanwhile, or the tunnel.
            if engine.link(link).is_none_or(|machine| machine.owner(slot) != Some(owner.to_bits())) {
                if self.link == Some(link) {
                    self.audit.record_connect(slot, Some(&waiting.name), None, None, Code::PeerGone);
                }
                continue;
            }
            self.ports.end_look(owner);
            let connecting = found.and_then(|addresses| {
                let target = self.target_of(addresses, &waiting)?;
                self.connect(engine, waiting.asked, target)
            });
            // What was begun is written down when it ends, with the address.
            if let Err(code) = connecting {
                self.audit.record_connect(slot, Some(&waiting.name), None, None, code);
                self.answer(engine, waiting.asked, RequestKind::Connect, Err(code));
            }
        }
    }

    /// The addresses that both lists allow, in the resolver's order.
    fn target_of(&self, addresses: Vec<SocketAddr>, waiting: &Waiting) -> Result<Target, Code> {
        if addresses.is_empty() {
            return Err(Code::NameNotFound);
        }
        let policy = self.policy.borrow();
        let mut allowed: Vec<_> = addresses.into_iter().filter(|&address| policy.permits(address)).collect();
        if allowed.is_empty() {
            return Err(Code::Denied);
        }
        allowed.retain(|&address| policy::allows(&waiting.rules, address));
        if allowed.is_empty() {
            return Err(Code::NotPermitted);
        }
        allowed.reverse();
        let timeout = connect_timeout(waiting.timeout_ms);
        let each = (timeout / allowed.len() as u32).max(TIMEOUT_MIN).min(timeout);
        Ok(Target { addresses: allowed, timeout: each, name: Some(waiting.name.clone()) })
    }
}

/// A rule that this version does not understand allows nothing.
fn rules(text: &str) -> Vec<AllowRule> {
    text.split(',').filter_map(|rule| rule.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_or_told_to_be_unknown() {
        assert_eq!(look_up("127.0.0.1", 80), Ok(vec!["127.0.0.1:80".parse().unwrap()]));
        assert!(look_up("localhost", 80).unwrap().iter().all(|address| address.ip().is_loopback()));
        assert_eq!(look_up("a name with spaces", 80), Err(Code::NameNotFound));
        assert_eq!(look_up("", 80).map_err(|_| ()), Err(()));
    }

    #[test]
    fn rules_that_are_not_understood_allow_nothing() {
        let port: SocketAddr = "10.0.0.5:80".parse().unwrap();
        assert!(policy::allows(&rules("192.168.0.0/16,10.0.0.0/8:80"), port));
        for text in ["", "garbage", "10.0.0.0/8:81", "10.0.0.0/8;0.0.0.0/0"] {
            assert!(!policy::allows(&rules(text), port), "{text}");
        }
    }
}

//! The thread that asks the relay, so that the screen never waits for it.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::answers::{self, Answers, Knows, Page};
use super::around::{self, Around};
use super::model::{Look, News};
use super::shard_time::ShardTimes;
use crate::admin::ctl::ask;

/// Rows of one page: a larger list is read page by page, one with each look.
pub(super) const PAGE: usize = 1000;

/// Longest list that is read.
pub(super) const ROWS_MAX: usize = 50_000;

/// News and orders that may wait; who waits for longer than that has other troubles.
const WAITING_MAX: usize = 16;

/// What a look shall show beside the relay's own figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Want {
    /// Nothing.
    #[default]
    Figures,
    /// The next page of the tunnels that pass this pattern.
    List(String),
    /// The one tunnel that is looked at more closely.
    Tunnel(String),
}

/// What the screen asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// From the next look on.
    Want(Want),
    /// Once, at once.
    Command(String),
}

/// The screen's end of the thread.
pub(super) struct Asker {
    pub(super) orders: Sender<Order>,
    pub(super) news: Receiver<News>,
}

impl Asker {
    /// Looks at once, and then every `interval`, until the screen is gone.
    pub(super) fn start(socket: PathBuf, interval: Duration, want: Want) -> std::io::Result<Self> {
        let (orders, ordered) = crossbeam_channel::bounded(WAITING_MAX);
        let (tell, news) = crossbeam_channel::bounded(WAITING_MAX);
        let asks = Asks::new(socket);
        thread::Builder::new().name("asker".into()).spawn(move || asks.run(interval, want, &ordered, &tell))?;
        Ok(Self { orders, news })
    }

    /// Gives an order; one too many at a time is dropped, as a key would be that nobody reads.
    pub(super) fn order(&self, order: Order) -> bool {
        !matches!(self.orders.try_send(order), Err(TrySendError::Full(_)))
    }
}

/// The asking itself, without a thread of its own.
pub(super) struct Asks {
    socket: PathBuf,
    started: Instant,
    /// What the relay of this process identifier knows.
    knows: Option<(u32, Knows)>,
    times: ShardTimes,
    /// Where in the list the next page begins.
    place: Place,
    around: Around,
}

/// Between two pages of a list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    /// Of which list.
    want: Want,
    /// Behind this mediator; `None` at the beginning.
    after: Option<String>,
    /// Rows so far.
    rows: usize,
}

impl Place {
    /// A page has come.
    fn pass(&mut self, page: &Page) {
        self.rows += page.tunnels.len();
        let goes_on = page.more && self.rows < ROWS_MAX;
        self.after = page.tunnels.last().filter(|_| goes_on).map(|last| last.id.clone());
        if self.after.is_none() {
            self.rows = 0;
        }
    }
}

impl Asks {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            started: Instant::now(),
            knows: None,
            times: ShardTimes::default(),
            place: Place::default(),
            around: Around::default(),
        }
    }

    fn run(mut self, interval: Duration, mut want: Want, orders: &Receiver<Order>, tell: &Sender<News>) {
        let mut next = Instant::now();
        loop {
            match orders.recv_deadline(next) {
                Ok(Order::Want(other)) => want = other,
                Ok(Order::Command(command)) => {
                    if tell.send(News::Done(self.command(&command))).is_err() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let news = self.look(&want).map_or_else(News::Lost, |look| News::Look(Box::new(look)));
                    if tell.send(news).is_err() {
                        return;
                    }
                    // From the end of the look: a relay that is slow is asked less.
                    next = Instant::now() + interval;
                }
            }
        }
    }

    /// One look.
    pub(super) fn look(&mut self, want: &Want) -> Result<Look, String> {
        let knows = self.knows.map(|(_, knows)| knows);
        if self.place.want != *want {
            self.place = Place { want: want.clone(), ..Place::default() };
        }
        let first_page = self.place.after.is_none();
        let (mut line, mut headings) = questions(want, self.place.after.as_deref(), knows.unwrap_or_default());
        let opened = match want {
            Want::Tunnel(id) => Some(id.as_str()),
            Want::List(_) | Want::Figures => None,
        };
        let around = self.around.is_due(opened);
        if around {
            line.push_str(around::COMMANDS);
            headings.extend(["publishes", "exposes"]);
        }
        let text = ask(&self.socket, &line).map_err(|error| format!("{error:#}"))?;
        let at = self.started.elapsed();
        let mut answers = answers::read(&text, *want != Want::Figures, &headings)?;
        if around {
            self.take_around(&mut answers);
        }
        if opened.is_some() {
            answers.more.push(("around", Ok(self.around.value())));
        }
        let pid = answers.info.pid;
        // Another relay may be an older or a newer one, and its list is another.
        let knows = match self.knows {
            Some((of, knows)) if of == pid => {
                if let (Want::List(_), Some(Ok(page))) = (want, &answers.page) {
                    self.place.pass(page);
                }
                knows
            }
            _ => {
                self.place = Place::default();
                let knows = Knows::read(&ask(&self.socket, "help").map_err(|error| format!("{error:#}"))?);
                self.knows = Some((pid, knows));
                knows
            }
        };
        let busy = self.times.read(pid, answers.shards.len());
        Ok(Look { at, want: want.clone(), first_page, answers, busy, knows })
    }

    fn take_around(&mut self, answers: &mut Answers) {
        let mut take = || answers.more.pop().and_then(|(_, answer)| answer.ok()).unwrap_or_default();
        let (exposes, publishes) = (take(), take());
        self.around.take(&publishes, &exposes);
    }

    fn command(&self, command: &str) -> Result<String, String> {
        let text = ask(&self.socket, command).map_err(|error| format!("{error:#}"))?;
        answers::done(&text)
    }
}

/// The line of commands for a look, and the headings of what goes beyond the usual.
fn questions(want: &Want, after: Option<&str>, knows: Knows) -> (String, Vec<&'static str>) {
    let mut line = "show info json;show stat json".to_owned();
    let mut headings = Vec::new();
    match want {
        Want::Figures => {}
        Want::List(glob) => {
            let after = after.map(|id| format!(" after={id}")).unwrap_or_default();
            line.push_str(&format!(";show tunnels id={glob}{after} limit={PAGE} json"));
        }
        Want::Tunnel(id) => {
            line.push_str(&format!(";show tunnels id={id} limit=1 json"));
            if knows.tunnel {
                line.push_str(&format!(";show tunnel {id} json"));
                headings.push("tunnel");
            }
        }
    }
    (line, headings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::testing::tunnel;

    #[test]
    fn a_look_asks_for_one_page_or_for_one_tunnel() {
        let (line, _) = questions(&Want::List("cpe-*".to_owned()), None, Knows::default());
        assert_eq!(line, "show info json;show stat json;show tunnels id=cpe-* limit=1000 json");
        assert_eq!(questions(&Want::Figures, None, Knows::default()).0, "show info json;show stat json");
        let want = Want::Tunnel("a".to_owned());
        assert!(!questions(&want, None, Knows::default()).0.contains("show tunnel a"));
        let (line, headings) = questions(&want, None, Knows { tunnel: true, drain: false });
        assert!(line.ends_with("id=a limit=1 json;show tunnel a json") && headings == ["tunnel"]);
    }

    #[test]
    fn pages_follow_each_other_to_the_end_or_to_the_bound() {
        let page = |more| Page { tunnels: vec![tunnel("a", 0, 0), tunnel("b", 0, 0)], more };
        let mut place = Place::default();
        place.pass(&page(true));
        assert_eq!((place.after.as_deref(), place.rows), (Some("b"), 2));
        let (line, _) = questions(&Want::List("*".to_owned()), place.after.as_deref(), Knows::default());
        assert!(line.ends_with("id=* after=b limit=1000 json"), "{line}");
        place.pass(&page(false));
        assert_eq!(place, Place::default());
        for (rows, goes_on) in [(ROWS_MAX - 3, true), (ROWS_MAX - 2, false)] {
            let mut place = Place { rows, ..Place::default() };
            place.pass(&page(true));
            assert_eq!(place.after.is_some(), goes_on);
        }
    }

    #[test]
    fn absent_relay_is_news_and_not_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let asker = Asker::start(dir.path().join("none"), Duration::from_secs(60), Want::default()).unwrap();
        assert!(matches!(asker.news.recv(), Ok(News::Lost(why)) if why.contains("no relay runs")));
        assert!(asker.order(Order::Command("help".to_owned())));
        assert!(matches!(asker.news.recv(), Ok(News::Done(Err(_)))));
    }
}

//! The log, on standard error: text for people, JSON for programs. Its filter can be changed while the program runs.
//!
//! Of one place in the code, at most [`BURST`] lines come at once and [`A_SECOND`] a second: what a flood of callers makes it
//! say is counted, and told once a second. Lines at debug and below, which somebody asked for, are not limited.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Lines of one place that may come at once.
const BURST: u32 = 200;

/// Lines of one place a second, in the long run.
const A_SECOND: u32 = 20;

/// Between two words about what was left out.
const TELL_EACH: Duration = Duration::from_secs(1);

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: an object a line.
    Json,
}

type Set = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// How the running log's filter is changed; there is one log for a process.
static SET: OnceLock<Set> = OnceLock::new();

/// Standard error, on which each line begins with its priority in the way that the journal takes off again (sd-daemon(3)).
struct ToJournal;

/// One line's.
struct Prioritised(u8);

impl<'a> MakeWriter<'a> for ToJournal {
    type Writer = Prioritised;

    fn make_writer(&'a self) -> Prioritised {
        Prioritised(priority(Level::INFO))
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Prioritised {
        Prioritised(priority(*metadata.level()))
    }
}

impl Write for Prioritised {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        // At once, so that lines of several threads do not mix.
        let all = [format!("<{}>", self.0).as_bytes(), line].concat();
        std::io::stderr().lock().write_all(&all).map(|()| line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// As syslog(3) numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Whether standard error is the journal: `JOURNAL_STREAM` has its device and inode (systemd.exec(5)), and is inherited by
/// programs whose output leads elsewhere.
fn is_journal(named: Option<&str>) -> bool {
    let Some((device, inode)) = named.and_then(|text| text.split_once(':')) else { return false };
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| device == stat.st_dev.to_string() && inode == stat.st_ino.to_string())
}

/// Starts logging. In the journal, which has a time of its own, lines have none, but their priority. `threads`: text has the
/// thread's name, too.
pub fn init(filter: EnvFilter, format: LogFormat, threads: bool) {
    let (filter, handle) = reload::Layer::new(with_notice(filter));
    let limiter = Limiter::default();
    let in_journal = is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref());
    let writer = if in_journal { BoxMakeWriter::new(ToJournal) } else { BoxMakeWriter::new(std::io::stderr) };
    let text = fmt::layer().with_writer(writer).with_ansi(std::io::stderr().is_terminal()).with_thread_names(threads);
    let lines: Box<dyn Layer<_> + Send + Sync> = match (format, in_journal) {
        (LogFormat::Text, false) => text.boxed(),
        (LogFormat::Text, true) => text.without_time().boxed(),
        // A thread's name tells the shard.
        (LogFormat::Json, _) => text
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_thread_names(true)
            .boxed(),
    };
    let log = Registry::default().with(filter).with(lines.with_filter(limiter.clone()));
    // It fails only where a subscriber is set already, as in a test: that one is then the better one.
    if log.try_init().is_ok() {
        let _ = SET.set(Box::new(move |filter| handle.reload(with_notice(filter)).map_err(|error| error.to_string())));
        limiter.start_teller();
    }
}

/// Whatever the filter says, it is told what was left out.
fn with_notice(filter: EnvFilter) -> EnvFilter {
    match format!("{}=warn", module_path!()).parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    }
}

/// Changes the filter. Where the log is another program's, as in a test, nothing changes.
///
/// # Errors
/// The log is gone.
pub fn set(filter: EnvFilter) -> Result<(), String> {
    SET.get().map_or(Ok(()), |set| set(filter))
}

/// Counts the lines of each place in the code; there are as many as the program has.
#[derive(Clone, Default)]
struct Limiter(Arc<Limits>);

#[derive(Default)]
struct Limits {
    places: Mutex<HashMap<Identifier, Place>>,
    /// Tells what was left out.
    teller: OnceLock<Thread>,
}

/// A bucket of lines that may come, which fills up with time.
struct Place {
    left: u32,
    filled: Instant,
    left_out: u64,
    metadata: &'static Metadata<'static>,
}

impl Place {
    fn new(metadata: &'static Metadata<'static>, now: Instant) -> Self {
        Self { left: BURST, filled: now, left_out: 0, metadata }
    }

    /// Whether another line may come.
    fn take(&mut self, now: Instant) -> bool {
        let each = Duration::from_secs(1) / A_SECOND;
        let new = now.saturating_duration_since(self.filled).as_nanos() / each.as_nanos();
        let new = u32::try_from(new).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(new).min(BURST);
        // What is left of the time counts for the next one, but in a full bucket.
        self.filled = if self.left == BURST { now } else { self.filled + each * new };
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.left_out += 1;
                false
            }
        }
    }
}

impl Limiter {
    /// Tells what was left out, when something was; sleeps otherwise.
    fn start_teller(self) {
        let limits = self.0.clone();
        let run = move || {
            loop {
                std::thread::park();
                std::thread::sleep(TELL_EACH);
                for (count, metadata) in self.take_left_out() {
                    let place = format!("{}:{}", metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
                    tracing::warn!(count, level = %metadata.level(), place, "lines like others were left out");
                }
            }
        };
        // A thread that takes signals would take those which the program reads.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        // Without it lines are left out all the same, and nobody is told.
        if let Ok(thread) = std::thread::Builder::new().name("log".into()).spawn(run) {
            let _ = limits.teller.set(thread.thread().clone());
        }
        if let Ok(mask) = mask {
            let _ = mask.thread_set_mask();
        }
    }

    fn take_left_out(&self) -> Vec<(u64, &'static Metadata<'static>)> {
        let mut places = self.0.places.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = places.values_mut().filter(|place| place.left_out > 0);
        left_out.map(|place| (std::mem::take(&mut place.left_out), place.metadata)).collect()
    }

    fn lets(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut places = self.0.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(metadata.callsite()).or_insert_with(|| Place::new(metadata, now));
        let lets = place.take(now);
        let first = place.left_out == 1;
        drop(places);
        if !lets
            && first
            && let Some(teller) = self.0.teller.get()
        {
            teller.unpark();
        }
        lets
    }
}

impl<S: Subscriber> Filter<S> for Limiter {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.lets(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static PLACE: Metadata<'static> = Metadata::new(
        "test",
        "isthmus",
        Level::WARN,
        Some("here.rs"),
        Some(7),
        None,
        tracing::field::FieldSet::new(&[], Identifier(&CALLSITE)),
        tracing::metadata::Kind::EVENT,
    );

    struct Site;
    static CALLSITE: Site = Site;
    impl tracing::Callsite for Site {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}
        fn metadata(&self) -> &Metadata<'_> {
            &PLACE
        }
    }

    #[test]
    fn journal_is_known_by_its_device_and_inode_only() {
        let stat = rustix::fs::fstat(std::io::stderr()).unwrap();
        assert!(is_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino))));
        assert!(!is_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino + 1))));
        assert!(!is_journal(Some("journal")) && !is_journal(None));
    }

    #[test]
    fn flood_is_cut_off_counted_and_goes_on_with_time() {
        let (limiter, start) = (Limiter::default(), Instant::now());
        let lets = |count: u32, at: Duration| (0..count).filter(|_| limiter.lets(&PLACE, start + at)).count() as u32;
        assert_eq!(lets(BURST + 50, Duration::ZERO), BURST);
        assert_eq!(
            limiter.take_left_out().iter().map(|(count, place)| (*count, place.line())).collect::<Vec<_>>(),
            [(50, Some(7))]
        );
        assert!(limiter.take_left_out().is_empty(), "it is told once");
        assert_eq!(lets(100, Duration::from_secs(2)), 2 * A_SECOND);
        assert_eq!(lets(BURST + 1, Duration::from_secs(3600)), BURST, "it never has more than a burst");
        let steady = |n: u32| Duration::from_secs(3600) + Duration::from_millis(49) * n;
        let through: u32 = (1..=1000).map(|n| lets(1, steady(n))).sum();
        assert!((975..=981).contains(&through), "{through} of a line each 49 ms, which are 980 by the rate");
    }
}

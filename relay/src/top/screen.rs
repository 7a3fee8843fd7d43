//! The operator's terminal: taken, drawn on, given back in any case.

use std::io::{self, IsTerminal};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use crossbeam_channel::{Receiver, TryRecvError};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};

use super::asker::{Asker, Order};
use super::model::{Model, News};
use super::ui::{Effect, Ui};
use super::view;

/// Keys are seen at once, news of the relay within this.
const NEWS_WITHIN: Duration = Duration::from_millis(100);

/// Shows the relay until a key, or a signal, ends it.
pub(super) fn run(asker: &Asker, ui: Ui) -> anyhow::Result<()> {
    ensure!(io::stdout().is_terminal(), "standard output is no terminal; 'top --once' prints one picture as text");
    let ended = end_signals().context("cannot listen for signals")?;
    // A panic, too, gives the terminal back before it says what it is.
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let outcome = watch(&mut terminal, asker, ui, &ended);
    ratatui::try_restore().context("cannot give the terminal back; 'reset' does")?;
    outcome
}

fn watch(terminal: &mut DefaultTerminal, asker: &Asker, mut ui: Ui, ended: &Receiver<()>) -> anyhow::Result<()> {
    let mut model = Model::default();
    let mut wanted = ui.want();
    let mut stale = true;
    loop {
        if stale {
            terminal.draw(|frame| view::draw(frame, &model, &mut ui)).context("cannot draw")?;
            stale = false;
        }
        if event::poll(NEWS_WITHIN).context("cannot read the terminal")? {
            stale = true;
            if let Event::Key(key) = event::read().context("cannot read the terminal")? {
                match ui.key(key, &model) {
                    Effect::Quit => return Ok(()),
                    Effect::Redraw => {}
                    Effect::Order(order) => {
                        model.notice = None;
                        if !asker.order(order) {
                            model.notice = Some(Err("the relay has not answered the last ones yet".to_owned()));
                        }
                    }
                }
            }
        }
        let want = ui.want();
        // One that did not get through is tried again in the next turn.
        if want != wanted && asker.order(Order::Want(want.clone())) {
            wanted = want;
        }
        loop {
            match asker.news.try_recv() {
                // The picture stands still; the next look after that tells rates over the whole time.
                Ok(News::Look(_)) if ui.held => {}
                Ok(news) => model.take(news),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => bail!("the thread that asks the relay has ended"),
            }
            stale = true;
        }
        if ended.try_recv().is_ok() {
            return Ok(());
        }
    }
}

/// Between two looks whether the terminal is still there.
const TERMINAL_LOOK: Duration = Duration::from_secs(1);

/// Whether the terminal has gone: not every way of losing it sends SIGHUP.
fn is_hung_up() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

/// Tells of SIGTERM and SIGHUP, which would leave the terminal as it is, and of the terminal's loss. (Ctrl-C is a key here.)
///
/// Reading keys from a terminal that has gone may never return, and takes a whole processor: who does not end by himself
/// within a second is ended.
fn end_signals() -> io::Result<Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (tell, ended) = crossbeam_channel::bounded(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let (mut terminate, mut hangup) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    drop(entered);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => return,
                    _ = hangup.recv() => return,
                    () = tokio::time::sleep(TERMINAL_LOOK) => if is_hung_up() { return },
                }
            }
        });
        let _ = tell.send(());
        std::thread::sleep(TERMINAL_LOOK);
        ratatui::restore();
        std::process::exit(0);
    })?;
    Ok(ended)
}

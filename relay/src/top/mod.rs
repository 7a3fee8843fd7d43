//! `isthmus-relay top`: a running relay on one screen.
//!
//! Data goes one way: the relay's answers ([`answers`], asked for on a thread of its own, [`asker`]) become the
//! [`model`]; keys change what is looked at ([`ui`]); the [`view`] draws both. **Invariant:** the relay is asked for one
//! page of tunnels in a look, and for one look a second at most.

mod answers;
mod args;
mod around;
mod asker;
mod column;
mod format;
mod history;
mod model;
mod once;
mod screen;
mod shard_time;
#[cfg(test)]
mod testing;
mod ui;
mod view;

pub use args::TopArgs;

use asker::Asker;
use ui::Ui;

/// Shows the relay until the operator has seen enough, or once.
///
/// # Errors
/// There is no terminal; with `--once`, the relay could not be asked.
pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let ui = Ui::new(args.sort, args.filter.clone().unwrap_or_default());
    if args.once {
        return once::print(args, ui);
    }
    let asker = Asker::start(args.stats_socket_path(), args.interval, ui.want())?;
    screen::run(&asker, ui)
}

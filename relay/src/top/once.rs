//! One picture as plain text, for scripts and for those who have no terminal.

use std::io::{self, IsTerminal, Write};
use std::thread;

use anyhow::Context;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;

use super::args::TopArgs;
use super::asker::Asks;
use super::model::{Model, News};
use super::ui::Ui;
use super::view;

/// Where no terminal says otherwise.
const SIZE: (u16, u16) = (80, 24);

/// Looks twice, since rates are what two looks differ by, and prints.
pub(super) fn print(args: &TopArgs, mut ui: Ui) -> anyhow::Result<()> {
    let mut asks = Asks::new(args.stats_socket_path());
    let mut model = Model::default();
    for look in 0..2 {
        if look > 0 {
            thread::sleep(args.interval);
        }
        let look = asks.look(&ui.want()).map_err(anyhow::Error::msg)?;
        model.take(News::Look(Box::new(look)));
    }
    let size = io::stdout().is_terminal().then(|| ratatui::crossterm::terminal::size().ok()).flatten().unwrap_or(SIZE);
    match io::stdout().write_all(picture(&model, &mut ui, size)?.as_bytes()) {
        // Nobody reads on, as with `| head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write the picture"),
    }
}

/// What the screen would show, without colours, and without blanks at the ends of lines.
pub(super) fn picture(model: &Model, ui: &mut Ui, (width, height): (u16, u16)) -> anyhow::Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).context("cannot make a picture")?;
    terminal.draw(|frame| view::draw(frame, model, ui)).context("cannot draw")?;
    Ok(text(terminal.backend().buffer()))
}

fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer.content().chunks(usize::from(buffer.area.width.max(1))) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

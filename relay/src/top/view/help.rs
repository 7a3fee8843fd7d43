//! The keys, in full.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Stylize;
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph};

use crate::top::model::Model;

const KEYS: [(&str, &str); 14] = [
    ("↑ ↓ PgUp PgDn", "move the mark, or scroll"),
    ("Home End", "first and last tunnel"),
    ("Enter", "the tunnel's own screen; Esc leads back"),
    ("Tab", "shards, and what was lost by reason"),
    ("/", "filter by name: cpe-*, or any part of it; Esc clears it"),
    ("s S, → ←, > <", "sort by the next or the previous column"),
    ("r", "reverse the order"),
    ("n i o a", "sort by name, in, out, age"),
    ("k", "end the tunnel (kill), after a yes"),
    ("d", "send all mediators away (drain), or let them in again, after a yes"),
    ("Space", "hold the picture, and go on"),
    ("?", "this help"),
    ("q, Ctrl-C", "quit"),
    ("", "\"in\" is from the mediator, \"out\" to it"),
];

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let lines: Vec<Line<'_>> = KEYS
        .iter()
        .filter(|(key, _)| *key != "d" || model.look.knows.drain)
        .map(|(key, does)| Line::from(vec![format!(" {key:14} ").bold(), (*does).into()]))
        .collect();
    let (width, height) = (74.min(area.width), (lines.len() as u16 + 2).min(area.height));
    let place = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" keys ")), place);
}

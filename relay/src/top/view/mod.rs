//! What the model looks like. 80 x 24 is enough; more cells show more.

mod header;
mod help;
mod list;
mod shards;
mod tunnel;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::model::Model;
use super::ui::{Prompt, Screen, Ui};
use crate::admin::phrase;

/// What needs the operator's eye.
const ALARM: Style = Style::new().fg(Color::Red).add_modifier(ratatui::style::Modifier::BOLD);
const WARN: Style = Style::new().fg(Color::Yellow);

/// Draws one picture. What cannot be shown of a scrolled text is taken back from `ui`.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, ui: &mut Ui) {
    let area = frame.area();
    let head = header::height(area);
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(head), Constraint::Min(0), Constraint::Length(1)]).areas(area);
    header::draw(frame, top, model, ui);
    match &ui.screen {
        Screen::List => list::draw(frame, middle, model, ui),
        Screen::Tunnel(id) => {
            let lines = tunnel::lines(model, id, usize::from(middle.width));
            scroll(frame, middle, lines, ui);
        }
        Screen::Shards => {
            let lines = shards::lines(model, usize::from(middle.width));
            scroll(frame, middle, lines, ui);
        }
    }
    frame.render_widget(footer(model, ui, usize::from(bottom.width)), bottom);
    if ui.help {
        help::draw(frame, area, model);
    }
}

/// A text that may be longer than its place.
fn scroll(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'_>>, ui: &mut Ui) {
    ui.scrolled = ui.scrolled.min(lines.len().saturating_sub(usize::from(area.height)));
    let shown: Vec<Line<'_>> = lines.into_iter().skip(ui.scrolled).collect();
    frame.render_widget(Paragraph::new(shown), area);
}

/// The keys, as many as fit; in their place what is asked, and what the last command came to.
fn footer(model: &Model, ui: &Ui, width: usize) -> Line<'static> {
    match (&ui.prompt, &model.notice) {
        (Some(Prompt::Filter { .. }), _) => {
            return Line::from(vec![
                "/".bold(),
                ui.filter.clone().into(),
                "▏".into(),
                "  Enter: keep  Esc: as before".dim(),
            ]);
        }
        (Some(Prompt::Sure(command)), _) => return Line::styled(format!("{command}?  y: yes  n: no"), ALARM),
        (None, Some(outcome)) if ui.notice => {
            return match outcome {
                Ok(text) => Line::from(phrase(text)).bold(),
                Err(text) => Line::styled(phrase(text), ALARM),
            };
        }
        (None, _) => {}
    }
    let mut keys: Vec<(&str, &str)> = match ui.screen {
        Screen::List => {
            vec![("Enter", "open"), ("/", "filter"), ("s", "sort"), ("r", "reverse"), ("Tab", "shards"), ("k", "kill")]
        }
        Screen::Tunnel(_) => vec![("Esc", "back"), ("↑↓", "scroll"), ("Tab", "shards"), ("k", "kill")],
        Screen::Shards => vec![("Tab", "tunnels"), ("↑↓", "scroll")],
    };
    keys.extend([("?", "help"), ("q", "quit")]);
    if model.look.knows.drain {
        keys.push(("d", "drain"));
    }
    keys.push(("Space", if ui.held { "go on" } else { "hold" }));
    let mut spans = Vec::new();
    let mut left = width;
    for (key, does) in keys {
        let needs = key.chars().count() + does.len() + 3;
        // The two blanks behind the last one may be missing.
        if needs > left + 2 {
            break;
        }
        left = left.saturating_sub(needs);
        spans.extend([Span::from(key).bold(), Span::from(format!(" {does}  "))]);
    }
    Line::from(spans)
}

#[cfg(test)]
mod tests;

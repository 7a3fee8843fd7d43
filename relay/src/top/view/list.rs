//! The list of tunnels.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Stylize;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::WARN;
use crate::top::column::Column;
use crate::top::format::{count, cut};
use crate::top::model::{Model, Row};
use crate::top::ui::Ui;

/// Widest place of a name.
const NAME_MAX: usize = 64;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model, ui: &Ui) {
    let rows = ui.listed(model);
    let columns = columns(usize::from(area.width));
    let room = usize::from(area.height.saturating_sub(2)).max(1);
    let mark = ui.mark(&rows);
    // Whole pages, so that rows stand still while the mark moves.
    let first = mark.map_or(0, |mark| mark / room * room);
    let shown = &rows[first.min(rows.len())..rows.len().min(first + room)];
    let mut lines = vec![title(model, ui, first, shown.len(), rows.len()), heading(&columns, ui)];
    for (n, row) in shown.iter().enumerate() {
        let line = Line::from(cells(&columns, |column| column.cell(row)));
        lines.push(if mark == Some(first + n) { line.reversed() } else { idle(row, line) });
    }
    if rows.is_empty() && model.look.at > std::time::Duration::ZERO {
        lines.push(Line::from("no tunnel passes").dim());
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// The columns that fit with their widths; the name takes what is left.
fn columns(width: usize) -> Vec<(Column, usize)> {
    let mut columns: Vec<_> = Column::that_fit(width).into_iter().map(|column| (column, column.width())).collect();
    let used: usize = columns.iter().map(|(_, width)| width + 1).sum::<usize>().saturating_sub(1);
    if let Some((_, name)) = columns.first_mut() {
        *name = (*name + width.saturating_sub(used)).min(NAME_MAX);
    }
    columns
}

fn cells(columns: &[(Column, usize)], text: impl Fn(Column) -> String) -> String {
    let padded = columns.iter().map(|&(column, width)| {
        let text = cut(&text(column), width);
        if column.is_text() { format!("{text:width$}") } else { format!("{text:>width$}") }
    });
    padded.collect::<Vec<_>>().join(" ")
}

fn heading(columns: &[(Column, usize)], ui: &Ui) -> Line<'static> {
    let mark = if ui.falling { "▼" } else { "▲" };
    let text =
        cells(
            columns,
            |column| {
                if column == ui.sort { format!("{}{mark}", column.word()) } else { column.word().to_owned() }
            },
        );
    Line::from(text).bold().underlined()
}

fn title(model: &Model, ui: &Ui, first: usize, shown: usize, passing: usize) -> Line<'static> {
    let order = if ui.falling { "falling" } else { "rising" };
    let range = if shown == 0 {
        "0".to_owned()
    } else {
        format!("{}-{}", count(first as u64 + 1), count((first + shown) as u64))
    };
    let mut spans: Vec<Span<'_>> =
        vec![format!("tunnels {range} of {}, by {}, {order}", count(passing as u64), ui.sort.word()).into()];
    if !ui.filter.is_empty() {
        spans.push(format!(", filter {}", ui.filter).bold());
    }
    let all = model.total.figure("tunnels_live");
    if !model.complete && (model.rows.len() as u64) < all {
        spans.push(Span::styled(format!("; of {} not all were read yet", count(all)), WARN));
    }
    if let Some(error) = &model.page_error {
        spans.push(Span::styled(format!("; {}", crate::admin::phrase(error)), WARN));
    }
    Line::from(spans)
}

/// What is idle stands back.
fn idle<'a>(row: &Row, line: Line<'a>) -> Line<'a> {
    let moves =
        row.rates.is_none_or(|rates| rates.bytes_in + rates.bytes_out + rates.datagrams_in + rates.datagrams_out > 0.0);
    if moves { line } else { line.dim() }
}

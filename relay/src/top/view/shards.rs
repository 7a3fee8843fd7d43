//! The shards side by side, and everything that was lost, by reason.

use ratatui::style::Stylize;
use ratatui::text::Line;

use super::WARN;
use crate::top::format::{bits_short, count, cut, short};
use crate::top::model::{Load, Model};

/// All lines; the place may be too small for them.
pub(super) fn lines(model: &Model, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![heading(width)];
    let rows = std::iter::once(("all".to_owned(), &model.total));
    let rows = rows.chain(model.shards.iter().enumerate().map(|(n, load)| (n.to_string(), load)));
    lines.extend(
        rows.map(|(name, load)| Line::from(cells(&COLUMNS, width, |column| (column.cell)(&name, load, model)))),
    );
    lines.push(Line::default());
    lines.push(Line::from(format!("{:>12} {:>10}  dropped or refused", "since start", "now")).bold().underlined());
    if model.losses.is_empty() {
        lines.push(Line::from("nothing").dim());
    }
    for loss in &model.losses {
        let text = format!("{:>12} {:>8}/s  {}", count(loss.total), short(loss.per_second), loss.counter);
        lines.push(if loss.per_second > 0.0 { Line::styled(text, WARN) } else { Line::from(text) });
    }
    lines
}

struct Column {
    name: &'static str,
    width: usize,
    cell: fn(&str, &Load, &Model) -> String,
}

/// As many as fit are shown, the first ones first.
const COLUMNS: [Column; 13] = [
    Column { name: "shard", width: 5, cell: |name, _, _| name.to_owned() },
    Column { name: "load", width: 5, cell: |name, load, model| busy(name, load, model) },
    Column { name: "tunnels", width: 8, cell: |_, load, _| count(load.figure("tunnels_live")) },
    Column { name: "visitors", width: 8, cell: |_, load, _| count(load.figure("visitors_live")) },
    Column { name: "flows", width: 8, cell: |_, load, _| count(load.figure("flows_live")) },
    Column { name: "in", width: 7, cell: |_, load, _| bits_short(load.rates.bytes_in) },
    Column { name: "out", width: 7, cell: |_, load, _| bits_short(load.rates.bytes_out) },
    Column { name: "dgrams", width: 7, cell: |_, load, _| short(load.rates.datagrams_in + load.rates.datagrams_out) },
    Column { name: "drops", width: 6, cell: |_, load, _| short(load.dropped) },
    Column { name: "turns", width: 7, cell: |_, load, _| short(load.loops) },
    Column { name: "attach", width: 7, cell: |_, load, _| short(load.attached) },
    Column { name: "channels", width: 8, cell: |_, load, _| count(load.figure("channels_live")) },
    Column { name: "terminals", width: 9, cell: |_, load, _| count(load.figure("terminals_live")) },
];

fn busy(name: &str, load: &Load, model: &Model) -> String {
    // Of all together the mean is told.
    let part = if name == "all" { model.busy().map(|(mean, _, _)| mean) } else { load.busy };
    part.map_or_else(|| "-".to_owned(), |part| format!("{:.0}%", part * 100.0))
}

fn heading(width: usize) -> Line<'static> {
    Line::from(cells(&COLUMNS, width, |column| column.name.to_owned())).bold().underlined()
}

fn cells(columns: &[Column], width: usize, text: impl Fn(&Column) -> String) -> String {
    let mut line = String::new();
    let mut used = 0;
    for column in columns {
        let gap = usize::from(used > 0);
        if used + gap + column.width > width {
            break;
        }
        used += gap + column.width;
        let cell = cut(&text(column), column.width);
        line.push_str(if gap > 0 { " " } else { "" });
        line.push_str(&format!("{cell:>0$}", column.width));
    }
    line
}

//! The relay as a whole: who it is, its rates with their last minutes, what it lost, how its shards are loaded.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};

use super::{ALARM, WARN};
use crate::admin::{hidden, phrase};
use crate::top::format::{age, bits, count, cut, number, short};
use crate::top::history::Chart;
use crate::top::model::{Connection, Model};
use crate::top::ui::Ui;

/// Cells in front of a chart.
const LABEL: u16 = 38;

const CHARTS: u16 = 4;

/// Rows that it takes; without charts where there is hardly room for a list.
pub(super) fn height(area: Rect) -> u16 {
    match area.height {
        0..16 => 2,
        rows => 4 + CHARTS * chart_height(rows),
    }
}

fn chart_height(rows: u16) -> u16 {
    match rows {
        0..32 => 1,
        32..56 => 2,
        _ => 3,
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model, ui: &Ui) {
    let charts = area.height.saturating_sub(4);
    let rows = [1, 1, charts, 1, 1].map(Constraint::Length);
    let [title, counts, middle, losses, load] = Layout::vertical(rows).areas(area);
    frame.render_widget(title_line(model, ui), title);
    frame.render_widget(counts_line(model), counts);
    if charts > 0 {
        draw_charts(frame, middle, model);
        frame.render_widget(losses_line(model, usize::from(losses.width)), losses);
        frame.render_widget(load_line(model, usize::from(load.width)), load);
    }
}

fn title_line(model: &Model, ui: &Ui) -> Line<'static> {
    let info = &model.look.answers.info;
    if model.connection == Connection::Asking {
        return Line::from("isthmus-relay  asking…").bold();
    }
    let mut spans = vec![
        format!("isthmus-relay {}", phrase(&info.version)).bold(),
        format!(
            "  up {}  {}  {}",
            age(info.uptime_s),
            phrase(&info.listen),
            number(model.shards.len() as u64, "shard")
        )
        .into(),
    ];
    if info.plaintext {
        spans.push(Span::styled("  PLAINTEXT", WARN));
    }
    if ui.held {
        spans.push(Span::styled("  held", WARN));
    }
    Line::from(spans)
}

/// What is there now; while the relay cannot be asked, that, and why.
fn counts_line(model: &Model) -> Line<'static> {
    match &model.connection {
        Connection::Lost(why) => Line::styled(format!("no answer, trying again: {}", why.replace(hidden, "?")), ALARM),
        Connection::Asking => Line::default(),
        Connection::Up => {
            let shown = [
                ("terminals", "terminals_live"),
                ("visitors", "visitors_live"),
                ("flows", "flows_live"),
                ("socks", "socks_live"),
                ("channels", "channels_live"),
                ("half-open", "half_open"),
            ];
            let counts = shown.map(|(word, counter)| format!("{word} {}", count(model.total.figure(counter))));
            Line::from(counts.join("  "))
        }
    }
}

fn draw_charts(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rates = &model.total.rates;
    let per_second =
        |value: f64, what: &str| if model.has_rates { format!("{}{what}/s", short(value)) } else { "-".to_owned() };
    let speed = |bytes: f64| if model.has_rates { bits(bytes) } else { "-".to_owned() };
    let dropped: u64 = model.losses.iter().filter(|loss| loss.dropped).map(|loss| loss.total).sum();
    let rows = [
        (Chart::In, "in", speed(rates.bytes_in), per_second(rates.datagrams_in, " dgram"), Color::Green),
        (Chart::Out, "out", speed(rates.bytes_out), per_second(rates.datagrams_out, " dgram"), Color::Cyan),
        (
            Chart::Tunnels,
            "tunnels",
            count(model.total.figure("tunnels_live")),
            if model.has_rates { format!("+{}/s", short(model.total.attached)) } else { "-".to_owned() },
            Color::Blue,
        ),
        (
            Chart::Dropped,
            "dropped",
            per_second(model.total.dropped, ""),
            format!("{} in all", count(dropped)),
            Color::Red,
        ),
    ];
    let places = Layout::vertical(rows.each_ref().map(|_| Constraint::Fill(1))).split(area);
    for ((chart, name, value, beside, colour), place) in rows.into_iter().zip(places.iter()) {
        let [label, bars] = Layout::horizontal([Constraint::Length(LABEL), Constraint::Min(0)]).areas(*place);
        let line =
            Line::from(vec![format!("{name:9}").dim(), format!("{value:>13}").bold(), format!(" {beside:>14}").into()]);
        frame.render_widget(Paragraph::new(line), label);
        let data = model.history.bars(chart, usize::from(bars.width));
        frame.render_widget(Sparkline::default().data(&data).style(colour), bars);
    }
}

/// What was dropped and refused, by reason: what happens now first, with the counts since the start behind.
fn losses_line(model: &Model, width: usize) -> Line<'static> {
    let mut text = String::new();
    for loss in &model.losses {
        let now = if loss.per_second > 0.0 { format!(" {}/s", short(loss.per_second)) } else { String::new() };
        text.push_str(&format!(
            "{}{}{now} ({})",
            if text.is_empty() { "" } else { ", " },
            loss.reason,
            count(loss.total)
        ));
    }
    let style = if model.losses.iter().any(|loss| loss.per_second > 0.0) { WARN } else { ratatui::style::Style::new() };
    if text.is_empty() {
        text.push_str("nothing dropped or refused");
    }
    Line::from(vec!["losses   ".dim(), Span::styled(cut(&text, width.saturating_sub(9)), style)])
}

/// How the shards are loaded: each a bar of what its thread takes of a core, or, where that is not to be had, of the
/// payload of the busiest.
fn load_line(model: &Model, width: usize) -> Line<'static> {
    let (text, parts): (String, Vec<f64>) = match model.busy() {
        Some((mean, at, most)) => (
            format!("mean {:.0}%, most {:.0}% by shard {at}  ", mean * 100.0, most * 100.0),
            model.shards.iter().map(|shard| shard.busy.unwrap_or(0.0)).collect(),
        ),
        None => {
            let payload = |load: &crate::top::model::Load| load.rates.bytes_in + load.rates.bytes_out;
            let most = model.shards.iter().map(payload).fold(1.0, f64::max);
            ("payload by shard  ".to_owned(), model.shards.iter().map(|shard| payload(shard) / most).collect())
        }
    };
    let bars: String = parts.into_iter().map(bar).collect();
    Line::from(vec!["load     ".dim(), cut(&(text + &bars), width.saturating_sub(9)).into()])
}

/// A part of one as a bar of one cell.
fn bar(part: f64) -> char {
    const BARS: [char; 9] = ['▁', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    BARS[((part.clamp(0.0, 1.0) * 8.0).round()) as usize]
}

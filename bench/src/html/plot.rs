//! Bars with whiskers, as SVG that takes its colours from the page.

use anyhow::anyhow;
use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;
use plotters::style::RGBColor;

use crate::results::Spread;
use crate::values;

/// One bar.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    pub(super) spread: Spread,
    /// What the page is about.
    pub(super) ours: bool,
}

/// Stand-ins, which the page's style replaces ([`STYLE`]): a drawing cannot know whether the page is light or dark.
const INK: RGBColor = RGBColor(0x10, 0x10, 0x10);
const GRID: RGBColor = RGBColor(0x20, 0x20, 0x20);
const OURS: RGBColor = RGBColor(0x30, 0x30, 0x30);
const OTHERS: RGBColor = RGBColor(0x40, 0x40, 0x40);

/// The rules of the page that colour the drawings.
pub(super) const STYLE: &str = r##"
svg { max-width: 100%; height: auto; font-variant-numeric: tabular-nums; }
svg [fill="#101010"] { fill: var(--ink); }
svg [stroke="#101010"] { stroke: var(--ink); }
svg [stroke="#202020"] { stroke: var(--grid); }
svg [fill="#303030"] { fill: var(--ours); }
svg [fill="#404040"] { fill: var(--others); }
"##;

const WIDTH: u32 = 460;
const ROW: u32 = 22;
const AXIS: u32 = 24;
const MARGIN: u32 = 6;
/// Of one letter of a name; the drawing library measures no fonts here, and need not.
const LETTER: u32 = 7;
const FONT: (&str, u32) = ("sans-serif", 12);

/// Bars from the top down, from 0 to each median, whiskers from the least to the greatest.
///
/// # Errors
/// The drawing library's.
pub(super) fn bars(title: &str, rows: &[Row<'_>]) -> anyhow::Result<String> {
    let mut svg = String::new();
    draw(&mut svg, rows).map_err(|error| anyhow!("cannot draw '{title}': {error}"))?;
    let label = format!(r#"<svg role="img" aria-label="{}" "#, super::escape(title));
    Ok(svg.replacen("<svg ", &label, 1))
}

fn draw(svg: &mut String, rows: &[Row<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    let count = rows.len();
    let names = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0) as u32 * LETTER + 8;
    let top = rows.iter().map(|row| row.spread.max).filter(|max| max.is_finite()).fold(0.0, f64::max);
    // Room for the number behind the longest bar; something to draw on where all is 0.
    let top = if top > 0.0 { top * 1.22 } else { 1.0 };
    let root = SVGBackend::with_string(svg, (WIDTH, count as u32 * ROW + AXIS + 2 * MARGIN)).into_drawing_area();
    let text = FONT.into_font().color(&INK);
    let mut chart = ChartBuilder::on(&root)
        .margin(MARGIN)
        .x_label_area_size(AXIS)
        .y_label_area_size(names)
        // The library's ranges of places include their end.
        .build_cartesian_2d(0.0..top, (0..count.saturating_sub(1)).into_segmented())?;
    // The first row is on top, and an axis counts from below.
    let name = |value: &SegmentValue<usize>| match value {
        SegmentValue::CenterOf(at) if *at < count => rows[count - 1 - at].name.to_owned(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_labels(5)
        .y_labels(count)
        .x_label_formatter(&|value| values::number(*value))
        .y_label_formatter(&name)
        .label_style(text.clone())
        .draw()?;
    for (at, row) in rows.iter().rev().enumerate() {
        let Spread { min, median, max, .. } = row.spread;
        let colour = if row.ours { OURS } else { OTHERS };
        let corners = [(0.0, SegmentValue::Exact(at)), (median, SegmentValue::Exact(at + 1))];
        let mut bar = Rectangle::new(corners, colour.filled());
        bar.set_margin(3, 3, 0, 0);
        chart.draw_series([bar])?;
        let middle = SegmentValue::CenterOf(at);
        chart.draw_series([PathElement::new(vec![(min, middle.clone()), (max, middle.clone())], INK)])?;
        for end in [min, max] {
            let tick = PathElement::new(vec![(0, -4), (0, 4)], INK);
            chart.draw_series([EmptyElement::at((end, middle.clone())) + tick])?;
        }
        let number = Text::new(values::number(median), (6, -6), text.clone());
        chart.draw_series([EmptyElement::at((max, middle)) + number])?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_name_its_number_and_a_whisker() {
        let spread = |median| Spread { min: median - 1.0, median, max: median + 1.0, rounds: 3 };
        let rows = [("isthmus", 20.5), ("haproxy", 10.25), ("a<b", 1.0)].map(|(name, median)| Row {
            name,
            spread: spread(median),
            ours: name == "isthmus",
        });
        let svg = bars("throughput & \"more\"", &rows).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        for text in ["isthmus", "haproxy", "a<b", "20.5", "10.2", "1.00"] {
            assert!(texts.contains(&text), "{text} is not in {texts:?}");
        }
        let bars = |colour| document.descendants().filter(|node| node.attribute("fill") == Some(colour)).count();
        assert_eq!((bars("#303030"), bars("#404040")), (1, 2));
        let colours =
            document.descendants().flat_map(|node| [node.attribute("fill"), node.attribute("stroke")]).flatten();
        for colour in colours.filter(|colour| colour.starts_with('#')) {
            assert!(STYLE.contains(colour), "{colour} does not follow the page");
        }
    }

    #[test]
    fn nothing_but_zeros_can_be_drawn() {
        let zero = Spread { min: 0.0, median: 0.0, max: 0.0, rounds: 3 };
        assert!(bars("zeros", &[Row { name: "isthmus", spread: zero, ours: true }]).is_ok());
        assert!(bars("none", &[]).is_ok());
    }
}

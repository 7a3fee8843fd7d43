//! A run as one HTML file: nothing outside is asked for, and it follows the reader's choice of light or dark.
//!
//! It is XML as well, so that it can be checked by any parser.

mod plot;
mod table;

use std::fmt::Write;

use crate::results::{Bar, Report};
use crate::values;

/// The page.
///
/// # Errors
/// The drawing library's.
pub fn page(report: &Report) -> anyhow::Result<String> {
    let mut page = String::new();
    let machine = &report.machine;
    let title = format!("isthmus-bench, {}", report.created);
    // Writing to a string does not fail.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>{}</title><style>{PAGE_STYLE}{}</style></head><body><h1>{}</h1>",
        escape(&title),
        plot::STYLE,
        escape(&title),
    );
    let mut facts = vec![
        ("Command", report.command.clone()),
        ("Processor", format!("{}, {} cores", machine.cpu, machine.cores)),
        ("Memory", format!("{} GiB", machine.memory_gib)),
        ("Kernel", machine.kernel.clone()),
        ("Congestion control", machine.congestion.clone()),
    ];
    facts.extend(machine.rustc.clone().map(|rustc| ("Compiler", rustc)));
    facts.extend(report.background.map(|others| {
        let words = format!("{:.0} % of a core (median), {:.0} % at most", others.median_percent, others.max_percent);
        ("Others used", words)
    }));
    page.push_str("<dl>");
    for (name, value) in facts {
        let _ = write!(page, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    page.push_str("</dl>");
    if !report.bars.is_empty() {
        bars(&mut page, &report.bars);
    }
    for work in report.works() {
        section(&mut page, report, work)?;
    }
    if !report.skipped.is_empty() {
        page.push_str("<h2>Not measured</h2><ul>");
        for skipped in &report.skipped {
            let (system, work, why) = (escape(&skipped.system), escape(&skipped.work), escape(&skipped.why));
            let _ = write!(page, "<li><b>{system}</b>, {work}: {why}</li>");
        }
        page.push_str("</ul>");
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

fn bars(page: &mut String, bars: &[Bar]) {
    page.push_str(
        "<h2>Bars</h2><div class=\"scroll\"><table><thead><tr><th>What</th><th>Bar</th>\
         <th class=\"n\">Measured</th><th>Verdict</th></tr></thead><tbody>",
    );
    for bar in bars {
        let (class, verdict) = match bar.met {
            Some(true) => ("met", "reached"),
            Some(false) => ("missed", "missed"),
            None => ("unknown", bar.why.as_deref().unwrap_or("not measured")),
        };
        let measured = bar.measured.map_or("-".into(), values::number);
        let (name, words, verdict) = (escape(&bar.name), escape(&bar.bar), escape(verdict));
        let _ = write!(
            page,
            "<tr><td>{name}</td><td>{words}</td><td class=\"n\">{measured}</td><td class=\"{class}\">{verdict}</td></tr>"
        );
    }
    page.push_str("</tbody></table></div>");
}

/// A work: a table of what matters first, plots of it for each case, and a table of everything.
fn section(page: &mut String, report: &Report, work: &str) -> anyhow::Result<()> {
    let _ = write!(page, "<h2>{}</h2>", escape(work));
    let keys = table::keys(report, work);
    let first: Vec<&str> = keys.iter().copied().filter(|key| !values::is_detail(key)).collect();
    table::medians(page, report, work, &first);
    for case in report.cases(work) {
        let _ = write!(page, "<h3>{}</h3><div class=\"plots\">", escape(case));
        for &key in &first {
            let rows: Vec<plot::Row<'_>> = report
                .systems(work)
                .into_iter()
                .filter_map(|name| {
                    let spread = report.spread(work, case, name, key)?;
                    Some(plot::Row { name, spread, ours: name.starts_with("isthmus") })
                })
                .collect();
            // Nothing to be seen, or nothing to be compared.
            if rows.iter().all(|row| row.spread.max == 0.0) {
                continue;
            }
            let svg = plot::bars(&format!("{work}, {case}: {key}"), &rows)?;
            let _ = write!(page, "<figure><figcaption>{}</figcaption>{svg}</figure>", escape(key));
        }
        page.push_str("</div>");
    }
    page.push_str("<details><summary>All values: median (least to greatest)</summary>");
    table::spreads(page, report, work, &keys);
    page.push_str("</details>");
    Ok(())
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            // XML allows no others of these.
            letter if letter.is_control() && !matches!(letter, '\n' | '\t') => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

const PAGE_STYLE: &str = "
:root { color-scheme: light dark; --page: #fff; --ink: #1d2330; --soft: #5b6475; --grid: #d9dde5; --ours: #2f7de1;
  --others: #aab3c2; --met: #157f3b; --missed: #c02626; }
@media (prefers-color-scheme: dark) { :root { --page: #14171d; --ink: #e6e9ef; --soft: #9aa4b5; --grid: #313846;
  --ours: #5ea0f5; --others: #5a6474; --met: #58c77c; --missed: #ff7b72; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1100px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin-bottom: .25rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .7rem; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; } td.range { color: var(--soft); }
.met { color: var(--met); } .missed { color: var(--missed); font-weight: bold; } .unknown { color: var(--soft); }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { color: var(--soft); }
summary { cursor: pointer; margin: .5rem 0; }
";

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::results::{Background, Measurement, Skipped};

    pub(crate) fn report() -> Report {
        let mut report = Report::begin("cubic");
        report.command = "isthmus-bench compare --cases '<16 & \"more\">'".into();
        for round in 1..=3 {
            for case in ["1 stream up", "16 streams <down>"] {
                for (system, gbit_s) in [("isthmus", 20.0), ("haproxy", 10.0)] {
                    let values = [("gbit_s", gbit_s + f64::from(round)), ("bytes", 1e9), ("w_s_per_gb", 0.7)];
                    report.results.push(Measurement {
                        work: "tcp".into(),
                        case: case.into(),
                        system: system.into(),
                        round,
                        values: BTreeMap::from(values.map(|(key, value)| (key.to_owned(), value))),
                    });
                }
            }
        }
        let bar = |name: &str, measured, met| Bar {
            why: None,
            name: name.into(),
            bar: "<= 0.95 x haproxy".into(),
            limit: 0.95,
            measured,
            met,
        };
        report.bars = vec![bar("W", Some(0.8), Some(true)), bar("CPU", Some(1.0), Some(false)), bar("p50", None, None)];
        let why = "not installed: scripts/peers".to_owned();
        report.skipped.push(Skipped { system: "nginx".into(), work: "all".into(), why });
        report.background = Some(Background { median_percent: 1.0, max_percent: 3.0 });
        report
    }

    #[test]
    fn page_is_well_formed_asks_for_nothing_outside_and_has_every_case() {
        let report = report();
        let page = page(&report).unwrap();
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
        let document = roxmltree::Document::parse_with_options(&page, options).unwrap();
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
        for text in
            ["1 stream up", "16 streams <down>", "isthmus", "haproxy", "reached", "missed", "not measured", "nginx"]
        {
            assert!(texts.contains(&text), "{text}");
        }
        assert!(texts.contains(&report.command.as_str()));
        let figures = document.descendants().filter(|node| node.has_tag_name("figure")).count();
        assert_eq!(figures, 2 * 2, "each case has a plot of each value that matters first");
        let outside = page.replace("http://www.w3.org/2000/svg", "");
        for word in ["http:", "https:", "//", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!outside.contains(word), "{word}");
        }
    }

    #[test]
    fn empty_report_has_a_page() {
        assert!(page(&Report::begin("bbr")).unwrap().contains("bbr"));
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("a<b>&\"c\"\u{7}\n"), "a&lt;b&gt;&amp;&quot;c&quot;\u{fffd}\n");
    }
}

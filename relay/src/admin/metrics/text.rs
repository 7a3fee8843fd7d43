//! Prometheus's text format: families, samples, escapes.

use std::fmt::{Display, Write};

use crate::admin::histogram::{Reading, Series, Unit};

/// What a family's values mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Counter,
    Gauge,
}

impl Type {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }
}

/// The text so far. Samples belong to the family that was begun last.
#[derive(Default)]
pub(super) struct Text {
    text: String,
    name: String,
}

impl Text {
    pub(super) fn family(&mut self, name: &str, kind: Type, help: &str) {
        self.begin(name, kind.word(), help);
    }

    /// A series, with the reading of each shard.
    pub(super) fn histogram(&mut self, series: Series, readings: impl Iterator<Item = Reading>) {
        self.begin(&format!("isthmus_{}", series.word()), "histogram", series.help());
        let shown = |value: u64| match series.unit() {
            Unit::Seconds => value as f64 / 1e9,
            Unit::Bytes => value as f64,
        };
        for (shard, reading) in readings.enumerate() {
            let shard = shard.to_string();
            let bounds = series.bounds().iter().map(|&bound| shown(bound).to_string());
            for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&reading.up_to) {
                self.line("_bucket", &[("shard", &shard), ("le", &bound)], count);
            }
            self.line("_sum", &[("shard", &shard)], shown(reading.sum));
            self.line("_count", &[("shard", &shard)], reading.up_to.last().unwrap_or(&0));
        }
    }

    fn begin(&mut self, name: &str, word: &str, help: &str) {
        name.clone_into(&mut self.name);
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {word}");
    }

    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, value);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(&self.name);
        self.text.push_str(suffix);
        for (n, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{}{label}=\"{text}\"", if n == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        let mut text = Text::default();
        text.family("a_total", Type::Counter, "one\ntwo \\");
        text.sample(&[], 1);
        text.sample(&[("x", "\"\\\n"), ("y", "z")], 0.25);
        let want = "# HELP a_total one\\ntwo \\\\\n# TYPE a_total counter\na_total 1\na_total{x=\"\\\"\\\\\\n\",y=\"z\"} 0.25\n";
        assert_eq!(text.finish(), want);
    }
}

//! Results: percentiles of samples, and lines of `key=value` words.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Times, for percentiles: three significant digits of nanoseconds, whatever their number.
#[derive(Clone, Debug)]
pub struct Samples(Histogram<u64>);

/// What a longer time counts as: an hour.
const LONGEST: Duration = Duration::from_secs(3600);

impl Default for Samples {
    fn default() -> Self {
        // Three digits are within what the crate allows, from 0 to 5; it grows with the largest sample.
        Self(Histogram::new(3).unwrap_or_else(|_| unreachable!("three digits are allowed")))
    }
}

impl Samples {
    /// Adds one; beyond an hour it counts as an hour.
    pub fn add(&mut self, sample: Duration) {
        // It fails beyond its range only, which grows.
        let _ = self.0.record(sample.min(LONGEST).as_nanos() as u64);
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Self) {
        // As above: it grows.
        let _ = self.0.add(&other.0);
    }

    /// How many were added.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The smallest sample that at least `share` (0 to 1) of the samples do not exceed, in microseconds, at most 0.1 % too
    /// large; `None` without any.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(share) as f64 / 1e3)
    }
}

/// One result: words `key=value` with a space between. Keys end in their unit.
#[derive(Clone, Debug, Default)]
pub struct Line(String);

impl Line {
    /// Adds a word.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Display) -> Self {
        self.add(key, value);
        self
    }

    /// Adds a word.
    pub fn add(&mut self, key: &str, value: impl Display) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        // Writing to a string does not fail.
        let _ = write!(self.0, "{key}={value}");
    }

    /// Adds `key_p50_us`, `key_p99_us`, `key_p999_us` and `key_max_us`, where there are samples; no key, no `_` after it.
    pub fn add_percentiles(&mut self, key: &str, samples: &Samples) {
        let separator = if key.is_empty() { "" } else { "_" };
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)] {
            if let Some(micros) = samples.percentile(share) {
                self.add(&format!("{key}{separator}{name}_us"), format_args!("{micros:.1}"));
            }
        }
    }
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks_within_a_thousandth() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(0.5), None);
        for micros in (1..=100).rev() {
            samples.add(Duration::from_micros(micros));
        }
        for (share, exact) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = samples.percentile(share).unwrap();
            assert!(found >= exact && found <= exact * 1.001, "{share}: {found}");
        }
        assert_eq!(samples.count(), 100);
        samples.add(LONGEST * 2);
        let longest = samples.percentile(1.0).unwrap() / LONGEST.as_micros() as f64;
        assert!((1.0..=1.001).contains(&longest), "{longest}");
    }

    #[test]
    fn line_separates_its_words() {
        let mut samples = Samples::default();
        samples.add(Duration::from_micros(2));
        let mut line = Line::default().with("gbit", format_args!("{:.2}", 1.5)).with("streams", 3);
        line.add_percentiles("rtt", &samples);
        let rtt = "rtt_p50_us=2.0 rtt_p99_us=2.0 rtt_p999_us=2.0 rtt_max_us=2.0";
        assert_eq!(line.to_string(), format!("gbit=1.50 streams=3 {rtt}"));
        let mut line = Line::default();
        line.add_percentiles("", &samples);
        assert!(line.to_string().starts_with("p50_us=2.0 "), "{line}");
    }
}

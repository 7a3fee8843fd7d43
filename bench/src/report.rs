//! Results: percentiles of samples, and lines of `key=value` words.

use std::fmt::{self, Display, Write};
use std::time::Duration;

/// Most samples that are kept; what comes later is counted only. 4 bytes each.
pub const SAMPLES_MAX: usize = 8 << 20;

/// Times, kept in microseconds each, for percentiles.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    micros: Vec<u32>,
    count: u64,
}

impl Samples {
    /// Adds one; beyond an hour it counts as an hour.
    pub fn add(&mut self, sample: Duration) {
        self.count += 1;
        if self.micros.len() < SAMPLES_MAX {
            self.micros.push(u32::try_from(sample.as_micros()).unwrap_or(u32::MAX).min(3_600_000_000));
        }
    }

    /// Adds all of another's.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        let room = SAMPLES_MAX.saturating_sub(self.micros.len());
        self.micros.extend(other.micros.iter().take(room));
    }

    /// How many were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest sample that at least `share` (0 to 1) of the samples do not exceed, in microseconds; `None` without any.
    pub fn percentile(&mut self, share: f64) -> Option<u32> {
        self.micros.sort_unstable();
        let rank = (share.clamp(0.0, 1.0) * self.micros.len() as f64).ceil() as usize;
        self.micros.get(rank.saturating_sub(1)).copied()
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

    /// Adds `key_p50_us`, `key_p99_us` and `key_max_us`, where there are samples.
    pub fn add_percentiles(&mut self, key: &str, samples: &mut Samples) {
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            if let Some(micros) = samples.percentile(share) {
                self.add(&format!("{key}_{name}_us"), micros);
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
    fn percentiles_are_nearest_ranks() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(0.5), None);
        for micros in (1..=100).rev() {
            samples.add(Duration::from_micros(micros));
        }
        let at = |samples: &mut Samples, share| samples.percentile(share);
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| at(&mut samples, share)), [1, 50, 99, 100].map(Some));
        assert_eq!(samples.count(), 100);
    }

    #[test]
    fn line_separates_its_words() {
        let mut samples = Samples::default();
        samples.add(Duration::from_millis(2));
        let mut line = Line::default().with("gbit", format_args!("{:.2}", 1.5)).with("streams", 3);
        line.add_percentiles("rtt", &mut samples);
        assert_eq!(line.to_string(), "gbit=1.50 streams=3 rtt_p50_us=2000 rtt_p99_us=2000 rtt_max_us=2000");
    }
}

//! What a result's keys mean to a reader: which way is better, which ones matter first, how numbers are written.

/// Which way a value should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Throughput, rates.
    More,
    /// Times, CPU, memory, loss.
    Less,
    /// Neither is: what was offered, how long it took.
    Neither,
}

/// What is counted or given, and says nothing by itself.
const NEITHER: [&str; 9] = ["seconds", "sent", "echoed", "bytes", "connects", "count", "searched", "tunnels", "active"];

/// Parts of keys of which more is better.
const MORE: [&str; 3] = ["gbit_s", "rate", "answered"];

/// Which way a key's value should go, by its unit.
pub fn better(key: &str) -> Better {
    if NEITHER.contains(&key) {
        Better::Neither
    } else if MORE.iter().any(|part| key.contains(part)) {
        Better::More
    } else {
        Better::Less
    }
}

/// Whether a key is one of those that explain others, rather than be looked at first.
pub fn is_detail(key: &str) -> bool {
    let raw_time = key.starts_with("cpu_") && key.ends_with("_s");
    let ends = ["max_us", "slowest_gbit_s", "fastest_gbit_s"].iter().any(|end| key.ends_with(end));
    better(key) == Better::Neither
        || raw_time
        || ends
        || ["late", "omitted", "failed", "load_bound", "far_busy_percent"].contains(&key)
        || key.starts_with("far_")
}

/// A number as people write it: three significant digits, all digits of whole thousands, a space between thousands.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    if !value.is_finite() {
        return "-".into();
    }
    if magnitude >= 100.0 {
        let digits = format!("{magnitude:.0}");
        let groups: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}{}", groups.join("\u{202f}"));
    }
    match magnitude {
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        0.0 => "0".into(),
        _ => format!("{value:.3}"),
    }
}

/// The same as programs read it, without spaces.
pub fn word(value: f64) -> String {
    number(value).replace('\u{202f}', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direction_follows_the_unit() {
        for key in ["gbit_s", "rate", "echo_rate", "slowest_gbit_s"] {
            assert_eq!(better(key), Better::More, "{key}");
        }
        for key in ["p50_us", "cpu_relay_s", "loss_percent", "rss_kib_per_tunnel"] {
            assert_eq!(better(key), Better::Less, "{key}");
        }
        assert_eq!(better("bytes"), Better::Neither);
        assert!(is_detail("cpu_machine_s") && is_detail("rtt_max_us") && !is_detail("p99_us") && !is_detail("gbit_s"));
    }

    #[test]
    fn numbers_have_three_digits_or_all() {
        let written = [0.0, 0.1234, 1.234, 12.34, 123.4, -1_234_567.0, f64::NAN].map(number);
        assert_eq!(written, ["0", "0.123", "1.23", "12.3", "123", "-1\u{202f}234\u{202f}567", "-"]);
        assert_eq!([-1_234_567.0, 0.5].map(word), ["-1234567", "0.500"]);
    }
}

//! Numbers as people read them at a glance.

/// `1,234,567`.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 port`, `2 ports`.
pub(super) fn number(value: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(value), if value == 1 { "" } else { "s" })
}

/// Three digits that matter and the letter of the power of a thousand: `0`, `7`, `12.3k`, `1.23M`.
pub(super) fn short(value: f64) -> String {
    let (scaled, unit) = scale(value, 1000.0);
    // A whole number below a thousand needs no point, and a fraction of one no more than one digit.
    if unit.is_empty() && (scaled.fract() == 0.0 || scaled >= 10.0) {
        return format!("{scaled:.0}");
    }
    format!("{}{unit}", three(scaled))
}

/// Bits a second, of bytes a second: `1.23 Gbit/s`.
pub(super) fn bits(bytes: f64) -> String {
    let (scaled, unit) = scale(bytes * 8.0, 1000.0);
    if unit.is_empty() { format!("{scaled:.0} bit/s") } else { format!("{} {unit}bit/s", three(scaled)) }
}

/// The same for a column: `1.23G`.
pub(super) fn bits_short(bytes: f64) -> String {
    let (scaled, unit) = scale(bytes * 8.0, 1000.0);
    if unit.is_empty() { format!("{scaled:.0}") } else { format!("{}{unit}", three(scaled)) }
}

/// `1.23 GB`.
pub(super) fn bytes(value: u64) -> String {
    let (scaled, unit) = scale(value as f64, 1000.0);
    if unit.is_empty() { format!("{value} B") } else { format!("{} {unit}B", three(scaled)) }
}

/// Microseconds: `350us`, `1.23ms`, `2.50s`.
pub(super) fn micros(value: u64) -> String {
    match value {
        0..1000 => format!("{value}us"),
        1000..1_000_000 => format!("{}ms", three(value as f64 / 1e3)),
        _ => format!("{}s", three(value as f64 / 1e6)),
    }
}

/// Seconds in two units: `9s`, `3m09s`, `4h05m`, `3d04h`.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Cut to `width` characters; what is cut is told by a mark.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { kept } else { format!("{kept}…") }
}

fn scale(value: f64, step: f64) -> (f64, &'static str) {
    let mut scaled = value.max(0.0);
    for unit in ["", "k", "M", "G", "T"] {
        // 999.5 would be written as 1000.
        if scaled < step - 0.5 {
            return (scaled, unit);
        }
        scaled /= step;
    }
    (scaled, "P")
}

fn three(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_at_the_edges_of_their_units() {
        for (value, text) in [
            (0.0, "0"),
            (7.0, "7"),
            (0.5, "0.50"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (12_345.0, "12.3k"),
            (2e15, "2.00P"),
        ] {
            assert_eq!(short(value), text, "{value}");
        }
        assert_eq!(
            (bits(0.0).as_str(), bits(125.0).as_str(), bits(1.25e8).as_str()),
            ("0 bit/s", "1.00 kbit/s", "1.00 Gbit/s")
        );
        assert_eq!((bytes(999).as_str(), bytes(1_234_567).as_str()), ("999 B", "1.23 MB"));
        assert_eq!((count(0), count(999), count(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
    }

    #[test]
    fn times_change_their_units_at_the_edges() {
        let ages = [59, 60, 3599, 3600, 86_399, 86_400].map(age);
        assert_eq!(ages, ["59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d00h"]);
        assert_eq!([999, 1000, 999_999, 2_500_000].map(micros), ["999us", "1.00ms", "1000ms", "2.50s"]);
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!((cut("abc", 3), cut("abcd", 3), cut("ab", 0)), ("abc".into(), "ab…".into(), String::new()));
    }
}

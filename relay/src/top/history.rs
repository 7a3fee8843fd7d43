//! The last few minutes, as the charts show them.

use std::collections::VecDeque;

use super::model::Rates;

/// Looks that are kept: five minutes of one a second.
const KEPT: usize = 300;

/// What a chart shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chart {
    In,
    Out,
    Tunnels,
    Dropped,
}

/// One value of each chart for each look.
#[derive(Debug, Default)]
pub(super) struct History {
    looks: VecDeque<[u64; 4]>,
    /// Looks ever taken.
    taken: usize,
}

impl History {
    pub(super) fn push(&mut self, rates: &Rates, tunnels: u64, dropped: f64) {
        if self.looks.len() == KEPT {
            self.looks.pop_front();
        }
        self.taken += 1;
        // A fraction of a drop a second is still to be seen.
        self.looks.push_back([rates.bytes_in as u64, rates.bytes_out as u64, tunnels, dropped.ceil() as u64]);
    }

    /// The largest values of `width` equal parts of the last five minutes, the newest last; fewer at the start.
    ///
    /// A part's borders do not move while time goes on, so that a bar keeps its height until it leaves.
    pub(super) fn bars(&self, chart: Chart, width: usize) -> Vec<u64> {
        let Some(width) = std::num::NonZero::new(width) else { return Vec::new() };
        let part = KEPT.div_ceil(width.get());
        let first = self.taken - self.looks.len();
        let mut bars: Vec<(usize, u64)> = Vec::new();
        for (n, look) in self.looks.iter().enumerate() {
            let (part, value) = ((first + n) / part, look[chart as usize]);
            match bars.last_mut() {
                Some((last, most)) if *last == part => *most = value.max(*most),
                _ => bars.push((part, value)),
            }
        }
        let more = bars.len().saturating_sub(width.get());
        bars.into_iter().skip(more).map(|(_, value)| value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(tunnels: impl IntoIterator<Item = u64>) -> History {
        let mut history = History::default();
        for value in tunnels {
            history.push(&Rates::default(), value, 0.2);
        }
        history
    }

    #[test]
    fn bars_fill_from_the_start_and_then_move_on() {
        assert_eq!(history([3, 1]).bars(Chart::Tunnels, 300), [3, 1]);
        let full = history(0..1000).bars(Chart::Tunnels, 300);
        assert_eq!((full.len(), full[0], full[299]), (300, 700, 999));
        assert_eq!(history([1]).bars(Chart::Dropped, 10), [1]);
        assert!(history([1]).bars(Chart::In, 0).is_empty());
    }

    #[test]
    fn narrow_charts_keep_the_peaks_and_hold_them_still() {
        let mut spikes = history((0..300).map(|n| if n == 77 { 9 } else { 0 }));
        let bars = spikes.bars(Chart::Tunnels, 30);
        assert_eq!((bars.len(), bars.iter().sum::<u64>(), bars[7]), (30, 9, 9));
        spikes.push(&Rates::default(), 0, 0.0);
        assert_eq!(spikes.bars(Chart::Tunnels, 30).iter().sum::<u64>(), 9);
    }
}

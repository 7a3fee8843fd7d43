//! The columns of the list of tunnels.

use std::cmp::Ordering;
use std::str::FromStr;

use super::format;
use super::model::Row;
use crate::admin::phrase;

/// A column; the list can be sorted by each but the last three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The mediator's name.
    Id,
    /// Bits a second from the mediator.
    In,
    /// Bits a second to it.
    Out,
    /// Datagrams a second, both ways.
    Datagrams,
    /// Ports open.
    Ports,
    /// Terminals attached.
    Terminals,
    /// UDP channels that work, of those granted.
    Udp,
    /// Round trip.
    Rtt,
    /// Since it connected.
    Age,
    /// Since payload last travelled.
    Idle,
    /// Payload bytes, both ways.
    Total,
    /// The shard that owns it.
    Shard,
    /// Its public address.
    Observed,
    /// Its host name.
    Host,
    /// Its software.
    Version,
}

/// In the order of display.
const ALL: [Column; 15] = [
    Column::Id,
    Column::In,
    Column::Out,
    Column::Datagrams,
    Column::Ports,
    Column::Terminals,
    Column::Udp,
    Column::Rtt,
    Column::Age,
    Column::Idle,
    Column::Total,
    Column::Shard,
    Column::Observed,
    Column::Host,
    Column::Version,
];

/// Those that the list can be sorted by.
const SORTED: usize = 12;

/// Those that are shown whatever the width is, in 80 columns without one to spare; the others follow by their worth.
const BY_WORTH: [Column; 15] = [
    Column::Id,
    Column::In,
    Column::Out,
    Column::Ports,
    Column::Terminals,
    Column::Udp,
    Column::Rtt,
    Column::Age,
    Column::Datagrams,
    Column::Idle,
    Column::Total,
    Column::Observed,
    Column::Shard,
    Column::Host,
    Column::Version,
];

impl Column {
    /// Its heading, and its name on the command line.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::In => "in",
            Self::Out => "out",
            Self::Datagrams => "dgrams",
            Self::Ports => "ports",
            Self::Terminals => "term",
            Self::Udp => "udp",
            Self::Rtt => "rtt",
            Self::Age => "age",
            Self::Idle => "idle",
            Self::Total => "total",
            Self::Shard => "shard",
            Self::Observed => "observed",
            Self::Host => "host",
            Self::Version => "version",
        }
    }

    /// Cells that it takes, with the mark of the order behind its heading; names take what others leave.
    pub(super) fn width(self) -> usize {
        match self {
            Self::Id => 20,
            Self::In | Self::Out | Self::Total => 10,
            Self::Datagrams | Self::Rtt => 8,
            Self::Age | Self::Idle => 7,
            Self::Ports | Self::Shard => 6,
            Self::Terminals | Self::Udp => 5,
            Self::Observed => 22,
            Self::Host => 18,
            Self::Version => 9,
        }
    }

    /// Texts stand at the left, numbers at the right.
    pub(super) fn is_text(self) -> bool {
        matches!(self, Self::Id | Self::Observed | Self::Host | Self::Version)
    }

    /// What fits into so many cells, in the order of display.
    pub(super) fn that_fit(width: usize) -> Vec<Self> {
        let mut left = width;
        let mut taken = Vec::new();
        for column in BY_WORTH {
            let needs = column.width() + usize::from(!taken.is_empty());
            if needs > left {
                break;
            }
            left -= needs;
            taken.push(column);
        }
        ALL.into_iter().filter(|column| taken.contains(column)).collect()
    }

    /// The next one to sort by, or the one before.
    pub(super) fn neighbour(self, forward: bool) -> Self {
        let at = ALL[..SORTED].iter().position(|&column| column == self).unwrap_or(0);
        let step = if forward { 1 } else { SORTED - 1 };
        ALL[(at + step) % SORTED]
    }

    /// Whether the largest value should stand first unless one says otherwise.
    pub(super) fn falls(self) -> bool {
        !matches!(self, Self::Id | Self::Shard | Self::Idle | Self::Age)
    }

    /// A row's cell.
    pub(super) fn cell(self, row: &Row) -> String {
        let tunnel = &row.tunnel;
        let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), format::bits_short);
        match self {
            Self::Id => tunnel.id.clone(),
            Self::In => rate(row.rates.map(|rates| rates.bytes_in)),
            Self::Out => rate(row.rates.map(|rates| rates.bytes_out)),
            Self::Datagrams => row
                .rates
                .map_or_else(|| "-".to_owned(), |rates| format::short(rates.datagrams_in + rates.datagrams_out)),
            Self::Ports => tunnel.ports.to_string(),
            Self::Terminals => tunnel.terminals.to_string(),
            Self::Udp => format!("{}/{}", tunnel.udp_channels_live, tunnel.udp_channels),
            Self::Rtt => tunnel.rtt_us.map_or_else(|| "-".to_owned(), format::micros),
            Self::Age => format::age(tunnel.age_s),
            Self::Idle => format::age(tunnel.idle_s),
            Self::Total => format::bytes(tunnel.bytes_in.saturating_add(tunnel.bytes_out)),
            Self::Shard => tunnel.shard.to_string(),
            Self::Observed => tunnel.observed.clone(),
            Self::Host => phrase(&tunnel.report.hostname),
            Self::Version => phrase(&tunnel.report.version),
        }
    }

    /// Rising order by this column; unknown values are the smallest.
    pub(super) fn compare(self, a: &Row, b: &Row) -> Ordering {
        let by = |value: fn(&Row) -> Option<f64>| {
            value(a).unwrap_or(-1.0).partial_cmp(&value(b).unwrap_or(-1.0)).unwrap_or(Ordering::Equal)
        };
        match self {
            Self::In => by(|row| row.rates.map(|rates| rates.bytes_in)),
            Self::Out => by(|row| row.rates.map(|rates| rates.bytes_out)),
            Self::Datagrams => by(|row| row.rates.map(|rates| rates.datagrams_in + rates.datagrams_out)),
            Self::Ports => a.tunnel.ports.cmp(&b.tunnel.ports),
            Self::Terminals => a.tunnel.terminals.cmp(&b.tunnel.terminals),
            Self::Udp => a.tunnel.udp_channels_live.cmp(&b.tunnel.udp_channels_live),
            Self::Rtt => a.tunnel.rtt_us.cmp(&b.tunnel.rtt_us),
            Self::Age => a.tunnel.age_s.cmp(&b.tunnel.age_s),
            Self::Idle => a.tunnel.idle_s.cmp(&b.tunnel.idle_s),
            Self::Total => by(|row| Some(row.tunnel.bytes_in as f64 + row.tunnel.bytes_out as f64)),
            Self::Shard => a.tunnel.shard.cmp(&b.tunnel.shard),
            Self::Id | Self::Observed | Self::Host | Self::Version => Ordering::Equal,
        }
    }
}

impl FromStr for Column {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let sorted = &ALL[..SORTED];
        sorted.iter().find(|column| column.word() == text).copied().ok_or_else(|| {
            let words: Vec<&str> = sorted.iter().map(|column| column.word()).collect();
            format!("the list is sorted by one of {}", words.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eighty_cells_hold_what_matters_most_and_more_cells_hold_more() {
        let words = |width| Column::that_fit(width).iter().map(|column| column.word()).collect::<Vec<_>>().join(" ");
        assert_eq!(words(80), "id in out ports term udp rtt age");
        assert_eq!(words(140), "id in out dgrams ports term udp rtt age idle total shard observed");
        assert_eq!(Column::that_fit(1000).len(), ALL.len());
        assert_eq!(Column::that_fit(10), []);
    }

    #[test]
    fn each_sorted_column_is_reached_in_both_directions_and_by_its_word() {
        let mut column = Column::Id;
        for _ in 0..SORTED {
            assert_eq!(column.neighbour(true).neighbour(false), column);
            assert_eq!(column.word().parse(), Ok(column));
            column = column.neighbour(true);
        }
        assert_eq!(column, Column::Id);
        assert!("host".parse::<Column>().unwrap_err().contains("rtt"));
    }
}

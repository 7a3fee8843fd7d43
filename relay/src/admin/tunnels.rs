//! `show tunnels`: pages of connected mediators, by name or sorted by a column, and those only that conditions let through.

use std::cmp::{Ordering, Reverse};
use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::time::{Duration, Instant};

use isthmus_proto::MediatorId;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::answer::{json, phrase, table, word};
use super::command::{Command, ROWS_MAX, TunnelFilter};
use super::dispatch::Format;
use super::rows::TunnelRow;
use super::serve::Plane;
use super::show::answer_of;
use crate::trust::Glob;

/// Most rows of one page.
const LIMIT_MAX: usize = ROWS_MAX - 1;
const LIMIT_DEFAULT: usize = 1000;

/// Most rows that are looked at for a page that is sorted or has conditions.
const LOOKED_MAX: usize = 200_000;

/// Rows that a shard makes between two turns of its loop: 40 microseconds of work, so that a long page holds up
/// nobody.
const CHUNK: usize = 32;

/// Of a mediator's report, what has columns.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Brief {
    version: String,
    hostname: String,
    service: String,
}

fn brief(row: &TunnelRow) -> Brief {
    row.report.read()
}

/// Over which bits a second are measured.
const BPS_OVER: Duration = Duration::from_secs(1);

/// What a cell holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    Number(u64),
    /// Shown as it is.
    Word(String),
    /// Ends a line: may have blanks.
    Phrase(String),
    /// Not known; less than all others.
    None,
}

macro_rules! columns {
    ($($name:ident = $word:literal, $row:ident => $cell:expr;)*) => {
        /// A column of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Column { $($name,)* }

        impl Column {
            const ALL: &'static [Self] = &[$(Self::$name,)*];

            fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            fn of(self, row: &TunnelRow) -> Cell {
                match self { $(Self::$name => { let $row = row; $cell })* }
            }
        }
    };
}

columns! {
    Id = "id", row => Cell::Word(row.id.to_string());
    Session = "session", row => Cell::Number(row.session);
    Shard = "shard", row => Cell::Number(row.shard.0.into());
    Observed = "observed", row => Cell::Word(row.observed.to_string());
    Age = "age_s", row => Cell::Number(row.age_s);
    Idle = "idle_s", row => Cell::Number(row.idle_s);
    Ports = "ports", row => Cell::Number(row.ports.into());
    Terminals = "terminals", row => Cell::Number(row.terminals.into());
    UdpLive = "udp_live", row => Cell::Number(row.udp_channels_live.into());
    Udp = "udp", row => Cell::Word(format!("{}/{}", row.udp_channels_live, row.udp_channels));
    UdpPeriod = "udp_period_s", row => Cell::Number(row.udp_period_s);
    Rtt = "rtt_us", row => row.rtt_us.map_or(Cell::None, Cell::Number);
    Bps = "bps", row => row.bps.map_or(Cell::None, Cell::Number);
    BytesIn = "bytes_in", row => Cell::Number(row.bytes_in);
    BytesOut = "bytes_out", row => Cell::Number(row.bytes_out);
    DatagramsIn = "datagrams_in", row => Cell::Number(row.datagrams_in);
    DatagramsOut = "datagrams_out", row => Cell::Number(row.datagrams_out);
    Oversize = "oversize", row => Cell::Number(row.oversize);
    Version = "version", row => Cell::Word(word(&brief(row).version));
    Hostname = "hostname", row => Cell::Word(word(&brief(row).hostname));
    Service = "service", row => Cell::Phrase(phrase(&brief(row).service));
}

impl Column {
    /// Those that are shown unless others are asked for; bits a second take a second to find out.
    fn usual() -> Vec<Self> {
        Self::ALL.iter().copied().filter(|column| ![Self::Bps, Self::UdpLive].contains(column)).collect()
    }

    /// Whether its cells are words, which no number can be held against.
    fn is_words(self) -> bool {
        matches!(self, Self::Id | Self::Observed | Self::Udp | Self::Version | Self::Hostname | Self::Service)
    }

    fn named(name: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|column| column.word() == name).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|column| column.word()).collect();
            format!("there is no column '{}'; there are {}", phrase(name), all.join(", "))
        })
    }
}

impl Cell {
    fn shown(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Word(text) | Self::Phrase(text) => text,
            Self::None => "-".to_owned(),
        }
    }
}

impl Ord for Cell {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Number(one), Self::Number(two)) => one.cmp(two),
            (Self::Word(one) | Self::Phrase(one), Self::Word(two) | Self::Phrase(two)) => one.cmp(two),
            // A column's cells are of one kind, but for those that are not known.
            (one, two) => (*one != Self::None).cmp(&(*two != Self::None)),
        }
    }
}

impl PartialOrd for Cell {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// `COLUMN>N` and the like; numbers only. What is not known fulfils none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    column: Column,
    least: u64,
    most: u64,
}

impl Condition {
    /// # Errors
    /// It is none, in words; `None` where the word has no sign of one.
    fn parse(text: &str) -> Option<Result<Self, String>> {
        let at = text.find(['<', '>'])?;
        let (name, rest) = text.split_at(at);
        let (sign, number) = match rest.as_bytes() {
            [sign, b'=', ..] => ((*sign, true), &rest[2..]),
            [sign, ..] => ((*sign, false), &rest[1..]),
            [] => return None,
        };
        let read = || {
            let column = Column::named(name)?;
            if column.is_words() {
                return Err(format!(
                    "'{name}' holds words, not numbers; of UDP channels that work there is 'udp_live'"
                ));
            }
            let number: u64 = number.parse().map_err(|_| format!("'{}' is no number", phrase(number)))?;
            let (least, most) = match sign {
                (b'>', true) => (number, u64::MAX),
                (b'>', false) => (number.checked_add(1).ok_or("nothing is more")?, u64::MAX),
                (_, true) => (0, number),
                (_, false) => (0, number.checked_sub(1).ok_or("nothing is less")?),
            };
            Ok(Self { column, least, most })
        };
        Some(read())
    }

    fn holds(self, row: &TunnelRow) -> bool {
        matches!(self.column.of(row), Cell::Number(number) if (self.least..=self.most).contains(&number))
    }
}

/// Which rows and columns are asked for, in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) filter: TunnelFilter,
    conditions: Vec<Condition>,
    /// And whether the largest comes first.
    sort: Option<(Column, bool)>,
    columns: Vec<Column>,
}

impl Query {
    /// Reads the words behind `show tunnels`, and whether JSON is wanted.
    pub(super) fn parse(words: &[&str]) -> Result<(Self, Format), String> {
        let filter = TunnelFilter { glob: Glob::any(), after: None, limit: LIMIT_DEFAULT };
        let mut query = Self { filter, conditions: Vec::new(), sort: None, columns: Column::usual() };
        let (mut format, mut descending, mut chosen) = (Format::Text, None, false);
        for word in words {
            let bad = |why: String| format!("'{}': {why}", phrase(word));
            if let Some(condition) = Condition::parse(word) {
                query.conditions.push(condition.map_err(bad)?);
                continue;
            }
            match word.split_once('=') {
                None if *word == "json" => format = Format::Json,
                None if *word == "desc" => descending = Some(true),
                None if *word == "asc" => descending = Some(false),
                Some(("id", glob)) => {
                    query.filter.glob = glob.parse().map_err(|error: crate::trust::BadGlob| bad(error.to_string()))?;
                }
                Some(("after", id)) => {
                    let id = id.parse().map_err(|error: isthmus_proto::id::BadMediatorId| bad(error.to_string()))?;
                    query.filter.after = Some(id);
                }
                Some(("limit", limit)) => match limit.parse() {
                    Ok(limit @ 1..=LIMIT_MAX) => query.filter.limit = limit,
                    _ => return Err(bad(format!("a limit is a number from 1 to {LIMIT_MAX}"))),
                },
                Some(("sort", name)) => query.sort = Some((Column::named(name).map_err(bad)?, false)),
                Some(("columns", names)) => {
                    query.columns = names.split(',').map(Column::named).collect::<Result<_, _>>().map_err(bad)?;
                    chosen = true;
                }
                _ => {
                    let how = "write id=GLOB, after=ID, limit=N, sort=COLUMN, desc, columns=A,B, COLUMN>N or json";
                    return Err(bad(how.to_owned()));
                }
            }
        }
        match (&mut query.sort, descending) {
            (Some((_, order)), Some(descending)) => *order = descending,
            (None, Some(_)) => return Err("'desc' and 'asc' need sort=COLUMN".to_owned()),
            (_, None) => {}
        }
        if chosen && format == Format::Json {
            return Err("columns= is for the table; JSON has all, and bps with a condition on it: bps>=0".to_owned());
        }
        if query.sort.is_some() && query.filter.after.is_some() {
            return Err("after=ID is by name, and sort=COLUMN is not; leave one out".to_owned());
        }
        Ok((query, format))
    }

    /// Whether bits a second have to be found out.
    fn needs_bps(&self) -> bool {
        let sorted = self.sort.is_some_and(|(column, _)| column == Column::Bps);
        sorted
            || self.columns.contains(&Column::Bps)
            || self.conditions.iter().any(|condition| condition.column == Column::Bps)
    }
}

/// Bytes of each session at an instant, by which a second look tells the rate.
type Before = HashMap<u64, (u64, Instant)>;

fn bytes_of(row: &TunnelRow) -> u64 {
    row.bytes_in.saturating_add(row.bytes_out)
}

/// The first look at all that the filter lets through, or as many as are wanted, and the wait before the second.
async fn look_before(plane: &Plane, filter: &TunnelFilter, wanted: usize) -> Result<Before, String> {
    let (mut before, mut scan) = (Before::new(), Scan::new(plane, filter));
    while before.len() < wanted
        && let Some(row) = scan.next(plane).await?
    {
        before.insert(row.session, (bytes_of(&row), Instant::now()));
        if before.len() > LOOKED_MAX {
            return Err(too_many());
        }
    }
    tokio::time::sleep(BPS_OVER).await;
    Ok(before)
}

/// A session that was not there before has no rate yet.
fn set_bps(row: &mut TunnelRow, before: &Before, now: Instant) {
    row.bps = before.get(&row.session).map(|&(bytes, then)| {
        let bits = bytes_of(row).saturating_sub(bytes) as f64 * 8.0;
        (bits / now.saturating_duration_since(then).as_secs_f64().max(1e-3)) as u64
    });
}

fn too_many() -> String {
    format!("there are more than {LOOKED_MAX} tunnels to look at; give id=GLOB")
}

/// An answer in JSON, written without a tree of values in between.
#[derive(Serialize)]
struct Page<'a> {
    more: bool,
    tunnels: &'a [TunnelRow],
}

/// One page.
pub(super) async fn show(plane: &Plane, query: Query, format: Format) -> Result<String, String> {
    let (rows, more) = selected(plane, &query).await?;
    match format {
        Format::Json => json(&Page { more, tunnels: &rows }),
        Format::Text => Ok(as_table(&rows, more, &query)),
    }
}

async fn selected(plane: &Plane, query: &Query) -> Result<(Vec<TunnelRow>, bool), String> {
    let Query { filter, conditions, sort, .. } = query;
    let needs_bps = query.needs_bps();
    if conditions.is_empty() && sort.is_none() && !needs_bps {
        return page(plane, filter.clone()).await;
    }
    let wanted = if conditions.is_empty() && sort.is_none() { filter.limit } else { usize::MAX };
    let before = if needs_bps { look_before(plane, filter, wanted).await? } else { Before::new() };
    let (mut rows, mut scan, mut looked) = (Vec::new(), Scan::new(plane, filter), 0);
    // Without an order, the first that fit are the page.
    while (sort.is_some() || rows.len() <= filter.limit)
        && let Some(mut row) = scan.next(plane).await?
    {
        looked += 1;
        if looked > LOOKED_MAX {
            return Err(too_many());
        }
        if needs_bps {
            set_bps(&mut row, &before, Instant::now());
        }
        if conditions.iter().all(|condition| condition.holds(&row)) {
            rows.push(row);
        }
        if let Some(order) = *sort
            && rows.len() > 2 * filter.limit + CHUNK
        {
            best(&mut rows, order, filter.limit + 1);
        }
    }
    if let Some(order) = *sort {
        best(&mut rows, order, filter.limit + 1);
    }
    let more = rows.len() > filter.limit;
    rows.truncate(filter.limit);
    Ok((rows, more))
}

/// The first ones by a column, in order; those that are equal stay in the order of their names.
fn best(rows: &mut Vec<TunnelRow>, (column, descending): (Column, bool), count: usize) {
    if descending {
        rows.sort_by_cached_key(|row| Reverse(column.of(row)));
    } else {
        rows.sort_by_cached_key(|row| column.of(row));
    }
    rows.truncate(count);
}

/// A page in the order of names, and whether there are more behind it.
pub(super) async fn page(plane: &Plane, filter: TunnelFilter) -> Result<(Vec<TunnelRow>, bool), String> {
    let (mut scan, mut rows) = (Scan::new(plane, &filter), Vec::new());
    while rows.len() < filter.limit
        && let Some(row) = scan.next(plane).await?
    {
        rows.push(row);
    }
    let more = rows.len() == filter.limit && scan.next(plane).await?.is_some();
    Ok((rows, more))
}

/// The tunnels of all shards in the order of names; each row is made once.
struct Scan {
    filter: TunnelFilter,
    shards: Vec<Cursor>,
}

/// Rows of one shard that are there, and whether it has more.
struct Cursor {
    rows: VecDeque<TunnelRow>,
    after: Option<MediatorId>,
    ended: bool,
}

impl Scan {
    fn new(plane: &Plane, filter: &TunnelFilter) -> Self {
        let cursor = || Cursor { rows: VecDeque::new(), after: filter.after.clone(), ended: false };
        let filter = TunnelFilter { limit: CHUNK.min(filter.limit + 1), ..filter.clone() };
        Self { filter, shards: plane.shards.iter().map(|_| cursor()).collect() }
    }

    async fn next(&mut self, plane: &Plane) -> Result<Option<TunnelRow>, String> {
        self.fill(plane).await?;
        let heads = self.shards.iter_mut().filter(|cursor| !cursor.rows.is_empty());
        let first = heads.min_by(|one, two| one.rows[0].id.cmp(&two.rows[0].id));
        Ok(first.and_then(|cursor| cursor.rows.pop_front()))
    }

    /// Asks the shards of which no row is there, all at once.
    async fn fill(&mut self, plane: &Plane) -> Result<(), String> {
        let mut asked = Vec::new();
        for (shard, cursor) in self.shards.iter().enumerate().filter(|(_, cursor)| cursor.wants()) {
            let (reply, answer) = oneshot::channel();
            let filter = TunnelFilter { after: cursor.after.clone(), ..self.filter.clone() };
            plane.send(shard, Command::Tunnels { filter, reply })?;
            asked.push((shard, answer));
        }
        let deadline = plane.reply_deadline();
        for (shard, answer) in asked {
            let rows = answer_of(plane, shard, answer, deadline).await?;
            let cursor = &mut self.shards[shard];
            cursor.ended = rows.len() < self.filter.limit;
            cursor.after = rows.last().map(|row| row.id.clone()).or(cursor.after.take());
            cursor.rows = rows.into();
        }
        Ok(())
    }
}

impl Cursor {
    fn wants(&self) -> bool {
        self.rows.is_empty() && !self.ended
    }
}

/// All columns of one tunnel.
pub(super) fn table_of(row: &TunnelRow) -> String {
    rows_table(std::slice::from_ref(row), &Column::usual())
}

fn as_table(rows: &[TunnelRow], more: bool, query: &Query) -> String {
    let mut text = rows_table(rows, &query.columns);
    if let (true, Some(last)) = (more, rows.last()) {
        // Writing to a string cannot fail.
        let _ = match query.sort {
            None => writeln!(text, "# there are more: after={}", last.id),
            Some(_) => writeln!(text, "# there are more: give a higher limit"),
        };
    }
    text
}

fn rows_table(rows: &[TunnelRow], columns: &[Column]) -> String {
    let header: Vec<&str> = columns.iter().map(|column| column.word()).collect();
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|column| column.of(row).shown()).collect()).collect();
    table(&header, &cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_on_both_sides_of_their_edge() {
        let read = |text: &str| Condition::parse(text).unwrap().map(|condition| (condition.least, condition.most));
        assert_eq!(read("idle_s>60"), Ok((61, u64::MAX)));
        assert_eq!(read("idle_s>=60"), Ok((60, u64::MAX)));
        assert_eq!(read("ports<2"), Ok((0, 1)));
        assert_eq!(read("ports<=2"), Ok((0, 2)));
        assert!(Condition::parse("id=x").is_none());
        for bad in
            ["udp<1", "version>1", "ports<0", "ports>18446744073709551615", "ports>", "ports>x", "colour>1", ">1"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_are_read_and_those_that_do_not_fit_together_are_refused() {
        let (query, format) = Query::parse(&["limit=5", "json", "id=cpe-*", "after=cpe-3"]).unwrap();
        assert_eq!(format, Format::Json);
        assert_eq!((query.filter.glob.to_string().as_str(), query.filter.limit), ("cpe-*", 5));
        assert_eq!(query.filter.after, Some("cpe-3".parse().unwrap()));
        let (query, _) = Query::parse(&["sort=bytes_in", "desc", "columns=id,bytes_in", "ports>0"]).unwrap();
        assert_eq!(query.sort, Some((Column::BytesIn, true)));
        assert_eq!((query.columns.len(), query.conditions.len()), (2, 1));
        for (words, part) in [
            (&["limit=0"][..], "1 to 10000"),
            (&["limit=10001"], "1 to 10000"),
            (&["id=a/b"], "pattern"),
            (&["after=-"], "name"),
            (&["order=age"], "id=GLOB"),
            (&["sort=colour"], "there are id, session"),
            (&["columns=id,colour"], "no column 'colour'"),
            (&["desc"], "need sort"),
            (&["json", "columns=id"], "JSON has all"),
            (&["sort=age_s", "after=a"], "leave one out"),
        ] {
            let error = Query::parse(words).unwrap_err();
            assert!(error.contains(part), "{words:?}: {error}");
        }
    }
}

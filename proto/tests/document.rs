//! docs/protocol.md says what the code does: names, numbers, flags, codes, and the bytes of each frame.

use isthmus_proto::Code;
use isthmus_proto::limits::{CONTROL_QUEUE_HIGH, CONTROL_QUEUE_MAX, PORTS_MAX, PORTS_MAX_MAX};
use isthmus_proto::wire::{ControlBuf, Frame, Kind, channel_kind, read_header};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

/// The text below a heading, up to the next one of any level.
fn section(heading: &str) -> &'static str {
    let (_, rest) = DOCUMENT.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let end = ["\n# ", "\n## ", "\n### "].iter().filter_map(|mark| rest.find(mark)).min();
    &rest[..end.unwrap_or(rest.len())]
}

/// The cells of a section's tables, row by row, without heads and rules.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let cells =
        |line: &'static str| Some(line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect());
    section(heading).lines().filter_map(cells).collect()
}

/// Every kind with its name in the document.
fn kinds() -> Vec<(String, u8)> {
    (0..=u8::MAX).filter_map(Kind::from_u8).map(|kind| (format!("{kind:?}").to_uppercase(), kind as u8)).collect()
}

#[test]
fn table_of_frames_has_every_kind_by_name_and_number_and_no_other() {
    let in_code = |cell: &str| u8::from_str_radix(cell.trim_matches('`'), 16).ok();
    let table: Vec<_> = rows("## Frames")
        .iter()
        .filter(|row| row.len() == 5)
        .filter_map(|row| Some((row[1].to_owned(), in_code(row[0])?)))
        .collect();
    assert_eq!(table, kinds());
}

#[test]
fn table_of_codes_has_every_code_with_its_word_and_text_and_no_other() {
    let table: Vec<_> = rows("## Codes")
        .iter()
        .filter_map(|row| Some((row[0].parse().ok()?, row[1].trim_matches('`'), row[2])))
        .collect();
    let codes: Vec<_> = Code::ALL.iter().map(|&code| (code as u16, code.word(), code.text())).collect();
    assert_eq!(table, codes);
}

#[test]
fn table_of_channel_datagrams_has_every_kind() {
    let table: Vec<(u8, &str)> =
        rows("## UDP channels").iter().filter_map(|row| Some((row[0].parse().ok()?, row[1]))).collect();
    let (data, ping, pong) = (channel_kind::DATA, channel_kind::PING, channel_kind::PONG);
    let (probe, probed) = (channel_kind::PROBE, channel_kind::PROBED);
    assert_eq!(table, [(data, "DATA"), (ping, "PING"), (pong, "PONG"), (probe, "PROBE"), (probed, "PROBED")]);
}

/// A frame as it is drawn: what stands in the columns, and the bytes below.
struct Drawing {
    name: &'static str,
    columns: Vec<&'static str>,
    bytes: Vec<Vec<u8>>,
}

fn drawings() -> Vec<Drawing> {
    let block = section("### Byte by byte").split("```").nth(1).expect("a block of drawings");
    let lines: Vec<&str> = block.lines().filter(|line| !line.trim().is_empty()).collect();
    lines
        .chunks(2)
        .map(|pair| {
            let [top, below] = *pair else { panic!("{pair:?} lacks its example") };
            let cells = |line: &'static str| line.split('|').map(str::trim).collect::<Vec<_>>();
            let (top, below) = (cells(top), cells(below));
            // Beside the cells, the name or nothing before, and a remark or nothing behind.
            assert_eq!(top.len(), below.len(), "{}", top[0]);
            let inner = 1..top.len() - 1;
            let bytes = below[inner.clone()].iter().map(|cell| hex(cell)).collect();
            Drawing { name: top[0], columns: top[inner].to_vec(), bytes }
        })
        .collect()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hexadecimal digits");
    digits.chunks(2).map(byte).collect()
}

#[test]
fn every_frame_is_drawn() {
    let drawn: Vec<_> = drawings().iter().map(|drawing| (drawing.name.to_owned(), drawing.bytes[0][0])).collect();
    for kind in kinds() {
        assert!(drawn.contains(&kind), "{kind:?} is not drawn");
    }
    assert!(drawn.iter().all(|drawing| kinds().contains(drawing)), "{drawn:?}");
}

#[test]
fn drawn_fields_have_the_lengths_that_are_said() {
    for Drawing { name, columns, bytes } in drawings() {
        for (column, bytes) in columns.iter().zip(&bytes) {
            if let Some((_, length)) = column.rsplit_once(": ") {
                assert_eq!(Ok(bytes.len()), length.parse(), "{name}, {column}");
            }
        }
    }
}

#[test]
fn drawn_bytes_are_what_the_code_reads_and_writes() {
    for Drawing { name, bytes, .. } in drawings() {
        let bytes = bytes.concat();
        let header = read_header(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let payload = &bytes[8..];
        assert_eq!(usize::from(header.len), payload.len(), "{name}");
        let frame = Frame::decode(header, payload).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut written = ControlBuf::new();
        written.push(&frame);
        let written = written.take(usize::MAX);
        match frame {
            // Their payload is the driver's, and so is its length.
            Frame::Data { len, .. } | Frame::Datagram { len, .. } => {
                assert_eq!(written[..2], bytes[..2], "{name}");
                assert_eq!(written[4..], bytes[4..bytes.len() - len], "{name}");
            }
            _ => assert_eq!(written, bytes, "{name}"),
        }
    }
}

#[test]
fn limits_are_those_of_the_code() {
    let text = section("## Limits");
    for limit in [format!("{} KiB", CONTROL_QUEUE_HIGH / 1024), format!("{} MiB", CONTROL_QUEUE_MAX >> 20)] {
        assert!(text.contains(&limit), "{limit}");
    }
    for limit in [PORTS_MAX, PORTS_MAX_MAX] {
        let limit = format!("{},{:03}", limit / 1000, limit % 1000);
        assert!(text.contains(&limit), "{limit}");
    }
}

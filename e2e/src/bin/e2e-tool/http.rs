//! A file server: enough of HTTP/1.1 for curl.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Component, Path, PathBuf};

use clap::Args;

use crate::ends::accept_each;
use crate::{Outcome, during};

/// Longest request line or header that is read.
const LINE_MAX: u64 = 8192;
/// Most headers that are read.
const HEADERS_MAX: usize = 100;

#[derive(Args)]
pub(crate) struct Http {
    /// Where to listen
    address: SocketAddr,
    /// Directory of the files
    #[arg(long)]
    dir: PathBuf,
}

pub(crate) fn serve(args: &Http) -> Outcome {
    let dir = args.dir.clone();
    accept_each(args.address, move |stream| answer(stream, &dir))
}

fn answer(mut stream: TcpStream, dir: &Path) -> Outcome {
    let mut reader = BufReader::new(stream.try_clone().map_err(during("clone"))?);
    let request = line(&mut reader)?;
    for _ in 0..HEADERS_MAX {
        if line(&mut reader)?.is_empty() {
            break;
        }
    }
    let mut words = request.split_whitespace();
    let file = match (words.next(), words.next()) {
        (Some("GET"), Some(path)) => open(dir, path),
        _ => None,
    };
    match file {
        Some((mut file, len)) => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n")
                .map_err(during("head"))?;
            std::io::copy(&mut file, &mut stream).map_err(during("body"))?;
        }
        None => stream
            .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .map_err(during("head"))?,
    }
    stream.shutdown(Shutdown::Write).map_err(during("end"))
}

/// The file of a request's path; only plain names below `dir`, so that a request cannot climb out.
fn open(dir: &Path, path: &str) -> Option<(File, u64)> {
    let relative = Path::new(path.trim_start_matches('/'));
    if relative.components().any(|part| !matches!(part, Component::Normal(_))) {
        return None;
    }
    let file = File::open(dir.join(relative)).ok()?;
    let metadata = file.metadata().ok()?;
    metadata.is_file().then_some((file, metadata.len()))
}

fn line(reader: &mut impl BufRead) -> Result<String, String> {
    let mut text = String::new();
    std::io::Read::take(reader, LINE_MAX).read_line(&mut text).map_err(during("receive"))?;
    Ok(text.trim_end().to_owned())
}

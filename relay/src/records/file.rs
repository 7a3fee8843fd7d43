//! A file of lines that is turned over when it is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::RecordsConfig;

pub(super) struct Turning {
    config: RecordsConfig,
    /// Closed after an error, until the next write.
    file: Option<File>,
    size: u64,
    /// The last line was cut by an error: the next one must not go on in it.
    torn: bool,
}

impl Turning {
    pub(super) fn open(config: RecordsConfig) -> io::Result<Self> {
        let mut turning = Self { config, file: None, size: 0, torn: false };
        turning.file()?;
        Ok(turning)
    }

    pub(super) fn path(&self) -> &Path {
        &self.config.path
    }

    pub(super) fn close(&mut self) {
        self.file = None;
    }

    /// So that what rotates logs by renaming them is obeyed too.
    pub(super) fn close_if_moved(&mut self) {
        let Some(file) = &self.file else { return };
        let here = file.metadata().map(|data| (data.dev(), data.ino())).ok();
        let there = std::fs::metadata(&self.config.path).map(|data| (data.dev(), data.ino())).ok();
        if here != there {
            self.file = None;
        }
    }

    /// Writes whole lines; of a line that the disk cut, nothing counts. Tells how many, and what stopped it.
    pub(super) fn write(&mut self, lines: &[Vec<u8>]) -> (usize, Option<io::Error>) {
        for (done, line) in lines.iter().enumerate() {
            if let Err(error) = self.write_line(line) {
                self.file = None;
                return (done, Some(error));
            }
        }
        (lines.len(), None)
    }

    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.config.size_max {
            self.turn()?;
        }
        let torn = self.torn;
        let file = self.file()?;
        if torn {
            file.write_all(b"\n")?;
        }
        if let Err(error) = file.write_all(line) {
            // A beginning of the line may be there. It is taken away again, or ends before the next one.
            let whole = self.size;
            self.torn = self.file()?.set_len(whole).is_err();
            return Err(error);
        }
        self.torn = false;
        self.size += line.len() as u64;
        Ok(())
    }

    /// The youngest of the older files becomes the second youngest, and so on; the oldest goes.
    fn turn(&mut self) -> io::Result<()> {
        self.file = None;
        self.size = 0;
        let numbered = |number: u32| -> PathBuf {
            let mut name = self.config.path.as_os_str().to_owned();
            if number > 0 {
                name.push(format!(".{number}"));
            }
            name.into()
        };
        if self.config.files_max == 1 {
            return std::fs::remove_file(numbered(0));
        }
        for number in (0..self.config.files_max - 1).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.config.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

//! What operators published and want to have again after a restart: a file in the state directory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::{Proto, Publish};

/// The file's name in the state directory.
const NAME: &str = "publishes";

/// Largest file that is read: a line has about 60 bytes, and each takes a descriptor of its own.
const FILE_LEN_MAX: u64 = 16 << 20;

const HEAD: &str = "# Ports that operators published; written by isthmus-relay.\n";

/// The ports that come back with the relay.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    publishes: Vec<Publish>,
}

impl Kept {
    /// Reads the state directory's file; an absent one holds nothing.
    ///
    /// # Errors
    /// It cannot be read, or a line is no published port; the cure is named.
    pub fn load(state: &Path) -> anyhow::Result<Self> {
        let path = state.join(NAME);
        let shown = path.display();
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => {
                file.take(FILE_LEN_MAX + 1)
                    .read_to_string(&mut text)
                    .with_context(|| format!("cannot read {shown}"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot open {shown}")),
        }
        ensure!(text.len() as u64 <= FILE_LEN_MAX, "{shown} is longer than {FILE_LEN_MAX} bytes; shorten it");
        let mut publishes = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                let publish =
                    line.parse().with_context(|| format!("line {} of {shown}: correct or remove it", n + 1))?;
                publishes.push(publish);
            }
        }
        Ok(Self { path, publishes })
    }

    /// What is kept.
    pub fn publishes(&self) -> &[Publish] {
        &self.publishes
    }

    /// Whether a port is kept.
    pub fn has(&self, proto: Proto, listen: SocketAddr) -> bool {
        self.publishes.iter().any(|kept| (kept.proto, kept.listen) == (proto, listen))
    }

    /// Adds ports, each in the place of one at the same address, and takes others away. The file is written whole
    /// beside the old one and put in its place, so that at every moment one of them is there; without a change it is
    /// left alone.
    ///
    /// # Errors
    /// It cannot be written, as on a full disk: then everything is as before.
    pub fn change(&mut self, add: &[Publish], remove: &[(Proto, SocketAddr)]) -> anyhow::Result<()> {
        let gone = |kept: &Publish| {
            let at = (kept.proto, kept.listen);
            remove.contains(&at) || add.iter().any(|new| (new.proto, new.listen) == at)
        };
        let mut publishes: Vec<Publish> = self.publishes.iter().filter(|kept| !gone(kept)).cloned().collect();
        publishes.extend_from_slice(add);
        if publishes != self.publishes {
            write(&self.path, &publishes)
                .with_context(|| format!("cannot write {}, so nothing is changed", self.path.display()))?;
            self.publishes = publishes;
        }
        Ok(())
    }
}

fn write(path: &Path, publishes: &[Publish]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut text = HEAD.to_owned();
    for publish in publishes {
        text.push_str(&publish.to_string());
        text.push('\n');
    }
    let write = || {
        // One that a relay left which died.
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    let result = write();
    match (&result, path.parent()) {
        // The rename has happened: what a failed sync could lose is one change, at a crash of the machine.
        (Ok(()), Some(dir)) => drop(File::open(dir).and_then(|dir| dir.sync_all())),
        (Ok(()), None) => {}
        (Err(_), _) => drop(std::fs::remove_file(&draft)),
    }
    result
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn publish(text: &str) -> Publish {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_kept_is_there_again_in_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = Kept::load(dir.path()).unwrap();
        assert!(kept.publishes().is_empty());
        let (one, two) = (publish("tcp:0.0.0.0:80=m/10.0.0.5:80"), publish("udp:[::]:53=m/[fd00::5]:53"));
        kept.change(&[one.clone(), two.clone()], &[]).unwrap();
        assert_eq!(Kept::load(dir.path()).unwrap().publishes(), [one.clone(), two.clone()]);
        let mode = std::fs::metadata(dir.path().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let other = publish("tcp:0.0.0.0:80=n/10.0.0.6:81");
        kept.change(std::slice::from_ref(&other), &[(two.proto, two.listen)]).unwrap();
        assert_eq!(Kept::load(dir.path()).unwrap().publishes(), std::slice::from_ref(&other));
        assert!(kept.has(other.proto, other.listen) && !kept.has(two.proto, two.listen));
    }

    #[test]
    fn failed_write_is_told_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = Kept::load(dir.path()).unwrap();
        let one = publish("tcp:0.0.0.0:80=m/10.0.0.5:80");
        kept.change(std::slice::from_ref(&one), &[]).unwrap();
        // A directory with something in it, where the draft has to be.
        std::fs::create_dir_all(dir.path().join("publishes.new/x")).unwrap();
        let error = kept.change(&[publish("tcp:0.0.0.0:81=m/10.0.0.5:80")], &[]).unwrap_err().to_string();
        assert!(error.contains("nothing is changed"), "{error}");
        assert_eq!(kept.publishes(), std::slice::from_ref(&one));
        assert_eq!(Kept::load(dir.path()).unwrap().publishes(), [one]);
    }

    #[test]
    fn bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), "# a remark\n\ntcp:0.0.0.0:80=m\n").unwrap();
        let error = format!("{:#}", Kept::load(dir.path()).unwrap_err());
        assert!(error.contains("line 3") && error.contains("no '/'"), "{error}");
    }
}

//! The state directory: the keys that make this relay itself, and trusted as itself.
//!
//! ```text
//! DIR (0700)   ca.pem ca.key   server.pem server.key   token.key   (0600 each)
//!              token-KID.key   older token keys, which verify only
//!              revoked         see `revoked.rs`
//! ```
//!
//! Made at the first start, then only read, but for what `ring.rs` changes. Every start takes the directory's lock while it looks, so of two
//! first starts one makes the keys and the other loads them.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use aws_lc_rs::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Revoked, TokenKey, hex, keys, ring};

/// Largest file that is read: a key or certificate has about 1 KiB.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// The relay's keys, loaded.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    certificate: CertificateDer<'static>,
    private_key: PrivateKeyDer<'static>,
    /// The first one signs.
    tokens: Vec<TokenKey>,
    revoked: Revoked,
}

impl State {
    /// Loads the keys in `path`; makes directory and keys where there are none at all.
    ///
    /// # Errors
    /// Part of the files is missing; a key can be read by others; a file is damaged; the system refuses (full
    /// disk, no permission). Each says which file, and the cure. What a failed first start made, it removes.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let dir = lock(path)?;
        Self::open_locked(path, &dir)
        // The lock ends with `dir`.
    }

    /// What is there; makes nothing, and is `None` where there are no keys yet.
    ///
    /// # Errors
    /// As with [`State::open`].
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let dir = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            dir => dir.with_context(|| format!("cannot open the state directory {}", path.display()))?,
        };
        check_directory(path, &dir)?;
        dir.lock().with_context(|| format!("cannot lock the state directory {}", path.display()))?;
        if missing_files(path)?.len() == keys::FILES.len() {
            return Ok(None);
        }
        Self::open_locked(path, &dir).map(Some)
    }

    pub(super) fn open_locked(path: &Path, dir: &File) -> anyhow::Result<Self> {
        let missing = missing_files(path)?;
        if missing.len() == keys::FILES.len() {
            create(path, dir)?;
        } else if !missing.is_empty() {
            bail!(
                "the state directory {} is incomplete: {} missing; restore from a backup, or, if nobody holds a token \
                 or fingerprint of this relay yet, remove the other files there and start again",
                path.display(),
                missing.join(", ")
            );
        }
        load(path)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The server's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The server's private key.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        self.private_key.clone_key()
    }

    /// The key that signs tokens.
    pub fn tokens(&self) -> &TokenKey {
        // `load` puts it there.
        &self.tokens[0]
    }

    /// The keys that verify tokens; the first one signs.
    pub fn token_keys(&self) -> &[TokenKey] {
        &self.tokens
    }

    /// What is revoked.
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// What mediators and terminals pin.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, &self.certificate).as_ref());
        Fingerprint(bytes)
    }
}

/// SHA-256 of the server certificate's DER, printed `SHA256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SHA256:{}", hex(&self.0))
    }
}

/// The directory, made where there is none, and locked as long as the handle lives.
pub(super) fn lock(path: &Path) -> anyhow::Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the state directory {}", path.display()))?;
    let dir = File::open(path).with_context(|| format!("cannot open the state directory {}", path.display()))?;
    check_directory(path, &dir)?;
    dir.lock().with_context(|| format!("cannot lock the state directory {}", path.display()))?;
    Ok(dir)
}

fn check_directory(path: &Path, dir: &File) -> anyhow::Result<()> {
    let shown = path.display();
    let metadata = dir.metadata().with_context(|| format!("cannot examine {shown}"))?;
    ensure!(metadata.is_dir(), "{shown} is not a directory");
    // A directory that others write to lets them put their own keys in the place of ours.
    ensure!(metadata.mode() & 0o022 == 0, "others can write to the state directory {shown}; run: chmod 700 {shown}");
    Ok(())
}

fn missing_files(path: &Path) -> anyhow::Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for name in keys::FILES {
        // A dangling link is not a missing file: nothing may be made in its place.
        match std::fs::symlink_metadata(path.join(name)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(name),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot examine {}", path.join(name).display()));
            }
        }
    }
    Ok(missing)
}

fn create(path: &Path, dir: &File) -> anyhow::Result<()> {
    let mut made = Vec::new();
    let result = keys::generate().and_then(|files| {
        for (name, content) in files {
            write_new(path, name, content.as_bytes())?;
            made.push(path.join(name));
        }
        dir.sync_all().with_context(|| format!("cannot sync {}", path.display()))
    });
    if result.is_err() {
        // All or nothing: a part would make every later start fail.
        for file in made {
            if let Err(error) = std::fs::remove_file(&file) {
                tracing::warn!(file = %file.display(), %error, "cannot remove a half-made state");
            }
        }
    }
    result
}

/// Writes a file whole or not at all, and never over another one.
pub(super) fn write_new(path: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let (target, draft) = (path.join(name), path.join(format!(".{name}.new")));
    let write = || {
        // Only a start that died has left one, since we hold the directory's lock.
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        // Unlike a rename, a link fails where the name exists.
        std::fs::hard_link(&draft, &target)
    };
    let result = write().with_context(|| format!("cannot write {}", target.display()));
    // Not there when its making failed; the error to tell is that one.
    let _ = std::fs::remove_file(&draft);
    result
}

fn load(path: &Path) -> anyhow::Result<State> {
    let damaged = |name: &str| format!("{} is damaged; restore it from a backup", path.join(name).display());
    let certificate = CertificateDer::from_pem_slice(&read(path, keys::SERVER_PEM)?)
        .map_err(|error| anyhow::anyhow!("{error:?}"))
        .with_context(|| damaged(keys::SERVER_PEM))?;
    let private_key = PrivateKeyDer::from_pem_slice(&read(path, keys::SERVER_KEY)?)
        .map_err(|error| anyhow::anyhow!("{error:?}"))
        .with_context(|| damaged(keys::SERVER_KEY))?;
    let secret = keys::parse_token_key(&read(path, keys::TOKEN_KEY)?).with_context(|| damaged(keys::TOKEN_KEY))?;
    // Not used while running, and checked all the same: a CA key that others read is everybody's CA.
    read(path, keys::CA_KEY)?;
    let mut tokens = vec![TokenKey::new(&secret)];
    for name in ring::older_keys(path)? {
        let secret = keys::parse_token_key(&read(path, &name)?).with_context(|| damaged(&name))?;
        let key = TokenKey::new(&secret);
        // A rotation that was cut off leaves the signing key under both names.
        if tokens.iter().all(|known| known.kid() != key.kid()) {
            tokens.push(key);
        }
    }
    let revoked = ring::read_revoked(path)?;
    Ok(State { path: path.to_owned(), certificate, private_key, tokens, revoked })
}

/// Reads one file; a key only if nobody else can.
pub(super) fn read(path: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let path = path.join(name);
    let shown = path.display();
    let file = File::open(&path).with_context(|| format!("cannot open {shown}"))?;
    let metadata = file.metadata().with_context(|| format!("cannot examine {shown}"))?;
    let mode = metadata.permissions().mode() & 0o777;
    ensure!(
        !name.ends_with(".key") || mode & 0o077 == 0,
        "{shown} can be read by others (mode {mode:04o}); run: chmod 600 {shown}"
    );
    let mut content = Vec::new();
    file.take(FILE_LEN_MAX).read_to_end(&mut content).with_context(|| format!("cannot read {shown}"))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    /// The path of a state that is not made yet.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state");
        (dir, path)
    }

    fn contents(path: &Path) -> Vec<Vec<u8>> {
        keys::FILES.iter().map(|name| fs::read(path.join(name)).unwrap()).collect()
    }

    fn error(path: &Path) -> String {
        format!("{:#}", State::open(path).unwrap_err())
    }

    #[test]
    fn first_start_makes_private_files_and_nothing_else() {
        let (_dir, path) = place();
        State::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{entry:?}");
            assert_eq!(entry.metadata().unwrap().nlink(), 1, "{entry:?}");
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort();
        let mut files = keys::FILES.to_vec();
        files.sort_unstable();
        assert_eq!(names, files);
    }

    #[test]
    fn second_start_loads_what_the_first_made() {
        let (_dir, path) = place();
        let first = State::open(&path).unwrap();
        let made = contents(&path);
        let second = State::open(&path).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_eq!(first.private_key(), second.private_key());
        assert_eq!(contents(&path), made);
        let text = first.fingerprint().to_string();
        assert!(text.strip_prefix("SHA256:").is_some_and(|digits| digits.len() == 64), "{text}");
    }

    #[test]
    fn of_many_first_starts_one_makes_the_keys() {
        let (_dir, path) = place();
        let start = Barrier::new(8);
        let prints: Vec<_> = thread::scope(|scope| {
            let open = || {
                start.wait();
                State::open(&path).unwrap().fingerprint()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(prints.iter().all(|print| *print == prints[0]), "{prints:?}");
    }

    #[test]
    fn each_missing_file_is_named_and_not_made_anew() {
        let (_dir, path) = place();
        State::open(&path).unwrap();
        for name in keys::FILES {
            let content = fs::read(path.join(name)).unwrap();
            fs::remove_file(path.join(name)).unwrap();
            let error = error(&path);
            assert!(error.contains(&format!("{name} missing")) && error.contains("restore"), "{error}");
            assert!(!path.join(name).exists());
            write_new(&path, name, &content).unwrap();
        }
        State::open(&path).unwrap();
    }

    #[test]
    fn keys_that_others_can_read_are_refused_with_the_cure() {
        let (_dir, path) = place();
        State::open(&path).unwrap();
        for name in keys::FILES.into_iter().filter(|name| name.ends_with(".key")) {
            for mode in [0o640, 0o604, 0o620] {
                fs::set_permissions(path.join(name), PermissionsExt::from_mode(mode)).unwrap();
                let error = error(&path);
                assert!(error.contains(&format!("chmod 600 {}", path.join(name).display())), "{error}");
            }
            fs::set_permissions(path.join(name), PermissionsExt::from_mode(0o400)).unwrap();
            State::open(&path).unwrap();
        }
    }

    #[test]
    fn directory_that_others_can_write_is_refused_with_the_cure() {
        let (_dir, path) = place();
        State::open(&path).unwrap();
        for mode in [0o770, 0o702] {
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = error(&path);
            assert!(error.contains(&format!("chmod 700 {}", path.display())), "{error}");
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        State::open(&path).unwrap();
    }

    #[test]
    fn damaged_files_are_named() {
        let (_dir, path) = place();
        State::open(&path).unwrap();
        for name in [keys::SERVER_PEM, keys::SERVER_KEY, keys::TOKEN_KEY] {
            let content = fs::read(path.join(name)).unwrap();
            fs::write(path.join(name), &content[..content.len() / 2]).unwrap();
            let error = error(&path);
            assert!(error.contains(name) && error.contains("damaged"), "{error}");
            fs::write(path.join(name), content).unwrap();
        }
        State::open(&path).unwrap();
    }

    #[test]
    fn first_start_that_fails_half_way_leaves_nothing() {
        let (_dir, path) = place();
        // A directory in the draft's place cannot be removed as a file.
        let obstacle = path.join(".server.key.new");
        fs::create_dir_all(&obstacle).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        let error = error(&path);
        assert!(error.contains("server.key"), "{error}");
        assert_eq!(missing_files(&path).unwrap(), keys::FILES);
        fs::remove_dir(&obstacle).unwrap();
        State::open(&path).unwrap();
    }

    #[test]
    fn draft_of_a_start_that_died_is_no_hindrance() {
        let (_dir, path) = place();
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        fs::write(path.join(".ca.pem.new"), "half").unwrap();
        State::open(&path).unwrap();
        assert!(!path.join(".ca.pem.new").exists());
    }

    #[test]
    fn file_in_the_directorys_place_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = error(file.path());
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}

//! What changes in a state directory while relays run: the ring of token keys, and the revocation list. Each change holds
//! the directory's lock and puts whole files in place, so that a crash leaves what was or what shall be.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::state_dir::{self, State};
use super::{Entry, Revoked, TokenKey, keys, unix_now};

/// Most keys that verify tokens. Each is tried on a token that names none.
pub(super) const TOKEN_KEYS_MAX: usize = 8;

const REVOKED: &str = "revoked";

/// Largest revocation list in bytes.
const REVOKED_LEN_MAX: u64 = 32 * 1024 * 1024;

impl State {
    /// Makes a new key that signs from now on. The one before goes on verifying. Returns the new one's name.
    ///
    /// # Errors
    /// There are [`TOKEN_KEYS_MAX`] already, or the directory cannot be used.
    pub fn rotate(path: &Path) -> anyhow::Result<String> {
        let dir = state_dir::lock(path)?;
        let state = Self::open_locked(path, &dir)?;
        ensure!(
            state.token_keys().len() < TOKEN_KEYS_MAX,
            "there are {TOKEN_KEYS_MAX} token keys, which is the most; retire one first: token retire KID ('token keys' lists them)"
        );
        let older = older_name(state.tokens().kid());
        // The old key gets its second name first: whenever this ends, it is there to verify.
        match fs::hard_link(path.join(keys::TOKEN_KEY), path.join(&older)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error)
                    .with_context(|| format!("cannot keep the old key as {}", path.join(&older).display()));
            }
            Ok(()) | Err(_) => {}
        }
        let content = keys::generate_token_key()?;
        replace(path, keys::TOKEN_KEY, content.as_bytes())?;
        dir.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
        Ok(TokenKey::new(&keys::parse_token_key(content.as_bytes())?).kid().to_owned())
    }

    /// Removes a key that verifies: what it signed is good no more.
    ///
    /// # Errors
    /// No such key, or the one that signs; the directory cannot be used.
    pub fn retire(path: &Path, kid: &str) -> anyhow::Result<()> {
        let dir = state_dir::lock(path)?;
        let state = Self::open_locked(path, &dir)?;
        ensure!(state.tokens().kid() != kid, "key {kid} signs; make another one first: token rotate");
        if !state.token_keys().iter().any(|key| key.kid() == kid) {
            bail!("there is no token key {kid}; 'token keys' lists them");
        }
        for name in older_keys(path)? {
            let secret = keys::parse_token_key(&state_dir::read(path, &name)?)?;
            if TokenKey::new(&secret).kid() == kid {
                fs::remove_file(path.join(&name))
                    .with_context(|| format!("cannot remove {}", path.join(&name).display()))?;
            }
        }
        dir.sync_all().with_context(|| format!("cannot sync {}", path.display()))
    }

    /// Adds to the revocation list, and drops what has ended from it.
    ///
    /// # Errors
    /// The list is full or damaged; the directory cannot be used.
    pub fn revoke(path: &Path, entry: Entry) -> anyhow::Result<()> {
        let dir = state_dir::lock(path)?;
        let state = Self::open_locked(path, &dir)?;
        let mut list = state.revoked().clone();
        list.add(entry, unix_now())?;
        replace(path, REVOKED, list.to_text().as_bytes())?;
        dir.sync_all().with_context(|| format!("cannot sync {}", path.display()))
    }
}

fn older_name(kid: &str) -> String {
    format!("token-{kid}.key")
}

/// Files of the keys that verify only, in the order of their names.
pub(super) fn older_keys(path: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with("token-") && name.ends_with(".key") {
            names.push(name);
        }
    }
    names.sort_unstable();
    ensure!(
        names.len() <= TOKEN_KEYS_MAX,
        "{} holds {} older token keys, and {TOKEN_KEYS_MAX} is the most; remove some of token-*.key there",
        path.display(),
        names.len()
    );
    Ok(names)
}

/// The list of a state directory; empty where there is no file.
pub(super) fn read_revoked(path: &Path) -> anyhow::Result<Revoked> {
    let file = path.join(REVOKED);
    let shown = file.display();
    let mut text = String::new();
    match File::open(&file) {
        Ok(file) => {
            let read = file.take(REVOKED_LEN_MAX + 1).read_to_string(&mut text);
            read.with_context(|| format!("cannot read {shown}"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot open {shown}")),
    }
    ensure!(
        text.len() as u64 <= REVOKED_LEN_MAX,
        "{shown} is longer than {REVOKED_LEN_MAX} bytes; drop old lines from it"
    );
    Revoked::parse(&text, unix_now()).with_context(|| format!("{shown} is damaged"))
}

/// Puts a file in the place of one that may be there.
fn replace(path: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let (target, draft) = (path.join(name), path.join(format!(".{name}.new")));
    let write = || {
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, &target)
    };
    let result = write();
    if result.is_err() {
        // Not there when its making failed; the error to tell is that one.
        let _ = fs::remove_file(&draft);
    }
    result.with_context(|| format!("cannot write {}", target.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::Target;
    use super::*;

    fn kids(path: &Path) -> Vec<String> {
        State::open(path).unwrap().token_keys().iter().map(|key| key.kid().to_owned()).collect()
    }

    #[test]
    fn rotated_key_signs_and_the_old_one_verifies_until_it_is_retired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = State::open(&path).unwrap().tokens().kid().to_owned();
        let second = State::rotate(&path).unwrap();
        assert_eq!(kids(&path), [second.clone(), first.clone()]);
        for entry in fs::read_dir(&path).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        }
        let error = State::retire(&path, &second).unwrap_err().to_string();
        assert!(error.contains("token rotate"), "{error}");
        assert!(State::retire(&path, "0000").unwrap_err().to_string().contains("token keys"));
        State::retire(&path, &first).unwrap();
        assert_eq!(kids(&path), [second]);
    }

    #[test]
    fn rotation_that_was_cut_off_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = State::open(&path).unwrap().tokens().kid().to_owned();
        fs::hard_link(path.join("token.key"), path.join(older_name(&first))).unwrap();
        assert_eq!(kids(&path), std::slice::from_ref(&first));
        let second = State::rotate(&path).unwrap();
        assert_eq!(kids(&path), [second, first]);
    }

    #[test]
    fn ring_takes_its_limit_and_not_one_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        State::open(&path).unwrap();
        for _ in 1..TOKEN_KEYS_MAX {
            State::rotate(&path).unwrap();
        }
        assert_eq!(kids(&path).len(), TOKEN_KEYS_MAX);
        assert!(State::rotate(&path).unwrap_err().to_string().contains("token retire"));
    }

    #[test]
    fn revocations_are_kept_and_a_damaged_list_keeps_the_relay_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let entry = |id: &str| Entry { target: Target::Jti(id.into()), at: 1, until: None };
        State::revoke(&path, entry("a")).unwrap();
        State::revoke(&path, entry("b")).unwrap();
        assert_eq!(State::open(&path).unwrap().revoked().entries(), [entry("a"), entry("b")]);
        let list = path.join(REVOKED);
        assert_eq!(fs::metadata(&list).unwrap().mode() & 0o777, 0o600);
        fs::write(&list, "half a li").unwrap();
        let error = format!("{:#}", State::open(&path).unwrap_err());
        assert!(error.contains("revoked") && error.contains("line 1"), "{error}");
    }
}

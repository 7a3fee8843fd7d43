//! `isthmus-agent enroll LINE`: writes what a mediator needs, from the line that `isthmus-relay enroll` printed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use isthmus_proto::enroll::Enrollment;
use isthmus_proto::record::parse_pin;
use nix::unistd::User;

use crate::config::RULES_MAX;
use crate::resolve::HostPort;
use crate::token::{Token, TokenSource};

const CONFIG: &str = "agent.toml";
const TOKEN: &str = "token";

/// As the Debian package has it.
const UNIT_USER: &str = "isthmus-agent";

/// Arguments of `enroll`.
#[derive(Clone, Args)]
pub struct EnrollArgs {
    /// The line; - reads it from standard input, so that other users do not see it on the command line
    #[arg(value_name = "LINE", required = true, num_args = 1..)]
    line: Vec<String>,

    /// Where to put agent.toml and token; made if it is absent
    #[arg(long, value_name = "DIR", default_value = "/etc/isthmus")]
    dir: PathBuf,

    /// Replace what is there
    #[arg(long)]
    force: bool,
}

impl std::fmt::Debug for EnrollArgs {
    /// Without the line, which holds a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrollArgs").field("dir", &self.dir).field("force", &self.force).finish_non_exhaustive()
    }
}

/// Writes the files, and says how to go on.
///
/// # Errors
/// The line is none; there are files already; the directory cannot be written.
pub fn run(args: &EnrollArgs) -> anyhow::Result<()> {
    let line = match args.line.as_slice() {
        [dash] if dash == "-" => io::read_to_string(io::stdin()).context("cannot read the line")?,
        words => words.concat(),
    };
    let token = enroll(&line, &args.dir, args.force)?;
    hand_over(&args.dir)?;
    println!(
        "Mediator {} is set up. Start it: isthmus-agent --config {}",
        token.mediator,
        args.dir.join(CONFIG).display()
    );
    Ok(())
}

/// The user that a package's unit runs the mediator as reads what root has written.
fn hand_over(dir: &Path) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let Some(user) = User::from_name(UNIT_USER).context("cannot look up users")? else { return Ok(()) };
    for file in [CONFIG, TOKEN] {
        let path = dir.join(file);
        chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .with_context(|| format!("cannot give {} to user {UNIT_USER}", path.display()))?;
    }
    Ok(())
}

fn enroll(line: &str, dir: &Path, force: bool) -> anyhow::Result<Token> {
    let enrollment = Enrollment::from_line(line)?;
    // What this version would refuse at its start is refused here.
    let _: HostPort = enrollment.relay.parse().context("the line's relay address")?;
    parse_pin(&enrollment.pin).context("the line's pin")?;
    let token = TokenSource::Text(enrollment.token.clone()).load()?;
    ensure!(enrollment.allow.len() <= RULES_MAX, "the line has more than {RULES_MAX} allow rules; enroll with fewer");

    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot make {}; give another --dir", dir.display()))?;
    let dir = fs::canonicalize(dir).with_context(|| format!("cannot find {}", dir.display()))?;
    let (config, secret) = (dir.join(CONFIG), dir.join(TOKEN));
    for path in [&config, &secret] {
        ensure!(
            force || fs::symlink_metadata(path).is_err(),
            "{} is there already: this machine may be another mediator; give --force to replace it, or another --dir",
            path.display()
        );
    }
    // The configuration last: while it is not there, nothing starts with half of it.
    write(&secret, &format!("{}\n", enrollment.token))?;
    write(&config, &configuration(&enrollment, &secret))?;
    File::open(&dir).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot sync {}", dir.display()))?;
    Ok(token)
}

/// Keys are the command line's flags.
fn configuration(enrollment: &Enrollment, secret: &Path) -> String {
    let mut text = String::from("# Made by `isthmus-agent enroll`. Keys are the command line's flags.\n");
    for (key, value) in
        [("relay", &enrollment.relay), ("pin", &enrollment.pin), ("token-file", &secret.display().to_string())]
    {
        text.push_str(&format!("{key} = {}\n", quoted(value)));
    }
    if !enrollment.allow.is_empty() {
        let rules: Vec<_> = enrollment.allow.iter().map(|rule| quoted(&rule.to_string())).collect();
        text.push_str(&format!("allow = [{}]\n", rules.join(", ")));
    }
    text
}

/// A TOML basic string. JSON's escapes are among its own.
fn quoted(text: &str) -> String {
    // A string always serialises.
    serde_json::to_string(text).unwrap_or_default()
}

/// Writes a file whole or not at all, for its owner only.
fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    let draft = path.with_extension("new");
    let write = || {
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    let result = write();
    if result.is_err() {
        // Not there when its making failed; the error to tell is that one.
        let _ = fs::remove_file(&draft);
    }
    result.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::token::tests::{good_token, jwt};

    const PIN: &str = "SHA256:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff";

    fn enrollment(token: String) -> Enrollment {
        let allow = vec!["10.0.0.0/8:22".parse().unwrap(), "*:443".parse().unwrap()];
        Enrollment { relay: "relay.test:4470".into(), pin: PIN.into(), token, allow }
    }

    #[test]
    fn line_becomes_private_files_that_name_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("deep/isthmus");
        let token = enroll(&enrollment(good_token()).to_line(), &dir, false).unwrap();
        assert_eq!(token.mediator.as_str(), "m1");
        let config = fs::read_to_string(dir.join(CONFIG)).unwrap();
        for part in ["relay = \"relay.test:4470\"", PIN, "allow = [\"10.0.0.0/8:22\", \"*:443\"]", "token-file = \"/"] {
            assert!(config.contains(part), "{config}");
        }
        assert_eq!(TokenSource::File(dir.join(TOKEN)).load().unwrap().text, good_token());
        let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(names.len(), 2);
        assert!(names.iter().all(|entry| entry.metadata().unwrap().mode() & 0o777 == 0o600));
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_is_there_is_replaced_by_force_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CONFIG), "mine").unwrap();
        let line = enrollment(good_token()).to_line();
        let error = enroll(&line, dir.path(), false).unwrap_err().to_string();
        assert!(error.contains("--force") && error.contains(CONFIG), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join(CONFIG)).unwrap(), "mine");
        assert!(!dir.path().join(TOKEN).exists());
        enroll(&line, dir.path(), true).unwrap();
        assert!(fs::read_to_string(dir.path().join(CONFIG)).unwrap().contains("relay.test"));
    }

    #[test]
    fn lines_that_no_mediator_could_start_with_write_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let terminal = enrollment(jwt(r#"{"role":"terminal","sub":"t"}"#));
        let nowhere = Enrollment { relay: "relay".into(), ..enrollment(good_token()) };
        let unpinned = Enrollment { pin: "x".into(), ..enrollment(good_token()) };
        for (line, part) in [
            (terminal.to_line(), "terminal's token"),
            (nowhere.to_line(), "relay address"),
            (unpinned.to_line(), "pin"),
            ("isthmus1:AAAA".into(), "damaged"),
        ] {
            let error = format!("{:#}", enroll(&line, dir.path(), true).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! The subcommands that need the state directory only: `token`, `enroll` and `fingerprint`. They make the keys where there
//! are none, so that mediators can be provisioned before the relay's first start.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use isthmus_proto::enroll::Enrollment;
use isthmus_proto::record::format_pin;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::admin::ctl;
use crate::config::{EnrollArgs, FingerprintArgs, KeyAction, RevokeArgs, TokenArgs};
use crate::trust::{Entry, State, Target, TerminalScope, certificate_named, token_named, unix_now};

/// Prints a new token.
///
/// # Errors
/// The state directory cannot be used, or the token not be made.
pub fn token(args: &TokenArgs) -> anyhow::Result<()> {
    println!("{}", issue(args)?);
    Ok(())
}

/// Prints the server certificate's fingerprint.
///
/// # Errors
/// The state directory cannot be used.
pub fn fingerprint(args: &FingerprintArgs) -> anyhow::Result<()> {
    println!("{}", State::open(&args.state)?.fingerprint());
    Ok(())
}

/// Prints the line that sets a mediator up.
///
/// # Errors
/// The state directory cannot be used, or the token not be made.
pub fn enroll(args: &EnrollArgs) -> anyhow::Result<()> {
    println!("{}", enrollment(args)?.to_line());
    eprintln!(
        "On the mediator's machine: isthmus-agent enroll LINE\n\
         The line holds a token that is good for {}: whoever has it can be {}. Hand it over as you would a password; \
         `isthmus-relay token revoke --state {} --mediator {}` takes it back.",
        humantime::format_duration(args.ttl),
        args.mediator,
        args.state.display(),
        args.mediator
    );
    Ok(())
}

/// Changes the token keys or the revocation list, or shows them.
///
/// # Errors
/// The state directory cannot be used; what the change itself says.
pub fn keys(action: &KeyAction) -> anyhow::Result<()> {
    match action {
        KeyAction::Rotate(at) => {
            println!("{}", State::rotate(&at.state)?);
            eprintln!(
                "The new key signs from now on. Older ones verify until they are retired ('token keys' lists them)."
            );
            tell_relay(&at.state);
        }
        KeyAction::Keys(at) => {
            let state = State::open(&at.state)?;
            for (n, key) in state.token_keys().iter().enumerate() {
                println!("{} {}", key.kid(), if n == 0 { "signs" } else { "verifies" });
            }
        }
        KeyAction::Retire { at, kid } => {
            State::retire(&at.state, kid)?;
            eprintln!("Key {kid} is retired: no token that it signed is good any more.");
            tell_relay(&at.state);
        }
        KeyAction::Revoke(args) => {
            let entry = revocation(args)?;
            let shown = entry.target.to_string();
            State::revoke(&args.at.state, entry)?;
            eprintln!("Revoked: {shown}.");
            tell_relay(&args.at.state);
        }
        KeyAction::Revoked(at) => {
            print!("{}", State::open(&at.state)?.revoked().to_text());
        }
    }
    Ok(())
}

fn issue(args: &TokenArgs) -> anyhow::Result<String> {
    let now = now()?;
    let state = State::open(&args.state)?;
    match (&args.mediator, &args.terminal, &args.mediators) {
        (Some(id), None, None) => state.tokens().issue_mediator(id, args.ttl, now),
        (None, Some(name), Some(mediators)) => {
            let scope = TerminalScope {
                name: name.clone(),
                mediators: mediators.clone(),
                operations: (!args.allow.is_empty()).then(|| args.allow.clone()),
                destinations: (!args.to.is_empty()).then(|| args.to.clone()),
            };
            state.tokens().issue_terminal(&scope, args.ttl, now)
        }
        // The command line's own rules come first; this says the same for other callers.
        _ => bail!("give either --mediator ID, or --terminal NAME with --mediators GLOB"),
    }
}

fn enrollment(args: &EnrollArgs) -> anyhow::Result<Enrollment> {
    let state = State::open(&args.state)?;
    Ok(Enrollment {
        relay: args.address.clone(),
        pin: format_pin(&state.fingerprint().0),
        token: state.tokens().issue_mediator(&args.mediator, args.ttl, now()?)?,
        allow: args.allow.clone(),
    })
}

fn revocation(args: &RevokeArgs) -> anyhow::Result<Entry> {
    let (target, end) = match (&args.jti, &args.certificate, &args.mediator, &args.terminal) {
        (Some(text), None, None, None) => token_named(text).map_err(anyhow::Error::msg)?,
        (None, Some(file), None, None) => certificate_in(file)?,
        (None, None, Some(id), None) => (Target::Mediator(id.clone()), None),
        (None, None, None, Some(name)) => (Target::Terminal(name.clone()), None),
        _ => bail!("give one of JTI, --certificate FILE, --mediator ID and --terminal NAME"),
    };
    let at = now()?;
    let until = args.keep.map(|keep: Duration| at.saturating_add(keep.as_secs())).or(end);
    Ok(Entry { target, at, until })
}

fn certificate_in(file: &Path) -> anyhow::Result<(Target, Option<u64>)> {
    let shown = file.display();
    let certificate = CertificateDer::from_pem_file(file)
        .with_context(|| format!("cannot read the certificate {shown}; give a PEM file"))?;
    let (target, end) = certificate_named(&certificate)
        .with_context(|| format!("{shown} is not an X.509 certificate; give the one that is to be revoked"))?;
    Ok((target, Some(end)))
}

/// A relay that runs on this state takes the change at once; one that does not, at its start.
fn tell_relay(state: &Path) {
    let socket = state.join("stats.sock");
    if !socket.exists() {
        eprintln!(
            "No relay runs on this state directory (or its --stats-socket is elsewhere): give a running one 'ctl reload trust'."
        );
        return;
    }
    match ctl::ask(&socket, "reload trust") {
        Ok(answer) => eprintln!("The running relay says: {}", answer.trim()),
        Err(error) => eprintln!("The running relay could not be told ({error:#}); tell it: ctl reload trust"),
    }
}

fn now() -> anyhow::Result<u64> {
    // Later code takes a clock before 1970 for 1970; a token must not be issued by one.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970; set it")?;
    Ok(unix_now())
}

#[cfg(test)]
mod tests {
    use isthmus_proto::MediatorId;
    use isthmus_proto::hello::{Hello, Role};

    use super::*;
    use crate::config::{Invocation, parse};
    use crate::trust::{Trust, TrustOptions};

    fn args(line: &str) -> TokenArgs {
        match parse(line.split_whitespace()) {
            Ok(Invocation::Token(args)) => args,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn trust(state: &Path) -> Trust {
        let options = TrustOptions { plaintext: true, ..TrustOptions::default() };
        Trust::load(&State::open(state).unwrap(), &options, None).unwrap()
    }

    #[test]
    fn token_of_the_command_line_is_good_at_the_relay_of_that_state() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let line = format!("isthmus-relay token --state {} --terminal desk --mediators cpe-*", state.display());
        let token = issue(&args(&line)).unwrap();
        let mediator: MediatorId = "cpe-1".parse().unwrap();
        let hello = Hello { token, role: Role::Terminal { mediator: Some(mediator) }, udp_channels: 0, instance: 0 };
        let now = unix_now();
        let grant = trust(&state).verify(&hello, now).unwrap();
        assert_eq!(grant.name, "desk");
        assert!(grant.credential.expires.abs_diff(now + 30 * 24 * 3600) < 60);
    }

    #[test]
    fn enrollment_line_holds_what_a_mediator_needs() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let line = format!(
            "isthmus-relay enroll --state {} cpe-1 --address relay.test:4470 --allow 10.0.0.0/8:22 --ttl 1d",
            state.display()
        );
        let Ok(Invocation::Enroll(args)) = parse(line.split_whitespace()) else { panic!("{line}") };
        let line = enrollment(&args).unwrap().to_line();
        let read = Enrollment::from_line(&line).unwrap();
        assert_eq!((read.relay.as_str(), read.allow.len()), ("relay.test:4470", 1));
        assert_eq!(read.pin, State::open(&state).unwrap().fingerprint().to_string());
        let grant = trust(&state).grant(&read.token, unix_now()).unwrap();
        assert_eq!(grant.name, "cpe-1");
    }

    #[test]
    fn certificate_is_revoked_by_its_file_until_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (state, file) = (dir.path().join("state"), dir.path().join("cpe-1.pem"));
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        std::fs::write(&file, params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()).unwrap();
        let line = |file: &Path| {
            format!("isthmus-relay token revoke --state {} --certificate {}", state.display(), file.display())
        };
        let revoke = |line: String| {
            let Ok(Invocation::Keys(action)) = parse(line.split_whitespace()) else { panic!("{line}") };
            keys(&action)
        };
        revoke(line(&file)).unwrap();
        let list = State::open(&state).unwrap();
        let [Entry { target: Target::Jti(id), until: Some(2_208_988_800), .. }] = list.revoked().entries() else {
            panic!("{:?}", list.revoked())
        };
        assert_eq!(id.len(), 64);
        let error = revoke(line(&dir.path().join("none.pem"))).unwrap_err().to_string();
        assert!(error.contains("none.pem") && error.contains("PEM"), "{error}");
    }

    #[test]
    fn revoked_token_is_kept_as_long_as_it_could_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let token = issue(&args(&format!("isthmus-relay token --state {} --mediator cpe-1", state.display()))).unwrap();
        let line = format!("isthmus-relay token revoke --state {} {token}", state.display());
        let Ok(Invocation::Keys(action)) = parse(line.split_whitespace()) else { panic!("{line}") };
        keys(&action).unwrap();
        let list = State::open(&state).unwrap();
        let [entry] = list.revoked().entries() else { panic!("{:?}", list.revoked()) };
        assert!(entry.until.unwrap().abs_diff(unix_now() + 30 * 24 * 3600) < 60);
        assert_eq!(trust(&state).grant(&token, unix_now()), Err(isthmus_proto::Code::Revoked));
    }
}

//! Who may ask: the token, and, where there is none, the Host that keeps other people's web pages out.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::http::request::Parts;

/// Fewest bytes of a token: a shorter one could be guessed.
const TOKEN_MIN: usize = 16;
const TOKEN_MAX: usize = 1024;

/// What keeps strangers out of one listener.
#[derive(Debug)]
pub(super) struct Gate {
    /// The token's hash: comparing hashes tells nothing of the token, its length included.
    token: Option<Digest>,
}

/// Whether a listener may be there at all.
///
/// # Errors
/// It would be open to whoever reaches it; or a token is given for no listener.
pub fn check_exposure(listen: Option<SocketAddr>, token_file: Option<&PathBuf>) -> Result<(), String> {
    match (listen, token_file) {
        (Some(listen), None) if !is_loopback(listen.ip()) => Err(format!(
            "--http {listen}: that is no loopback address, and whoever reaches it could read; give --http-token-file FILE too, \
             or listen on 127.0.0.1"
        )),
        (None, Some(_)) => Err("--http-token-file: for which port? give --http ADDR:PORT too".into()),
        _ => Ok(()),
    }
}

impl Gate {
    /// # Errors
    /// The token file cannot be read, or holds no good token.
    pub(super) fn new(token_file: Option<&Path>) -> anyhow::Result<Self> {
        let token = token_file.map(read_token).transpose()?;
        Ok(Self { token: token.map(|token| digest(&SHA256, token.as_bytes())) })
    }

    /// Whether this host may be asked for.
    ///
    /// Without a token, a web page of anywhere could have a browser on this machine ask by a name of its own that it lets
    /// lead to 127.0.0.1 (DNS rebinding), and read the answer: so the names are those that nobody else can have. With a
    /// token they are the operator's business, as a proxy in front needs it.
    pub(super) fn lets_host(&self, parts: &Parts) -> bool {
        if self.token.is_some() {
            return true;
        }
        let mut hosts = parts.headers.get_all(HOST).into_iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        host.to_str().is_ok_and(names_this_machine)
            && parts.uri.authority().is_none_or(|authority| names_this_machine(authority.as_str()))
    }

    /// Whether a request carries the token, if there is one: as a bearer's (RFC 6750), or as the password of any user (RFC
    /// 7617), which browsers ask for by themselves and send for streams too.
    ///
    /// Not in the address: those stand in histories and logs.
    pub(super) fn lets_in(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let Some(given) = headers.get(AUTHORIZATION).and_then(|value| given_token(value.as_bytes())) else {
            return false;
        };
        verify_slices_are_equal(digest(&SHA256, &given).as_ref(), token.as_ref()).is_ok()
    }
}

fn given_token(value: &[u8]) -> Option<Vec<u8>> {
    let at = value.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = (&value[..at], value[at..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = STANDARD.decode(rest).ok()?;
    let colon = pair.iter().position(|&byte| byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Whether a Host is this machine by a name that cannot be made to lead elsewhere.
fn names_this_machine(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return false;
    }
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    match address.map_or_else(|| name.parse().map(IpAddr::V4), |name| name.parse().map(IpAddr::V6)) {
        Ok(address) => is_loopback(address),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    let shown = path.display();
    let cannot = || format!("--http-token-file: cannot read {shown}");
    let file = std::fs::File::open(path).with_context(cannot)?;
    let mode = file.metadata().with_context(cannot)?.permissions().mode() & 0o777;
    ensure!(
        mode & 0o077 == 0,
        "--http-token-file: {shown} can be read by others (mode {mode:04o}); run: chmod 600 {shown}"
    );
    let mut text = String::new();
    file.take(2 * TOKEN_MAX as u64).read_to_string(&mut text).with_context(cannot)?;
    let token = text.trim();
    ensure!(
        (TOKEN_MIN..=TOKEN_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic()),
        "--http-token-file: {shown} holds no token of {TOKEN_MIN} to {TOKEN_MAX} printable characters without blanks; make \
         one: openssl rand -hex 32 > {shown}"
    );
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use hyper::Request;

    use super::*;

    #[test]
    fn only_loopback_goes_without_a_token() {
        let file = PathBuf::from("/t");
        for (listen, good) in
            [("127.0.0.1:1", true), ("[::1]:1", true), ("[::ffff:127.0.0.1]:1", true), ("0.0.0.0:1", false)]
        {
            let listen = Some(listen.parse().unwrap());
            assert_eq!(check_exposure(listen, None).is_ok(), good, "{listen:?}");
            assert!(check_exposure(listen, Some(&file)).is_ok());
        }
        assert!(check_exposure(Some("[::]:1".parse().unwrap()), None).unwrap_err().contains("--http-token-file"));
        assert!(check_exposure(None, Some(&file)).unwrap_err().contains("--http "));
        assert!(check_exposure(None, None).is_ok());
    }

    #[test]
    fn host_that_others_could_own_is_refused_where_no_token_guards() {
        let open = Gate::new(None).unwrap();
        let lets = |host: &str| open.lets_host(&Request::get("/").header(HOST, host).body(()).unwrap().into_parts().0);
        for host in ["localhost", "LocalHost:9470", "127.0.0.1:9470", "127.9.9.9", "[::1]:9470", "[::1]"] {
            assert!(lets(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "192.0.2.1:9470",
            "[2001:db8::1]",
            "",
            ":1",
            "localhost:",
            "::1",
            "a:b",
        ] {
            assert!(!lets(host), "{host}");
        }
        let parts = |builder: hyper::http::request::Builder| builder.body(()).unwrap().into_parts().0;
        assert!(!open.lets_host(&parts(Request::get("/"))));
        assert!(!open.lets_host(&parts(Request::get("/").header(HOST, "localhost").header(HOST, "evil.example"))));
        assert!(!open.lets_host(&parts(Request::get("http://evil.example/").header(HOST, "localhost"))));
    }

    #[test]
    fn token_is_taken_as_a_bearers_and_as_a_password_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        assert!(Gate::new(Some(&path)).unwrap_err().to_string().contains("chmod 600"));
        mode(0o600);
        let gate = Gate::new(Some(&path)).unwrap();
        let lets = |value: &str| {
            let request = Request::get("/").header(AUTHORIZATION, value).body(()).unwrap();
            gate.lets_in(request.headers())
        };
        assert!(lets("Bearer 0123456789abcdef") && lets("bearer  0123456789abcdef"));
        assert!(lets(&format!("Basic {}", STANDARD.encode("anybody:0123456789abcdef"))));
        for value in
            ["Bearer 0123456789abcdeg", "Bearer", "Bearer ", "0123456789abcdef", "Basic 0123456789abcdef", "Digest x"]
        {
            assert!(!lets(value), "{value}");
        }
        assert!(!lets(&format!("Basic {}", STANDARD.encode("0123456789abcdef:"))));
        assert!(!gate.lets_in(&HeaderMap::new()));
        for bad in ["short", "with blanks in it, which cannot be", ""] {
            std::fs::write(&path, bad).unwrap();
            assert!(Gate::new(Some(&path)).unwrap_err().to_string().contains("--http-token-file"), "{bad}");
        }
    }
}

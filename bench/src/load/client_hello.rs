//! A TLS ClientHello (RFC 8446 section 4.1.2), as a browser sends it: the beginning of a stream that is led by its server name.

use isthmus_proto::door::name::HostName;

/// Bytes of the record, header included, whatever the name: names are compared, not sizes. Those of more than about 200
/// bytes make it longer.
pub const SIZE: usize = 400;

/// First byte of a record with a handshake message.
pub const HANDSHAKE: u8 = 22;

/// Bytes of a record's header; the last two are the length of what follows.
pub const HEADER: usize = 5;

const CLIENT_HELLO: u8 = 1;
const TLS_1_0: [u8; 2] = [3, 1];
const TLS_1_2: [u8; 2] = [3, 3];
const TLS_1_3: [u8; 2] = [3, 4];

/// Extensions, by their numbers of IANA's registry.
const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const PADDING: u16 = 21;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_EXCHANGE_MODES: u16 = 45;
const KEY_SHARE: u16 = 51;

const X25519: [u8; 2] = [0, 29];

/// One record with the whole message, the server name first among its extensions. Nobody answers it here, so that random
/// numbers and key are no secrets.
pub fn client_hello(name: &HostName) -> Vec<u8> {
    let arbitrary: [u8; 32] = std::array::from_fn(|at| at as u8);
    let mut body = [TLS_1_2.as_slice(), &arbitrary].concat();
    body.extend(counted_u8(&arbitrary));
    // TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384, TLS_CHACHA20_POLY1305_SHA256.
    body.extend(counted(&[0x13, 1, 0x13, 2, 0x13, 3]));
    // No compression.
    body.extend([1, 0]);
    let mut extensions = extensions(name);
    // The headers of record, message, extensions and the padding itself.
    let used = HEADER + 4 + body.len() + 2 + extensions.len() + 4;
    extensions.extend(extension(PADDING, &vec![0; SIZE.saturating_sub(used)]));
    body.extend(counted(&extensions));
    let message = [&[CLIENT_HELLO, 0], counted(&body).as_slice()].concat();
    [&[HANDSHAKE], TLS_1_0.as_slice(), &counted(&message)].concat()
}

fn extensions(name: &HostName) -> Vec<u8> {
    // Its type, 0, is that of a host's name.
    let entry = [&[0], counted(name.as_str().as_bytes()).as_slice()].concat();
    let key: [u8; 32] = std::array::from_fn(|at| 1 + at as u8);
    let share = [X25519.as_slice(), &counted(&key)].concat();
    [
        extension(SERVER_NAME, &counted(&entry)),
        extension(SUPPORTED_GROUPS, &counted(&X25519)),
        // ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256, ed25519.
        extension(SIGNATURE_ALGORITHMS, &counted(&[4, 3, 8, 4, 8, 7])),
        extension(ALPN, &counted(&[counted_u8(b"h2"), counted_u8(b"http/1.1")].concat())),
        extension(SUPPORTED_VERSIONS, &counted_u8(&TLS_1_3)),
        // With a key share of its own each time.
        extension(KEY_EXCHANGE_MODES, &counted_u8(&[1])),
        extension(KEY_SHARE, &counted(&share)),
    ]
    .concat()
}

fn extension(number: u16, data: &[u8]) -> Vec<u8> {
    [number.to_be_bytes().as_slice(), &counted(data)].concat()
}

/// Bytes with their count before them, in two bytes; nothing here has more than a few hundred.
fn counted(bytes: &[u8]) -> Vec<u8> {
    [(bytes.len() as u16).to_be_bytes().as_slice(), bytes].concat()
}

fn counted_u8(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8], bytes].concat()
}

#[cfg(test)]
mod tests {
    use isthmus_proto::door::name::{self, Asked, Speaks};
    use rustls::server::Acceptor;

    use super::*;

    #[test]
    fn servers_and_the_relay_read_the_name_of_a_whole_record() {
        let long = ["a"; 3].map(|label| label.repeat(63)).join(".") + &format!(".{}", "b".repeat(61));
        for (text, size) in [("a.b", SIZE), ("n9999.names.example", SIZE), (&long, 447)] {
            let host: HostName = text.parse().unwrap();
            let record = client_hello(&host);
            assert_eq!(record.len(), size);
            let asked = Asked { speaks: Speaks::Tls, name: Some(host) };
            assert_eq!(name::read(&record), Ok(Some(asked)));
            assert_eq!(name::read(&record[..record.len() - 1]), Ok(None));
            let mut acceptor = Acceptor::default();
            acceptor.read_tls(&mut record.as_slice()).unwrap();
            let accepted = acceptor.accept().map_err(|(error, _)| error).unwrap().unwrap();
            assert_eq!(accepted.client_hello().server_name(), Some(text));
            assert_eq!(accepted.client_hello().alpn().unwrap().count(), 2);
        }
    }

    #[test]
    fn the_name_is_the_first_extension() {
        let record = client_hello(&"www.example.net".parse().unwrap());
        let at = record.windows(15).position(|part| part == b"www.example.net").unwrap();
        // Before the name: its length, type and list's length; the extension's length and number.
        assert_eq!(record[at - 9..at], [0, 0, 0, 20, 0, 18, 0, 0, 15]);
        let before = HEADER + 4 + 2 + 32 + 33 + 8 + 2 + 2;
        assert_eq!(at - 9, before);
    }
}

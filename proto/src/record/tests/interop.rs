//! The other end is rustls's buffered connection with its own record layer.

use std::io::{Read, Write};

use rustls::{ClientConnection, ServerConnection};

use super::*;

const LABEL: &[u8] = b"EXPORTER-isthmus-udp";

/// All that the rustls end wants to send.
macro_rules! drain {
    ($peer:expr) => {{
        let mut bytes = Vec::new();
        while $peer.wants_write() {
            $peer.write_tls(&mut bytes).unwrap();
        }
        bytes
    }};
}

/// Gives `bytes` to the rustls end; gives what data came out.
macro_rules! give {
    ($peer:expr, $bytes:expr) => {{
        let mut bytes = &$bytes[..];
        let mut data = Vec::new();
        while !bytes.is_empty() {
            $peer.read_tls(&mut bytes).unwrap();
            let state = $peer.process_new_packets().unwrap();
            let mut part = vec![0; state.plaintext_bytes_to_read()];
            $peer.reader().read_exact(&mut part).unwrap();
            data.extend(part);
        }
        data
    }};
}

/// Data both ways, key updates from either end, with and without a request, and the orderly end.
macro_rules! converse {
    ($peer:expr, $session:expr) => {{
        let (peer, session) = (&mut $peer, &mut $session);
        for round in 0u8..6 {
            let payload = vec![round; 40_000];
            peer.writer().write_all(&payload).unwrap();
            assert_eq!(open_all(session, &mut drain!(peer)).unwrap(), (payload, vec![]));
            for size in [1, 1200, 16_384] {
                let payload = vec![round; size];
                assert_eq!(give!(peer, sealed(session, &payload)), payload);
            }
            match round % 3 {
                0 => {
                    peer.refresh_traffic_keys().unwrap();
                    let (_, events) = open_all(session, &mut drain!(peer)).unwrap();
                    assert_eq!(events, [Opened::KeyUpdate { respond: true }]);
                    assert!(session.key_update_due());
                    let mut answer = Vec::new();
                    session.write_key_update(false, &mut answer).unwrap();
                    assert_eq!(give!(peer, answer), []);
                    assert!(!peer.wants_write());
                }
                1 => {
                    let mut update = Vec::new();
                    session.write_key_update(false, &mut update).unwrap();
                    assert_eq!(give!(peer, update), []);
                    assert!(!peer.wants_write());
                }
                _ => {
                    let mut update = Vec::new();
                    session.write_key_update(true, &mut update).unwrap();
                    assert_eq!(give!(peer, update), []);
                    // rustls sends its answer with the next data.
                    peer.writer().write_all(b"x").unwrap();
                    let (data, events) = open_all(session, &mut drain!(peer)).unwrap();
                    assert_eq!((data, events), (b"x".to_vec(), vec![Opened::KeyUpdate { respond: false }]));
                }
            }
        }
        peer.send_close_notify();
        assert_eq!(open_all(session, &mut drain!(peer)).unwrap().1, [Opened::CloseNotify]);
        let mut end = Vec::new();
        session.write_close_notify(&mut end).unwrap();
        peer.read_tls(&mut &end[..]).unwrap();
        assert!(peer.process_new_packets().unwrap().peer_has_closed());
    }};
}

#[test]
fn rustls_client_talks_to_our_server() {
    for suite in SUITES {
        let (client, server) = configs_with(suite);
        let mut peer = ClientConnection::new(client, name()).unwrap();
        let mut server = ServerHandshake::new(server).unwrap();
        let (mut input, mut output) = (Vec::new(), Vec::new());
        loop {
            input.extend(drain!(peer));
            let step = server.feed(&mut input, &mut output).unwrap();
            assert_eq!(give!(peer, std::mem::take(&mut output)), []);
            if step == Step::Done {
                break;
            }
        }
        assert!(!peer.is_handshaking());
        let Established { mut session, udp_secret, .. } = server.into_session().unwrap();
        assert_eq!(peer.export_keying_material([0; 32], LABEL, None), Ok(udp_secret));
        converse!(peer, session);
    }
}

#[test]
fn our_client_talks_to_a_rustls_server_that_sends_tickets() {
    for suite in SUITES {
        let (client, server) = configs_with(suite);
        let mut server = Arc::unwrap_or_clone(server);
        server.send_tls13_tickets = 4;
        server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
        let mut peer = ServerConnection::new(Arc::new(server)).unwrap();
        let mut client = ClientHandshake::new(client, name()).unwrap();
        let (mut input, mut output) = (Vec::new(), Vec::new());
        while client.feed(&mut input, &mut output).unwrap() == Step::NeedMore {
            assert_eq!(give!(peer, std::mem::take(&mut output)), []);
            input.extend(drain!(peer));
        }
        assert_eq!(give!(peer, output), []);
        let Established { mut session, udp_secret, .. } = client.into_session().unwrap();
        assert_eq!(peer.export_keying_material([0; 32], LABEL, None), Ok(udp_secret));
        let (_, events) = open_all(&mut session, &mut drain!(peer)).unwrap();
        assert!(!events.is_empty() && events.iter().all(|event| *event == Opened::Ignored), "{events:?}");
        converse!(peer, session);
    }
}

use super::super::content_type::{ALERT, APPLICATION_DATA, HANDSHAKE};
use super::super::seal::{REKEY_AFTER, SEALS_MAX};
use super::*;

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 31 + n / 251) as u8).collect()
}

/// Sends one payload each way and demands that it arrives.
fn assert_talk(a: &mut Session, b: &mut Session) {
    for _ in 0..2 {
        assert_eq!(open_all(b, &mut sealed(a, b"to b")).unwrap(), (b"to b".to_vec(), vec![]));
        assert_eq!(open_all(a, &mut sealed(b, b"to a")).unwrap(), (b"to a".to_vec(), vec![]));
    }
}

#[test]
fn every_edge_size_goes_through_in_both_directions_and_each_suite() {
    for suite in SUITES {
        let (mut client, mut server) = connected(configs_with(suite));
        for size in [1, 2, 15, 16, 17, 16_383, 16_384] {
            for _ in 0..2 {
                let mut record = sealed(&mut client, &bytes(size));
                assert_eq!(record.len(), RECORD_HEADER + size + RECORD_TAIL);
                assert_eq!(parse_header(&record), Ok(Some(record.len())));
                assert_eq!(server.open(&mut record), Ok(Opened::Data(RECORD_HEADER..RECORD_HEADER + size)));
                assert_eq!(record[RECORD_HEADER..RECORD_HEADER + size], bytes(size));
                (client, server) = (server, client);
            }
        }
        let mut empty = sealed(&mut client, &[]);
        assert_eq!(server.open(&mut empty), Ok(Opened::Ignored));
        let mut long = room(&client, &bytes(16_385));
        assert_eq!(client.seal(&mut long), Err(RecordError::BadLength(5 + 16_385 + 17)));
        assert_eq!(client.seal(&mut [0; 21]), Err(RecordError::BadLength(21)));
        assert_talk(&mut client, &mut server);
    }
}

#[test]
fn record_changed_anywhere_is_refused() {
    for (at, want) in [
        (0, RecordError::WrongType(APPLICATION_DATA ^ 1)),
        (1, RecordError::Forged),
        (2, RecordError::Forged),
        (3, RecordError::BadLength(5 + 100 + 17)),
        (4, RecordError::BadLength(5 + 100 + 17)),
        (5, RecordError::Forged),
        (104, RecordError::Forged),
        (105, RecordError::Forged),
        (106, RecordError::Forged),
        (121, RecordError::Forged),
    ] {
        let (mut client, mut server) = connected(configs());
        let mut record = sealed(&mut client, &bytes(100));
        record[at] ^= 1;
        assert_eq!(server.open(&mut record), Err(want), "byte {at}");
    }
}

#[test]
fn record_repeated_left_out_or_turned_back_is_refused() {
    let (mut client, mut server) = connected(configs());
    let record = sealed(&mut client, b"once");
    assert!(matches!(server.open(&mut record.clone()), Ok(Opened::Data(_))));
    assert_eq!(server.open(&mut record.clone()), Err(RecordError::Forged));

    let (mut client, mut server) = connected(configs());
    sealed(&mut client, b"left out");
    assert_eq!(server.open(&mut sealed(&mut client, b"second")), Err(RecordError::Forged));

    let (mut client, _server) = connected(configs());
    let mut record = sealed(&mut client, b"back");
    assert_eq!(client.open(&mut record), Err(RecordError::Forged));
}

#[test]
fn padding_is_taken_off_and_padding_alone_is_refused() {
    let (mut client, mut server) = connected(configs());
    // The inner type lies before the padding; what is sealed as type is then padding as well.
    let mut padded = sealed_as(&mut client, 0, &[b'a', 0, APPLICATION_DATA, 0, 0, 0]);
    assert_eq!(server.open(&mut padded), Ok(Opened::Data(5..7)));
    assert_eq!(padded[5..7], [b'a', 0]);
    let mut full = sealed_as(&mut client, 0, &[&bytes(16_383)[..], &[APPLICATION_DATA]].concat());
    assert_eq!(server.open(&mut full), Ok(Opened::Data(5..5 + 16_383)));
    let mut nothing = sealed_as(&mut client, 0, &[0; 9]);
    assert_eq!(server.open(&mut nothing), Err(RecordError::Unexpected));
}

#[test]
fn either_end_renews_its_key_without_asking_for_the_others() {
    for suite in SUITES {
        let (mut client, mut server) = connected(configs_with(suite));
        for _ in 0..3 {
            let mut out = Vec::new();
            client.write_key_update(false, &mut out).unwrap();
            assert_eq!(open_all(&mut server, &mut out).unwrap().1, [Opened::KeyUpdate { respond: false }]);
            assert!(!server.key_update_due());
            assert_talk(&mut client, &mut server);
            (client, server) = (server, client);
        }
    }
}

#[test]
fn asked_for_key_update_is_due_until_it_is_written() {
    let (mut client, mut server) = connected(configs());
    for _ in 0..3 {
        let mut out = Vec::new();
        client.write_key_update(true, &mut out).unwrap();
        assert_eq!(open_all(&mut server, &mut out).unwrap().1, [Opened::KeyUpdate { respond: true }]);
        assert!(server.key_update_due());
        assert_eq!(open_all(&mut client, &mut sealed(&mut server, b"queued before")).unwrap().0, b"queued before");
        let mut out = Vec::new();
        server.write_key_update(false, &mut out).unwrap();
        assert!(!server.key_update_due());
        assert_eq!(open_all(&mut client, &mut out).unwrap().1, [Opened::KeyUpdate { respond: false }]);
        assert_talk(&mut client, &mut server);
        (client, server) = (server, client);
    }
}

#[test]
fn old_key_is_refused_after_a_key_update() {
    let (mut client, mut server) = connected(configs());
    let (mut other, _) = connected(configs());
    let mut out = Vec::new();
    client.write_key_update(false, &mut out).unwrap();
    let mut stale = sealed(&mut client, b"next key");
    assert_eq!(server.open(&mut stale), Err(RecordError::Forged));
    assert_eq!(server.open(&mut sealed(&mut other, b"x")), Err(RecordError::Forged));
}

#[test]
fn key_update_falls_due_with_the_record_count_and_exhaustion_is_refused() {
    let (mut client, mut server) = connected(configs());
    client.directions_mut().0.sequence = REKEY_AFTER - 1;
    server.directions_mut().1.sequence = REKEY_AFTER - 1;
    assert!(!client.key_update_due());
    assert_talk(&mut client, &mut server);
    assert!(client.key_update_due() && !server.key_update_due());
    client.directions_mut().0.sequence = SEALS_MAX - 1;
    server.directions_mut().1.sequence = SEALS_MAX - 1;
    let mut out = Vec::new();
    client.write_key_update(false, &mut out).unwrap();
    open_all(&mut server, &mut out).unwrap();
    assert!(!client.key_update_due());
    assert_talk(&mut client, &mut server);

    client.directions_mut().0.sequence = SEALS_MAX;
    let mut record = room(&client, b"one too many");
    assert_eq!(client.seal(&mut record), Err(RecordError::KeyExhausted));
    let mut out = vec![7];
    assert_eq!(client.write_close_notify(&mut out), Err(RecordError::KeyExhausted));
    assert_eq!(out, [7]);
}

#[test]
fn handshake_messages_are_taken_whole_and_in_place_only() {
    const UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
    const TICKET: [u8; 6] = [4, 0, 0, 2, 9, 9];
    let updated = Ok(Opened::KeyUpdate { respond: false });
    let refused = Err(RecordError::Unexpected);
    for (content, at_client, at_server) in [
        (UPDATE.to_vec(), updated.clone(), updated.clone()),
        (TICKET.to_vec(), Ok(Opened::Ignored), refused.clone()),
        ([TICKET, TICKET].concat(), Ok(Opened::Ignored), refused.clone()),
        ([&TICKET[..], &UPDATE].concat(), updated, refused.clone()),
        ([&UPDATE[..], &TICKET].concat(), refused.clone(), refused.clone()),
        ([UPDATE, UPDATE].concat(), refused.clone(), refused.clone()),
        ([&TICKET[..], &[4]].concat(), refused.clone(), refused.clone()),
        (UPDATE[..4].to_vec(), refused.clone(), refused.clone()),
        (vec![24, 0, 0, 1, 2], refused.clone(), refused.clone()),
        (vec![24, 0, 0, 0], refused.clone(), refused.clone()),
        (vec![24, 0, 0, 2, 0, 0], refused.clone(), refused.clone()),
        (vec![1, 0, 0, 0], refused.clone(), refused.clone()),
        (vec![], refused.clone(), refused.clone()),
    ] {
        let (mut client, mut server) = connected(configs());
        let mut record = sealed_as(&mut server, HANDSHAKE, &content);
        assert_eq!(client.open(&mut record), at_client, "client {content:?}");
        let (mut client, mut server) = connected(configs());
        let mut record = sealed_as(&mut client, HANDSHAKE, &content);
        assert_eq!(server.open(&mut record), at_server, "server {content:?}");
        drop(client);
    }
}

#[test]
fn alerts_tell_the_orderly_end_from_the_others() {
    for (content, want) in [
        (&[1, 0][..], Ok(Opened::CloseNotify)),
        (&[2, 20], Ok(Opened::Alert(20))),
        (&[1, 90], Ok(Opened::Ignored)),
        (&[2], Err(RecordError::Unexpected)),
        (&[2, 0, 0], Err(RecordError::Unexpected)),
    ] {
        let (mut client, mut server) = connected(configs());
        assert_eq!(server.open(&mut sealed_as(&mut client, ALERT, content)), want, "{content:?}");
    }
    let (mut client, mut server) = connected(configs());
    let mut out = Vec::new();
    client.write_alert(RecordError::Forged.alert(), &mut out).unwrap();
    client.write_close_notify(&mut out).unwrap();
    assert_eq!(open_all(&mut server, &mut out).unwrap().1, [Opened::Alert(20), Opened::CloseNotify]);
    assert_eq!(server.open(&mut sealed_as(&mut client, 20, &[1])), Err(RecordError::Unexpected));
}

#[test]
fn records_without_data_are_bounded_and_data_starts_the_count_anew() {
    let max = Session::QUIET_RECORDS_MAX;
    let (mut client, mut server) = connected(configs());
    for _ in 0..3 {
        for n in 0..max {
            let mut out = Vec::new();
            match n % 2 {
                0 => out = sealed(&mut client, b""),
                _ => client.write_key_update(false, &mut out).unwrap(),
            }
            open_all(&mut server, &mut out).unwrap();
        }
        assert_talk(&mut client, &mut server);
    }
    for _ in 0..max {
        open_all(&mut server, &mut sealed(&mut client, b"")).unwrap();
    }
    let mut out = Vec::new();
    client.write_key_update(false, &mut out).unwrap();
    assert_eq!(open_all(&mut server, &mut out), Err(RecordError::TooManyQuiet));
}

#[test]
fn released_contexts_are_built_again_on_use() {
    let (mut client, mut server) = connected(configs());
    assert_eq!((client.contexts(), server.contexts()), ((false, false), (false, false)));
    assert_talk(&mut client, &mut server);
    assert_eq!(client.contexts(), (true, true));
    client.release_context();
    assert_eq!(client.contexts(), (false, false));
    assert_talk(&mut client, &mut server);
}

#[test]
fn plaintext_records_have_a_header_and_no_tail() {
    let (mut a, mut b) = (Session::plaintext(), Session::plaintext());
    assert!(a.is_plaintext() && a.tail() == 0);
    assert_talk(&mut a, &mut b);
    for size in [1, 16_384] {
        let mut record = sealed(&mut a, &bytes(size));
        assert_eq!(record.len(), RECORD_HEADER + size);
        assert_eq!(parse_header(&record), Ok(Some(record.len())));
        assert_eq!(b.open(&mut record), Ok(Opened::Data(5..5 + size)));
    }
    assert_eq!(b.open(&mut sealed(&mut a, b"")), Ok(Opened::Ignored));
    assert_eq!(a.seal(&mut room(&Session::plaintext(), &bytes(16_385))), Err(RecordError::BadLength(5 + 16_385)));
    assert_eq!(a.seal(&mut [0; 4]), Err(RecordError::BadLength(4)));
    let mut out = Vec::new();
    a.write_key_update(true, &mut out).unwrap();
    a.write_close_notify(&mut out).unwrap();
    a.write_alert(20, &mut out).unwrap();
    assert!(out.is_empty() && !a.key_update_due());
}

#[test]
fn neither_mode_takes_the_others_records() {
    let (mut client, mut server) = connected(configs());
    let mut plaintext = Session::plaintext();
    let mut record = sealed(&mut client, b"sealed");
    assert_eq!(first_byte(record[0]), FirstByte::Garbage);
    assert_eq!(plaintext.open(&mut record), Err(RecordError::WrongType(23)));
    let mut record = sealed(&mut plaintext, b"in the clear");
    assert_eq!(first_byte(record[0]), FirstByte::Plaintext);
    assert_eq!(server.open(&mut record), Err(RecordError::WrongType(0x50)));
}

#[test]
fn headers_are_read_as_soon_as_they_tell() {
    for (bytes, want) in [
        (&[][..], Ok(None)),
        (&[23], Ok(None)),
        (&[23, 3, 3, 0], Ok(None)),
        (&[23, 3, 3, 0, 17], Ok(Some(22))),
        (&[23, 3, 1, 0x41, 0x00], Ok(Some(RECORD_MAX))),
        (&[23, 3, 3, 0x41, 0x01], Err(RecordError::BadLength(16_641))),
        (&[23, 3, 3, 0, 16], Err(RecordError::BadLength(16))),
        (&[0x50, 3, 3, 0, 0], Ok(Some(5))),
        (&[0x50, 3, 3, 0x40, 0], Ok(Some(5 + 16_384))),
        (&[0x50, 3, 3, 0x40, 1], Err(RecordError::BadLength(16_385))),
        (&[22], Err(RecordError::WrongType(22))),
        (b"G", Err(RecordError::WrongType(b'G'))),
    ] {
        assert_eq!(parse_header(bytes), want, "{bytes:?}");
    }
}

#[test]
fn open_takes_exactly_one_record() {
    let (mut client, mut server) = connected(configs());
    let record = sealed(&mut client, b"whole");
    for mut bytes in [record[..record.len() - 1].to_vec(), [&record[..], &[0]].concat(), record[..4].to_vec()] {
        assert_eq!(server.open(&mut bytes), Err(RecordError::BadLength(bytes.len())));
    }
    assert_eq!(server.open(&mut []), Err(RecordError::WrongType(0)));
    assert_eq!(Session::plaintext().open(&mut [0x50, 3, 3, 0, 1]), Err(RecordError::BadLength(5)));
    assert!(server.open(&mut record.clone()).is_ok());
}

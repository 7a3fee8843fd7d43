//! Handshakes after the first one, with a ticket.

use std::time::Duration;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::ProducesTickets;

use super::*;
use crate::record::tickets::SHOWN_MAX;
use crate::time::Instant;

/// A relay that gives tickets, and the pin that leads to it.
struct Place {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Place {
    fn new() -> Self {
        let (certificate, key) = identity();
        Self { certificate, key }
    }

    /// A process of it, which understands the tickets of others with the same `tickets`.
    fn relay(&self, tickets: &Arc<dyn ProducesTickets>) -> Arc<ServerConfig> {
        server_config_with_tickets(vec![self.certificate.clone()], self.key.clone_key(), tickets.clone()).unwrap()
    }

    /// One that gives none.
    fn relay_without(&self) -> Arc<ServerConfig> {
        server_config(vec![self.certificate.clone()], self.key.clone_key()).unwrap()
    }

    fn caller(&self) -> Arc<ClientConfig> {
        client_config(Trust::Pin(fingerprint(&self.certificate))).unwrap()
    }
}

/// Both ends after a handshake, and what the relay sends first: its ticket.
fn call_at(
    now: Instant,
    caller: &Arc<ClientConfig>,
    tickets: &Arc<Tickets>,
    relay: &Arc<ServerConfig>,
) -> Result<(Established, Established, Vec<u8>), HandshakeError> {
    let mut client = ClientHandshake::resuming(caller.clone(), name(), tickets.clone(), now);
    let mut server = ServerHandshake::new(relay.clone())?;
    let (mut up, mut down) = (Vec::new(), Vec::new());
    loop {
        let near = client.feed(&mut down, &mut up)?;
        let far = server.feed(&mut up, &mut down)?;
        if (near, far) == (Step::Done, Step::Done) {
            return Ok((client.into_session()?, server.into_session()?, down));
        }
    }
}

fn call(
    caller: &Arc<ClientConfig>,
    tickets: &Arc<Tickets>,
    relay: &Arc<ServerConfig>,
) -> Result<(Established, Established, Vec<u8>), HandshakeError> {
    call_at(Instant::ZERO, caller, tickets, relay)
}

fn ticketer() -> Arc<dyn ProducesTickets> {
    Ticketer::new().unwrap()
}

/// A call whose ticket arrives. Whether an earlier one was taken.
fn resumes(caller: &Arc<ClientConfig>, tickets: &Arc<Tickets>, relay: &Arc<ServerConfig>) -> bool {
    resumes_at(Instant::ZERO, caller, tickets, relay)
}

fn resumes_at(now: Instant, caller: &Arc<ClientConfig>, tickets: &Arc<Tickets>, relay: &Arc<ServerConfig>) -> bool {
    let (mut near, mut far, mut ticket) = call_at(now, caller, tickets, relay).unwrap();
    assert_eq!(near.resumed, far.resumed);
    assert_eq!(near.udp_secret, far.udp_secret);
    assert_eq!(open_all(&mut near.session, &mut ticket), Ok((Vec::new(), vec![Opened::Ignored])));
    let mut record = sealed(&mut far.session, b"down");
    assert_eq!(open_all(&mut near.session, &mut record), Ok((b"down".to_vec(), Vec::new())));
    let mut record = sealed(&mut near.session, b"up");
    assert_eq!(open_all(&mut far.session, &mut record), Ok((b"up".to_vec(), Vec::new())));
    near.resumed
}

#[test]
fn each_call_after_the_first_shows_the_last_ones_ticket() {
    let (place, tickets, keys) = (Place::new(), Arc::default(), ticketer());
    let caller = place.caller();
    let resumed = [(); 4].map(|()| resumes(&caller, &tickets, &place.relay(&keys)));
    assert_eq!(resumed, [false, true, true, true]);
}

#[test]
fn each_connection_has_secrets_of_its_own() {
    let (place, tickets, keys) = (Place::new(), Arc::default(), ticketer());
    let (caller, relay) = (place.caller(), place.relay(&keys));
    let secrets = [(); 3].map(|()| {
        let (mut near, _, mut ticket) = call(&caller, &tickets, &relay).unwrap();
        open_all(&mut near.session, &mut ticket).unwrap();
        near.udp_secret
    });
    assert!(secrets[0] != secrets[1] && secrets[1] != secrets[2] && secrets[0] != secrets[2]);
}

#[test]
fn ticket_is_shown_again_only_where_a_call_was_cut_off_and_not_often() {
    let (place, tickets, keys) = (Place::new(), Arc::<Tickets>::default(), ticketer());
    let (caller, relay) = (place.caller(), place.relay(&keys));
    assert!(!resumes(&caller, &tickets, &relay));
    let begin = || ClientHandshake::resuming(caller.clone(), name(), tickets.clone(), Instant::ZERO);
    for _ in 0..10 {
        drop(begin());
    }
    let cut_off = || begin().feed(&mut Vec::new(), &mut Vec::new()).unwrap();
    for _ in 1..SHOWN_MAX {
        cut_off();
    }
    assert!(resumes(&caller, &tickets, &relay), "calls that found nobody used it up");
    for _ in 0..SHOWN_MAX {
        assert!(tickets.any());
        cut_off();
    }
    assert!(!tickets.any());
    assert!(!resumes(&caller, &tickets, &relay));
}

#[test]
fn relay_proves_again_who_it_is_a_week_after_it_did_however_often_it_was_met_since() {
    let (place, tickets, keys) = (Place::new(), Arc::<Tickets>::default(), ticketer());
    let (caller, relay) = (place.caller(), place.relay(&keys));
    let resumed = [0, 3, 6, 7, 9, 13, 14].map(|day: u64| {
        let now = Instant::ZERO + Duration::from_secs(day * 24 * 60 * 60);
        resumes_at(now, &caller, &tickets, &relay)
    });
    assert_eq!(resumed, [false, true, true, false, true, true, false]);
}

#[test]
fn relay_that_cannot_read_a_ticket_shakes_hands_as_with_a_stranger() {
    let (place, tickets) = (Place::new(), Arc::default());
    let caller = place.caller();
    assert!(!resumes(&caller, &tickets, &place.relay(&ticketer())));
    assert!(!resumes(&caller, &tickets, &place.relay(&ticketer())));
}

#[test]
fn relay_of_another_identity_is_not_believed_for_a_ticket() {
    let (place, other, tickets, keys) = (Place::new(), Place::new(), Arc::default(), ticketer());
    let caller = place.caller();
    assert!(!resumes(&caller, &tickets, &place.relay(&keys)));
    // It cannot read the ticket, and has to prove who it is.
    let error = call(&caller, &tickets, &other.relay(&ticketer())).unwrap_err();
    assert!(matches!(error, HandshakeError::WrongPin), "{error}");
}

#[test]
fn ticket_of_a_relay_known_by_one_pin_is_not_shown_by_a_caller_with_another() {
    let (place, other, tickets, keys) = (Place::new(), Place::new(), Arc::default(), ticketer());
    assert!(!resumes(&place.caller(), &tickets, &place.relay(&keys)));
    let error = call(&other.caller(), &tickets, &place.relay(&keys)).unwrap_err();
    assert!(matches!(error, HandshakeError::WrongPin), "{error}");
}

#[test]
fn ticket_is_read_before_data_only_and_one_that_is_none_ends_the_connection() {
    let (place, tickets) = (Place::new(), Arc::<Tickets>::default());
    let relay = place.relay_without();
    const NO_TICKET: &[u8] = &[4, 0, 0, 1, 9];
    let (mut near, mut far, _) = call(&place.caller(), &tickets, &relay).unwrap();
    let mut record = sealed_as(&mut far.session, content_type::HANDSHAKE, NO_TICKET);
    assert_eq!(open_all(&mut near.session, &mut record), Err(RecordError::Unexpected));
    let (mut near, mut far, _) = call(&place.caller(), &tickets, &relay).unwrap();
    let mut records = sealed(&mut far.session, b"data");
    records.extend(sealed_as(&mut far.session, content_type::HANDSHAKE, NO_TICKET));
    assert_eq!(open_all(&mut near.session, &mut records), Ok((b"data".to_vec(), vec![Opened::Ignored])));
    assert!(!tickets.any());
}

#[test]
fn caller_without_a_place_for_tickets_passes_them_over() {
    let (place, keys) = (Place::new(), ticketer());
    let relay = place.relay(&keys);
    for _ in 0..2 {
        let mut client = ClientHandshake::new(place.caller(), name()).unwrap();
        let mut server = ServerHandshake::new(relay.clone()).unwrap();
        let (mut up, mut down) = (Vec::new(), Vec::new());
        while (client.feed(&mut down, &mut up).unwrap(), server.feed(&mut up, &mut down).unwrap())
            != (Step::Done, Step::Done)
        {}
        let (mut near, far) = (client.into_session().unwrap(), server.into_session().unwrap());
        assert!(!near.resumed && !far.resumed);
        assert_eq!(open_all(&mut near.session, &mut down), Ok((Vec::new(), vec![Opened::Ignored])));
    }
}

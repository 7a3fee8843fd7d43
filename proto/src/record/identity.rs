//! What a caller's certificate says of its holder. The chain is verified by TLS; this only reads.
//!
//! ```text
//! subjectAltName  URI isthmus:mediator:ID                       a mediator
//!                 URI isthmus:terminal:NAME                     a terminal, with, as separate URIs,
//!                 URI isthmus:mediators:GLOB                    which mediators it may use
//!                 URI isthmus:allow:OP,OP                       which operations   (absent: all)
//!                 URI isthmus:to:CIDR[:PORTS],CIDR[:PORTS]      which destinations (absent: everywhere)
//! ```
//!
//! The common name is not looked at: it has no type, so that a certificate made for something else could be taken for
//! a mediator's (RFC 9525 section 2).

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::id::MediatorId;

/// Longest name of a terminal in bytes.
const NAME_LEN_MAX: usize = 64;

/// Whose certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A mediator's.
    Mediator(MediatorId),
    /// A terminal's.
    Terminal(String),
}

/// A certificate, read. Rights are texts: what they mean is the relay's affair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// Its holder.
    pub holder: Holder,
    /// Pattern of the mediators that a terminal may use.
    pub mediators: Option<String>,
    /// A terminal's operations, with commas between; none for all.
    pub allow: Option<String>,
    /// A terminal's destinations, with commas between; none for everywhere.
    pub to: Option<String>,
    /// Begin of its validity, in seconds since 1970.
    pub issued: u64,
    /// End of its validity, in seconds since 1970.
    pub expires: u64,
}

/// The certificate tells nobody; each text says what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    /// It cannot be read.
    #[error("the certificate cannot be read; give an X.509 version 3 certificate")]
    Unreadable,
    /// It names nobody.
    #[error(
        "the certificate names no mediator and no terminal; put a subjectAltName URI isthmus:mediator:ID or \
         isthmus:terminal:NAME into it"
    )]
    Nobody,
    /// It names several.
    #[error(
        "the certificate names more than one holder or right of a kind; keep one subjectAltName URI isthmus:… of each"
    )]
    Several,
    /// A name is not one.
    #[error("the certificate's mediator or terminal has a name that cannot be; see the naming rules")]
    BadName,
}

impl Certified {
    /// Reads a certificate's DER.
    ///
    /// # Errors
    /// [`BadIdentity`].
    pub fn read(der: &[u8]) -> Result<Self, BadIdentity> {
        let certificate = CertificateDer::from(der);
        let parsed = EndEntityCert::try_from(&certificate).map_err(|_| BadIdentity::Unreadable)?;
        let (issued, expires) = validity(der).ok_or(BadIdentity::Unreadable)?;
        let mut found = Found::default();
        for text in parsed.valid_uri_names().filter_map(|uri| uri.strip_prefix("isthmus:")) {
            found.take(text)?;
        }
        let holder = match (found.mediator, found.terminal) {
            (Some(id), None) => Holder::Mediator(id.parse().map_err(|_| BadIdentity::BadName)?),
            (None, Some(name)) if is_terminal_name(name) => Holder::Terminal(name.to_owned()),
            (None, Some(_)) => return Err(BadIdentity::BadName),
            (None, None) => return Err(BadIdentity::Nobody),
            (Some(_), Some(_)) => return Err(BadIdentity::Several),
        };
        let text = |part: Option<&str>| part.map(str::to_owned);
        Ok(Self {
            holder,
            mediators: text(found.mediators),
            allow: text(found.allow),
            to: text(found.to),
            issued,
            expires,
        })
    }
}

/// The URIs of a certificate, by their kind.
#[derive(Default)]
struct Found<'a> {
    mediator: Option<&'a str>,
    terminal: Option<&'a str>,
    mediators: Option<&'a str>,
    allow: Option<&'a str>,
    to: Option<&'a str>,
}

impl<'a> Found<'a> {
    /// Takes what stands behind `isthmus:`. A kind of a later version that limits a right must not be passed over.
    fn take(&mut self, text: &'a str) -> Result<(), BadIdentity> {
        let (kind, value) = text.split_once(':').ok_or(BadIdentity::BadName)?;
        let place = match kind {
            "mediator" => &mut self.mediator,
            "terminal" => &mut self.terminal,
            "mediators" => &mut self.mediators,
            "allow" => &mut self.allow,
            "to" => &mut self.to,
            _ => return Err(BadIdentity::BadName),
        };
        if place.replace(value).is_some() { Err(BadIdentity::Several) } else { Ok(()) }
    }
}

fn is_terminal_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len()) && !name.contains(char::is_control)
}

/// The validity of a certificate (RFC 5280 section 4.1): both ends, in seconds since 1970.
fn validity(der: &[u8]) -> Option<(u64, u64)> {
    let mut certificate = Der(Der(der).expect(SEQUENCE)?);
    let mut body = Der(certificate.expect(SEQUENCE)?);
    let first = body.next()?;
    if first.0 == VERSION {
        body.expect(INTEGER)?;
    }
    // Signature algorithm, issuer.
    body.expect(SEQUENCE)?;
    body.expect(SEQUENCE)?;
    let mut validity = Der(body.expect(SEQUENCE)?);
    Some((time(validity.next()?)?, time(validity.next()?)?))
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// DER values in a row (X.690): tag, length, content.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => rest.split_first().map(|(&low, rest)| (usize::from(low), rest))?,
            0x82 => rest.split_first_chunk().map(|(&length, rest)| (usize::from(u16::from_be_bytes(length)), rest))?,
            // No certificate of a handshake is that long.
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == wanted).map(|(_, content)| content)
    }
}

/// `YYMMDDHHMMSSZ` (years 1950 to 2049) or `YYYYMMDDHHMMSSZ`; before 1970 counts as 1970.
fn time((tag, text): (u8, &[u8])) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 12) => {
            let year: i64 = text[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (GENERALIZED_TIME, 14) => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse::<i64>().ok();
    let (month, day) = (part(0)?, part(2)?);
    let seconds = (part(4)? * 60 + part(6)?) * 60 + part(8)?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    Some(u64::try_from(days_since_1970(year, month, day) * 86_400 + seconds).unwrap_or(0))
}

/// The Gregorian calendar, counted from March so that a leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType, date_time_ymd};

    use super::*;

    fn certificate(uris: &[&str], until: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.not_before = date_time_ymd(2024, 2, 29);
        params.not_after = date_time_ymd(until, 12, 31);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn holder_rights_and_dates_are_read() {
        let uris =
            ["https://other.test/", "isthmus:terminal:desk", "isthmus:mediators:cpe-*", "isthmus:to:10.0.0.0/8:22"];
        let read = Certified::read(&certificate(&uris, 2048)).unwrap();
        assert_eq!(read.holder, Holder::Terminal("desk".into()));
        assert_eq!((read.mediators.as_deref(), read.to.as_deref()), (Some("cpe-*"), Some("10.0.0.0/8:22")));
        assert_eq!(read.allow, None);
        assert_eq!((read.issued, read.expires), (1_709_164_800, 2_492_985_600));
        // Beyond 2049 the date has another form.
        let read = Certified::read(&certificate(&["isthmus:mediator:cpe-1"], 2100)).unwrap();
        assert_eq!((read.holder, read.expires), (Holder::Mediator("cpe-1".parse().unwrap()), 4_133_894_400));
    }

    #[test]
    fn what_names_nobody_or_too_many_is_refused() {
        for (uris, why) in [
            (&["https://isthmus:mediator:x/"][..], BadIdentity::Nobody),
            (&["isthmus:mediator:a", "isthmus:terminal:a"], BadIdentity::Several),
            (&["isthmus:mediator:a", "isthmus:mediator:b"], BadIdentity::Several),
            (&["isthmus:mediator:a/b"], BadIdentity::BadName),
            (&["isthmus:terminal:"], BadIdentity::BadName),
            (&["isthmus:terminal:a", "isthmus:hours:8-17"], BadIdentity::BadName),
        ] {
            assert_eq!(Certified::read(&certificate(uris, 2048)), Err(why), "{uris:?}");
        }
    }

    #[test]
    fn damaged_certificates_are_unreadable_wherever_they_are_cut() {
        let whole = certificate(&["isthmus:mediator:a"], 2048);
        for length in 0..whole.len() {
            assert_eq!(Certified::read(&whole[..length]), Err(BadIdentity::Unreadable), "{length}");
            assert!(length > 120 || validity(&whole[..length]).is_none());
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (date, days) in [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2000, 3, 1), 11_017), ((2100, 3, 1), 47_541)]
        {
            assert_eq!(days_since_1970(date.0, date.1, date.2), days, "{date:?}");
        }
    }
}

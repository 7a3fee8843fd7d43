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

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::id::MediatorId;

/// What our URIs begin with.
const SCHEME: &str = "isthmus:";

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
    /// Its names are damaged: what cannot be read could be a limit.
    #[error(
        "the certificate's subjectAltName is damaged; have it issued again, with each URI in plain text and isthmus: in \
         small letters"
    )]
    Damaged,
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
        EndEntityCert::try_from(&certificate).map_err(|_| BadIdentity::Unreadable)?;
        let body = Body::read(der).ok_or(BadIdentity::Unreadable)?;
        let mut found = Found::default();
        for uri in body.uris()? {
            if let Some(text) = ours(uri)? {
                found.take(text)?;
            }
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
            issued: body.issued,
            expires: body.expires,
        })
    }
}

/// By what a certificate is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The SHA-256 of what its authority signed (the TBSCertificate), without the signature: of an ECDSA one there are
    /// two that are good, the second made from the first by anybody.
    pub signed: [u8; 32],
    /// End of its validity, in seconds since 1970.
    pub expires: u64,
}

impl Known {
    /// Of a certificate's DER; `None` for what is none.
    pub fn read(der: &[u8]) -> Option<Self> {
        let body = Body::read(der)?;
        let mut signed = [0; 32];
        signed.copy_from_slice(digest(&SHA256, body.signed).as_ref());
        Some(Self { signed, expires: body.expires })
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

/// What stands behind `isthmus:` in a URI; `None` for a URI of somebody else.
///
/// What could be one of ours if it were not damaged is no other's: passed over, a limit would be lost.
fn ours(uri: &[u8]) -> Result<Option<&str>, BadIdentity> {
    let uri = std::str::from_utf8(uri).map_err(|_| BadIdentity::Damaged)?;
    if uri.contains(char::is_control) {
        return Err(BadIdentity::Damaged);
    }
    if let Some(text) = uri.strip_prefix(SCHEME) {
        return Ok(Some(text));
    }
    // A scheme's letters may be of either case (RFC 3986 section 3.1).
    let start = uri.trim_start().get(..SCHEME.len());
    if start.is_some_and(|start| start.eq_ignore_ascii_case(SCHEME)) { Err(BadIdentity::Damaged) } else { Ok(None) }
}

fn is_terminal_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len()) && !name.contains(char::is_control)
}

/// The parts of a certificate that count here (RFC 5280 section 4.1).
struct Body<'a> {
    /// What its authority signed, tag and length included.
    signed: &'a [u8],
    /// Both ends of its validity, in seconds since 1970.
    issued: u64,
    expires: u64,
    /// Its extensions in a row.
    extensions: Der<'a>,
}

impl<'a> Body<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let whole = Der(der).expect(SEQUENCE)?;
        let mut certificate = Der(whole);
        let mut body = Der(certificate.expect(SEQUENCE)?);
        let signed = &whole[..whole.len() - certificate.0.len()];
        let first = body.next()?;
        if first.0 == VERSION {
            body.expect(INTEGER)?;
        }
        // Signature algorithm, issuer.
        body.expect(SEQUENCE)?;
        body.expect(SEQUENCE)?;
        let mut validity = Der(body.expect(SEQUENCE)?);
        let (issued, expires) = (time(validity.next()?)?, time(validity.next()?)?);
        // Subject, its key.
        body.expect(SEQUENCE)?;
        body.expect(SEQUENCE)?;
        let mut extensions = Der(&[]);
        while !body.0.is_empty() {
            // Unique identifiers may stand before them.
            if let (EXTENSIONS, content) = body.next()? {
                extensions = Der(Der(content).expect(SEQUENCE)?);
            }
        }
        Some(Self { signed, issued, expires, extensions })
    }

    /// The URIs of its subjectAltName, as they are.
    fn uris(&self) -> Result<Vec<&'a [u8]>, BadIdentity> {
        let mut extensions = Der(self.extensions.0);
        let mut names: Option<&[u8]> = None;
        while !extensions.0.is_empty() {
            let mut extension = Der(extensions.expect(SEQUENCE).ok_or(BadIdentity::Damaged)?);
            if extension.expect(OBJECT_ID).ok_or(BadIdentity::Damaged)? != SUBJECT_ALT_NAME {
                continue;
            }
            let value = match extension.next() {
                Some((BOOLEAN, _)) => extension.expect(OCTETS),
                Some((OCTETS, value)) => Some(value),
                _ => None,
            };
            let value = value.and_then(|value| Der(value).only(SEQUENCE)).ok_or(BadIdentity::Damaged)?;
            if names.replace(value).is_some() {
                return Err(BadIdentity::Damaged);
            }
        }
        let mut names = Der(names.unwrap_or_default());
        let mut uris = Vec::new();
        while !names.0.is_empty() {
            match names.next().ok_or(BadIdentity::Damaged)? {
                (GENERAL_NAME_URI, uri) => uris.push(uri),
                (tag, _) if GENERAL_NAMES.contains(&tag) => {}
                _ => return Err(BadIdentity::Damaged),
            }
        }
        Ok(uris)
    }
}

const SEQUENCE: u8 = 0x30;
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const GENERAL_NAME_URI: u8 = 0x86;
/// The other kinds of names, primitive or constructed (RFC 5280 section 4.2.1.6).
const GENERAL_NAMES: [u8; 8] = [0xa0, 0x81, 0x82, 0xa3, 0xa4, 0xa5, 0x87, 0x88];

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

    /// The only value, of this tag.
    fn only(mut self, wanted: u8) -> Option<&'a [u8]> {
        self.expect(wanted).filter(|_| self.0.is_empty())
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
            assert!(Body::read(&whole[..length]).is_none());
        }
    }

    /// A certificate whose second URI was `isthmus:to:10.0.0.0/8`, with these bytes in its place.
    fn damaged(uri: &[u8; 21]) -> Result<Certified, BadIdentity> {
        let mut der = certificate(&["isthmus:terminal:desk", "isthmus:to:10.0.0.0/8", "isthmus:mediators:*"], 2048);
        let at = der.windows(21).position(|bytes| bytes == b"isthmus:to:10.0.0.0/8").unwrap();
        der[at..at + 21].copy_from_slice(uri);
        Certified::read(&der)
    }

    #[test]
    fn damaged_names_are_refused_rather_than_passed_over() {
        assert_eq!(damaged(b"isthmus:to:10.0.0.0/9").unwrap().to.as_deref(), Some("10.0.0.0/9"));
        // Somebody else's.
        assert_eq!(damaged(b"https://other.test/10").unwrap().to, None);
        for uri in [
            b"isthmus:to:10.0.0.0/\xff",
            b"\xffsthmus:to:10.0.0.0/8",
            b"isthmus:to:10.0.0\0\0/8",
            b"Isthmus:to:10.0.0.0/8",
            b" isthmus:to:10.0.0.0/",
        ] {
            assert_eq!(damaged(uri), Err(BadIdentity::Damaged), "{}", String::from_utf8_lossy(uri));
        }
    }

    #[test]
    fn damaged_list_of_names_is_refused_though_those_before_the_damage_are_whole() {
        let whole = certificate(&["isthmus:mediator:a", "isthmus:to:10.0.0.0/8"], 2048);
        let at = whole.windows(11).position(|bytes| bytes == b"isthmus:to:").unwrap() - 2;
        // No kind of name, a name of no end, and one that goes beyond the list.
        for (offset, byte) in [(0, 0x99), (1, 0xff), (1, 0x7f)] {
            let mut der = whole.clone();
            der[at + offset] = byte;
            assert_eq!(Certified::read(&der), Err(BadIdentity::Damaged), "{offset} {byte:#x}");
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

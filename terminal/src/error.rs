//! Why something did not work: sorted by who can cure it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::Code;
use isthmus_proto::record::HandshakeError;

/// An error of a connection to a relay, or of one request. Its text says cause and cure.
///
/// Later versions may add variants, and fields to them.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The relay or the mediator refused one request; the connection is as good as before.
    #[error("{0}")]
    Refused(Code),
    /// The relay ended the connection, or refused it at its start.
    #[error("the relay says: {code}{}{}", detail(*.code, .text), cure(*.code))]
    #[non_exhaustive]
    Goodbye {
        /// Why.
        code: Code,
        /// More about it; may be empty.
        text: String,
        /// How long to wait before the next try; zero when the relay did not say.
        retry_after: Duration,
    },
    /// No secure connection with the relay.
    #[error(transparent)]
    Tls(#[from] HandshakeError),
    /// The system refused, before the connection stood.
    #[error("{context}: {source}")]
    #[non_exhaustive]
    Io {
        /// What was tried.
        context: String,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// The settings cannot be used.
    #[error("{0}")]
    Config(String),
    /// A connection that stood is gone, and with it the stream or the request that met this error. The
    /// handle comes back by itself (see [`crate::Config::reconnect`]), so that a new request may work.
    #[error("the connection to the relay ended: {code}{}", detail(*.code, .text))]
    #[non_exhaustive]
    Lost {
        /// Why.
        code: Code,
        /// More about it; may be empty.
        text: String,
    },
    /// The connection was lost and did not come back while a request waited for it, for
    /// [`crate::Config::link_timeout`]. It is still tried.
    #[error("not connected to the relay for {waited:?}, trying again: {cause}")]
    #[non_exhaustive]
    NotConnected {
        /// How long the request waited.
        waited: Duration,
        /// Why the last try failed, or how the connection was lost.
        cause: Box<Error>,
    },
    /// This end has closed the connection.
    #[error("the connection to the relay was closed here")]
    Closed,
}

impl Error {
    /// The typed reason, where there is one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::NotConnected { cause, .. } => cause.code(),
            Self::Refused(code) | Self::Goodbye { code, .. } | Self::Lost { code, .. } => Some(*code),
            Self::Tls(_) => Some(Code::TlsFailed),
            Self::Io { .. } => Some(Code::ConnectionLost),
            Self::Closed => Some(Code::Closed),
            Self::Config(_) => None,
        }
    }

    /// Whether a later try with the same settings may work.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused(code) | Self::Goodbye { code, .. } => {
                matches!(code, Code::MediatorAway | Code::Draining | Code::Overloaded | Code::HandshakeTimeout)
                    || matches!(code, Code::Silent | Code::ConnectionLost | Code::PeerClosed | Code::Killed)
            }
            Self::Io { .. } | Self::Lost { .. } | Self::NotConnected { .. } => true,
            Self::Tls(error) => matches!(error, HandshakeError::Other(_)),
            Self::Config(_) | Self::Closed => false,
        }
    }

    /// How long the relay asked to be left alone; zero when it did not.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Goodbye { retry_after, .. } => *retry_after,
            Self::NotConnected { cause, .. } => cause.retry_after(),
            _ => Duration::ZERO,
        }
    }

    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        Self::Io { context: context.into(), source: Arc::new(source) }
    }

    pub(crate) fn protocol(error: impl std::fmt::Display) -> Self {
        Self::Lost { code: Code::ProtocolError, text: error.to_string() }
    }
}

/// What a terminal can do where the code's own text, which is for both ends, cannot tell.
fn cure(code: Code) -> &'static str {
    match code {
        Code::TokenMismatch => {
            "; a terminal's token comes from `isthmus-relay token --terminal NAME --mediators GLOB`, with a GLOB that \
             names this mediator; a mediator's own token is no good here"
        }
        Code::BadToken => "; take it whole from `isthmus-relay token`, run with that relay's --state directory",
        Code::TokenExpired => ": `isthmus-relay token --terminal NAME` makes one, for 30 days or --ttl",
        Code::MediatorAway => "; `isthmus list` names those that are; check the mediator's name and its isthmus-agent",
        _ => "",
    }
}

/// More than the code's own text says, if there is more.
fn detail(code: Code, text: &str) -> String {
    if text.is_empty() || text == code.text() { String::new() } else { format!(" ({text})") }
}

impl From<Error> for io::Error {
    /// Keeps the [`Error`] as the inner one.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Refused(code) => kind_of(*code),
            Error::Goodbye { .. } | Error::Lost { .. } => io::ErrorKind::ConnectionAborted,
            Error::NotConnected { .. } => io::ErrorKind::NotConnected,
            Error::Tls(_) => io::ErrorKind::InvalidData,
            Error::Io { source, .. } => source.kind(),
            Error::Config(_) => io::ErrorKind::InvalidInput,
            Error::Closed => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

/// The kind that `std` has for a code.
pub(crate) fn kind_of(code: Code) -> io::ErrorKind {
    match code {
        Code::AddressInUse | Code::NoFreePort => io::ErrorKind::AddrInUse,
        Code::AddressNotLocal => io::ErrorKind::AddrNotAvailable,
        Code::Privileged | Code::Denied | Code::NotPermitted => io::ErrorKind::PermissionDenied,
        Code::Refused => io::ErrorKind::ConnectionRefused,
        Code::HostUnreachable => io::ErrorKind::HostUnreachable,
        Code::NetworkUnreachable | Code::NoUdpChannel | Code::MediatorAway => io::ErrorKind::NetworkUnreachable,
        Code::TimedOut => io::ErrorKind::TimedOut,
        Code::Unsupported => io::ErrorKind::Unsupported,
        Code::Reset | Code::PeerGone => io::ErrorKind::ConnectionReset,
        Code::UnknownPort | Code::Closed => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    }
}

/// A datagram that was sent could not be delivered (ICMP); the inner error of what
/// [`crate::UdpSocket::recv_from`] gives then. The socket is as good as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a datagram to {remote} was not delivered: {code}")]
#[non_exhaustive]
pub struct Unreachable {
    /// Its destination.
    pub remote: SocketAddr,
    /// Refused or unreachable.
    pub code: Code,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_code_through_io_error() {
        let error = io::Error::from(Error::Refused(Code::Refused));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        assert_eq!(inner.and_then(Error::code), Some(Code::Refused));
    }

    #[test]
    fn a_goodbye_tells_cause_detail_and_wait() {
        let retry_after = Duration::from_secs(3);
        let error = Error::Goodbye { code: Code::Draining, text: "in five minutes".into(), retry_after };
        assert_eq!(error.to_string(), "the relay says: the relay is shutting down (in five minutes)");
        assert!(error.is_transient());
        assert_eq!(error.retry_after(), retry_after);
        let waiting = Error::NotConnected { waited: Duration::from_secs(10), cause: Box::new(error) };
        assert_eq!((waiting.code(), waiting.retry_after()), (Some(Code::Draining), retry_after));
        assert!(waiting.is_transient());
        assert_eq!(io::Error::from(waiting).kind(), io::ErrorKind::NotConnected);
        let error = Error::Goodbye { code: Code::BadToken, text: String::new(), retry_after: Duration::ZERO };
        assert!(!error.is_transient());
        assert!(error.to_string().contains("token key; take it whole from"), "{error}");
    }
}

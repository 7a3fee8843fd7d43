//! Why something was refused or ended. One word for log, metric, wire and test.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $word:literal, $text:literal;)*) => {
        /// An answer's or an ending's typed reason. The numbers are the wire's and never change meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Code { $($(#[$doc])* $name = $value,)* }

        impl Code {
            /// Every code, in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code of that number, if this version knows it.
            pub fn from_u16(value: u16) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }

            /// One word, for logs, counters and JSON.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// What happened, for a person, with the cure where there is one.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// Done.
    Ok = 0, "ok", "done";

    // Answers to requests.
    AddressInUse = 1, "address-in-use", "that port number is taken on the mediator; ask for another, or for a desired one";
    AddressNotLocal = 2, "address-not-local", "the mediator has no such local address";
    Privileged = 3, "privileged", "the mediator may not bind port numbers below 1024; give it CAP_NET_BIND_SERVICE or ask for a higher one";
    NoFreePort = 4, "no-free-port", "no free port number from the desired one on";
    UnknownPort = 5, "unknown-port", "no port has that identifier";
    NotTcp = 6, "not-tcp", "that port is not an opened TCP port";
    NotUdp = 7, "not-udp", "that port is not a UDP port";
    Dedicated = 8, "dedicated", "that port is connected or listening already";
    Refused = 9, "refused", "the destination refused the connection";
    HostUnreachable = 10, "host-unreachable", "the destination host cannot be reached from the mediator";
    NetworkUnreachable = 11, "network-unreachable", "the mediator has no route to the destination network";
    TimedOut = 12, "timed-out", "the destination did not answer in time";
    Denied = 13, "denied", "the mediator's own allow-list forbids that address; its owner can widen it with --allow";
    NotPermitted = 14, "not-permitted", "the token does not permit that operation or destination";
    NoUdpChannel = 15, "no-udp-channel", "no UDP channel works between mediator and relay, and the fallback to TCP was not allowed";
    TooManyPorts = 16, "too-many-ports", "the limit of ports on this tunnel is reached";
    NoResources = 17, "no-resources", "out of descriptors or memory there; raise its limits";
    Unsupported = 18, "unsupported", "that request is not supported by this version";
    PortExists = 19, "port-exists", "that port identifier is in use";
    MediatorAway = 20, "mediator-away", "the mediator is not connected to the relay";
    Failed = 21, "failed", "the mediator's system refused for another reason";
    NameNotFound = 22, "name-not-found", "the mediator's name service knows no address of that name";
    NameFailed = 23, "name-failed", "the mediator's name service did not answer; check the name servers of its machine";

    // Why a port ended.
    Closed = 32, "closed", "closed on request";
    Reset = 33, "reset", "the connection was reset";
    PeerGone = 34, "peer-gone", "the other party of this port is gone";

    // Why a link ended or never came to be.
    BadToken = 64, "bad-token", "the token's signature is wrong: it was not issued by this relay's token key";
    TokenExpired = 65, "token-expired", "the token has expired; issue a new one";
    TokenMismatch = 66, "token-mismatch", "the token does not name that mediator or role";
    BadVersion = 67, "bad-version", "the other end speaks another protocol version; upgrade the older one";
    BadHello = 68, "bad-hello", "the first message could not be understood";
    Replaced = 69, "replaced", "a newer session of the same mediator took over";
    Draining = 70, "draining", "the relay is shutting down";
    Killed = 71, "killed", "ended by the operator";
    ProtocolError = 72, "protocol-error", "the other end broke the protocol";
    Silent = 73, "silent", "nothing was heard for the dead time";
    HandshakeTimeout = 74, "handshake-timeout", "the handshake did not end in time";
    Overloaded = 75, "overloaded", "a limit of the relay is reached; try later";
    PlaintextRefused = 76, "plaintext-refused", "one side asked for plaintext and the other did not; give --plaintext on both sides or on none";
    TlsFailed = 77, "tls-failed", "the TLS handshake failed";
    ConnectionLost = 78, "connection-lost", "the connection was lost";
    PeerClosed = 79, "peer-closed", "the other end went away in an orderly way";
    Revoked = 80, "revoked", "the token or certificate was revoked at the relay; ask its operator for a new one";
}

impl Code {
    /// Whether this is [`Code::Ok`].
    pub fn is_ok(self) -> bool {
        self == Self::Ok
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Code {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_from_its_number_and_has_its_own_word() {
        let mut words = Vec::new();
        for &code in Code::ALL {
            assert_eq!(Code::from_u16(code as u16), Some(code));
            assert!(!words.contains(&code.word()));
            words.push(code.word());
        }
        assert_eq!(Code::from_u16(9999), None);
    }
}

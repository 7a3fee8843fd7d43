//! `--ask-publish`: ports of the relay that shall lead to hosts here, if the relay's operator lets this mediator have them.

use std::net::SocketAddr;

use isthmus_proto::hello::ASK_LEN_MAX;

/// Reads `PROTO:ADDR:PORT=HOST:PORT[,proxy=v1|v2]`.
///
/// # Errors
/// Says what to write.
pub(crate) fn parse(text: &str) -> Result<String, String> {
    check(text).map_err(|why| format!("{why}; write PROTO:ADDR:PORT=HOST:PORT, as in tcp:0.0.0.0:8080=10.0.0.5:80"))?;
    Ok(text.to_owned())
}

fn check(text: &str) -> Result<(), String> {
    if text.len() > ASK_LEN_MAX {
        return Err(format!("these are more than {ASK_LEN_MAX} characters"));
    }
    let (front, back) = text.split_once('=').ok_or("there is no '='")?;
    let (proto, listen) = front.split_once(':').ok_or("there is no PROTO: before the address")?;
    let (host, option) = back.split_once(',').unwrap_or((back, ""));
    for address in [listen, host] {
        if !address.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
            return Err(format!("'{address}' is not an IP address with a port number"));
        }
    }
    match (proto, option) {
        ("tcp", "" | "proxy=v1" | "proxy=v2") | ("udp", "" | "proxy=v2") => Ok(()),
        ("tcp" | "udp", _) => {
            Err(format!("'{option}' is no option of {proto}: there are proxy=v2 and, for tcp, proxy=v1"))
        }
        _ => Err(format!("'{proto}' is neither tcp nor udp")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asked_ports_are_written_as_published_ones_without_the_mediator() {
        for good in
            ["tcp:0.0.0.0:8080=10.0.0.5:80", "udp:[::]:53=[fd00::5]:53,proxy=v2", "tcp:[::]:1=10.0.0.5:2,proxy=v1"]
        {
            assert_eq!(parse(good).as_deref(), Ok(good));
        }
        for (bad, part) in [
            ("tcp:0.0.0.0:8080", "no '='"),
            ("0.0.0.0:8080=10.0.0.5:80", "'8080'"),
            ("sctp:0.0.0.0:8080=10.0.0.5:80", "'sctp'"),
            ("tcp:0.0.0.0:0=10.0.0.5:80", "'0.0.0.0:0'"),
            ("tcp:0.0.0.0:80=cpe/10.0.0.5:80", "'cpe/10.0.0.5:80'"),
            ("udp:0.0.0.0:80=10.0.0.5:80,proxy=v1", "'proxy=v1'"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }
}

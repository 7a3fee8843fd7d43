//! Takes connections, and answers their requests one by one.

use std::cell::Cell;
use std::convert::Infallible;
use std::io::Write;
use std::rc::Rc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CONNECTION, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::body::Seat;
use super::gate::Gate;
use super::router::{Access, Asked, Reply, Router, finish, text};
use super::timed::Timed;
use super::{HttpSocket, Limits, Tally};

/// How long to wait when the system has no descriptor for a connection: it would be offered again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What one connection more than may be is told.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n\
    content-length: 42\r\nconnection: close\r\n\r\nthere are too many connections; try later\n";

/// What the connections share.
struct Server {
    router: Router,
    gate: Gate,
    limits: Limits,
    tally: Rc<Tally>,
    streams: Rc<Cell<usize>>,
}

/// Serves the pages without end; connections end with the future.
pub async fn serve(socket: HttpSocket, router: Router, limits: Limits, tally: Rc<Tally>) {
    let listener = match TcpListener::from_std(socket.listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the HTTP port cannot be served");
            return;
        }
    };
    let server = Rc::new(Server { router, gate: socket.gate, limits, tally, streams: Rc::default() });
    let mut connections = JoinSet::new();
    loop {
        server.tally.live.set(connections.len() as u64);
        tokio::select! {
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "an HTTP connection failed");
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    Tally::count(&server.tally.connections);
                    if connections.len() < server.limits.connections_max {
                        connections.spawn_local(connection(server.clone(), stream));
                    } else {
                        Tally::count(&server.tally.refused);
                        refuse(stream);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take an HTTP connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Says it without waiting for anything.
fn refuse(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        // Its end is near in any case.
        let _ = stream.write(FULL);
    }
}

/// Serves one connection to its end. Whatever ends it, the client sees it: counted where a limit was hit, and not worth a
/// log line.
async fn connection(server: Rc<Server>, stream: TcpStream) {
    let Limits { head_max, headers_max, head, write, .. } = server.limits;
    let begun = Rc::new(Cell::new(false));
    let io = TokioIo::new(Timed::new(stream, write, server.tally.clone(), begun.clone()));
    let answers = {
        let (server, begun) = (server.clone(), begun.clone());
        service_fn(move |request| {
            begun.set(false);
            let server = server.clone();
            async move { Ok::<_, Infallible>(finish(server.answer(request).await)) }
        })
    };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_header_size(head_max)
        .max_headers(headers_max)
        .half_close(true)
        .serve_connection(io, answers)
        .await;
    match served {
        Err(error) if error.is_timeout() && begun.get() => Tally::count(&server.tally.head_timeouts),
        Err(error) if error.is_timeout() => Tally::count(&server.tally.idle_timeouts),
        Err(error) if error.is_parse() => Tally::count(&server.tally.bad),
        _ => {}
    }
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        Tally::count(&self.tally.requests);
        let (parts, body) = request.into_parts();
        if !self.gate.lets_host(&parts) {
            Tally::count(&self.tally.refused_host);
            let why = "this port answers to localhost and loopback addresses only\n";
            return text(StatusCode::MISDIRECTED_REQUEST, why);
        }
        if ![Method::GET, Method::HEAD].contains(&parts.method) {
            let mut reply = self.bad(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are understood\n");
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return closing(reply);
        }
        if !body.is_end_stream() {
            return closing(self.bad(StatusCode::PAYLOAD_TOO_LARGE, "a request has no body here\n"));
        }
        let Some((access, rest, page)) = self.router.find(parts.uri.path()) else {
            return self.bad(StatusCode::NOT_FOUND, "there is no such page\n");
        };
        if access == Access::Token && !self.gate.lets_in(&parts.headers) {
            return self.unauthorized();
        }
        match timeout(self.limits.answer, page(Asked { parts, rest })).await {
            Ok(reply) => self.seat(reply),
            Err(_) => {
                Tally::count(&self.tally.answer_timeouts);
                text(StatusCode::GATEWAY_TIMEOUT, "the relay did not answer in time\n")
            }
        }
    }

    fn bad(&self, status: StatusCode, why: &str) -> Reply {
        Tally::count(&self.tally.bad);
        text(status, why)
    }

    fn unauthorized(&self) -> Reply {
        Tally::count(&self.tally.refused_token);
        let mut reply = text(StatusCode::UNAUTHORIZED, "this needs the token of --http-token-file\n");
        for way in ["Bearer realm=\"isthmus\"", "Basic realm=\"isthmus\""] {
            reply.headers_mut().append(WWW_AUTHENTICATE, HeaderValue::from_static(way));
        }
        reply
    }

    /// Lets a stream in, if there is a place for it.
    fn seat(&self, mut reply: Reply) -> Reply {
        if !reply.body().is_stream() {
            return reply;
        }
        match Seat::take(&self.streams, self.limits.streams_max) {
            Some(seat) => {
                reply.body_mut().seat(seat);
                reply
            }
            None => {
                Tally::count(&self.tally.streams_refused);
                text(StatusCode::SERVICE_UNAVAILABLE, "there are too many streams; try later\n")
            }
        }
    }
}

/// What comes behind such a request is not for us.
fn closing(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

#[cfg(test)]
mod tests {
    #[test]
    fn refusal_of_a_connection_tells_its_own_length() {
        let text = std::str::from_utf8(super::FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{text}");
    }
}

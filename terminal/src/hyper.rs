//! A connector for HTTP clients.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tower_service::Service;

use crate::{Error, Mediator, TcpStream};

/// Lets an HTTP client connect by way of a mediator: a tower [`Service`] of [`Uri`], as the clients of
/// hyper-util take it.
///
/// The URI's port number counts, else 80 or 443 by its scheme. It makes plain connections: for `https` wrap it
/// into a TLS connector, such as `hyper_rustls::HttpsConnectorBuilder`'s `wrap_connector`.
///
/// ```no_run
/// use http_body_util::{BodyExt, Empty};
/// use hyper_util::client::legacy::Client;
/// use hyper_util::rt::TokioExecutor;
/// use isthmus_terminal::{Mediator, MediatorConnector};
///
/// async fn page(mediator: Mediator) -> Result<(), Box<dyn std::error::Error>> {
///     let client = Client::builder(TokioExecutor::new()).build::<_, Empty<&[u8]>>(MediatorConnector::new(mediator));
///     let answer = client.get("http://10.0.0.5:8080/status".parse()?).await?;
///     println!("{}: {} bytes", answer.status(), answer.into_body().collect().await?.to_bytes().len());
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct MediatorConnector {
    mediator: Mediator,
}

impl MediatorConnector {
    /// All its connections go through this mediator; its lost connection to the relay comes back as usual.
    pub fn new(mediator: Mediator) -> Self {
        Self { mediator }
    }
}

/// A connection on its way; the future of [`MediatorConnector`]. Dropping it closes the port.
pub struct Connecting(Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>);

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connecting(..)")
    }
}

impl Future for Connecting {
    type Output = io::Result<TokioIo<TcpStream>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl Service<Uri> for MediatorConnector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Connecting;

    /// Always ready: a lost connection to the relay is waited for by each request, within its bound.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let mediator = self.mediator.clone();
        Connecting(Box::pin(async move {
            let stream = mediator.connect(destination(&uri)?).await?;
            Ok(TokioIo::new(stream))
        }))
    }
}

impl Connection for TcpStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// # Errors
/// [`Error::Config`] when the URI names no host, or none that is an IP address.
fn destination(uri: &Uri) -> Result<SocketAddr, Error> {
    let host = uri.host().ok_or_else(|| Error::Config(format!("'{uri}' names no host; write http://HOST:PORT/")))?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    // An IPv6 address stands in brackets there.
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let ip: IpAddr =
        bare.parse().map_err(|_| Error::Config(format!("'{host}' is no IP address; give the host's address")))?;
    Ok(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uris_host_and_port_are_the_destination() {
        for (uri, to) in [
            ("http://10.0.0.5/", "10.0.0.5:80"),
            ("https://10.0.0.5/x", "10.0.0.5:443"),
            ("http://[fd00::5]:8080/", "[fd00::5]:8080"),
        ] {
            assert_eq!(destination(&uri.parse().unwrap()).unwrap(), to.parse().unwrap(), "{uri}");
        }
        for bad in ["/path", "http://name/"] {
            assert!(matches!(destination(&bad.parse().unwrap()), Err(Error::Config(_))), "{bad}");
        }
    }
}

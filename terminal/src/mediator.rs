//! The two things that a terminal attaches to: a mediator, or the relay alone.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::hello::{MediatorInfo, MediatorSummary, Query, QueryAnswer, Report};
use isthmus_proto::wire::{NAME_LEN_MAX, OpenFlags};
use isthmus_proto::{Code, MediatorId};

use crate::handle::gone;
use crate::line::Line;
use crate::port::{OpenOptions, Port, open_on};
use crate::{Config, Error, Importance, TcpListener, TcpStream, UdpSocket};

/// One mediator, by way of its relay. Cheap to clone; the clones share one connection, which ends when
/// they and all their sockets are dropped.
///
/// # Losing the connection
/// A connection to the relay that is lost comes back by itself: it is dialled again after waits that grow
/// (see [`Backoff`](crate::Backoff)), until an error that waiting does not cure, such as an expired token
/// ([`Error::is_transient`] tells). The first try, in [`Mediator::attach`], is not repeated.
/// - Streams of the lost connection end with an error of [`std::io::ErrorKind::ConnectionAborted`] that has an
///   [`Error`] within; so do requests that wait for their answer, with [`Error::Lost`] or [`Error::Goodbye`].
/// - New requests wait for the connection up to [`Config::link_timeout`], and fail then with
///   [`Error::NotConnected`].
/// - Listeners and UDP sockets are opened again by themselves: [`TcpListener::accept`] and
///   [`UdpSocket::recv_from`] just go on.
///
/// # Cancel safety
/// Every method's future may be dropped at any time. What was asked for and not yet given is closed: a
/// dropped `connect` leaves no connection, a dropped `listen` or `udp_bind` no port.
#[derive(Clone)]
pub struct Mediator {
    id: MediatorId,
    line: Line,
}

/// The relay alone, for asking it what it knows. Cheap to clone; comes back after a lost connection as a
/// [`Mediator`] does.
///
/// ```no_run
/// use isthmus_terminal::{Config, Error, Relay};
///
/// async fn names(config: &Config) -> Result<Vec<String>, Error> {
///     let relay = Relay::connect(config).await?;
///     Ok(relay.list().await?.into_iter().map(|mediator| mediator.id.to_string()).collect())
/// }
/// ```
#[derive(Clone)]
pub struct Relay {
    line: Line,
}

/// Figures of the present connection, or of the last one while it is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// How often the connection was lost and came back.
    pub reconnects: u64,
    /// Payload bytes sent over the TCP channel.
    pub bytes_out: u64,
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Live ports.
    pub ports: usize,
    /// Smoothed round trip to the relay, once measured.
    pub rtt: Option<Duration>,
    /// UDP channels, and how many of them answer.
    pub udp_channels: usize,
    /// See [`Stats::udp_channels`].
    pub udp_channels_live: usize,
    /// Received datagrams dropped since their socket's reader was too slow.
    pub datagrams_dropped: u64,
    /// Datagrams of redirected ports that went over TCP: too long for a channel, or none worked.
    pub datagrams_by_tcp: u64,
    /// Received datagrams without a sender's address or longer than UDP's limit.
    pub datagrams_refused: u64,
    /// Accepted connections that were reset since too many waited.
    pub accepts_dropped: u64,
}

impl Relay {
    /// Connects to a relay without choosing a mediator.
    ///
    /// # Errors
    /// Each text says cause and cure; see [`Error`].
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        Ok(Self { line: Line::start(config, None).await? })
    }

    /// The mediators that the token names and that are connected now, in the order of names.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::NotPermitted`], or the connection's end.
    pub async fn list(&self) -> Result<Vec<MediatorSummary>, Error> {
        list(&self.line).await
    }

    /// The relay's version.
    pub fn version(&self) -> String {
        self.line.last().relay_version.clone()
    }

    /// Whether the connection stands.
    pub fn is_connected(&self) -> bool {
        self.line.is_connected()
    }

    /// Drops this handle and waits until the connection has ended in order; see [`Mediator::close`].
    pub async fn close(self) {
        self.line.close().await;
    }
}

impl Mediator {
    /// Connects to the relay and attaches to one mediator.
    ///
    /// # Errors
    /// Each text says cause and cure; see [`Error`]. [`Code::MediatorAway`] when it is not connected.
    pub async fn attach(config: &Config, id: MediatorId) -> Result<Self, Error> {
        Ok(Self { line: Line::start(config, Some(id.clone())).await?, id })
    }

    /// Its name.
    pub fn id(&self) -> &MediatorId {
        &self.id
    }

    /// What it reported last of its state and environment, where the relay told.
    pub fn report(&self) -> Option<Report> {
        self.line.last().with(|state| state.report.as_deref().cloned())
    }

    /// Our own address as the relay sees it.
    pub fn observed(&self) -> SocketAddr {
        self.line.last().observed
    }

    /// The relay's number of this session, for comparing logs.
    pub fn session(&self) -> u64 {
        self.line.last().session
    }

    /// All that the relay knows about the mediator.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::NotPermitted`] or [`Code::MediatorAway`], or the connection's end.
    pub async fn info(&self) -> Result<MediatorInfo, Error> {
        match ask(&self.line, &Query::Info).await? {
            QueryAnswer::Info(info) => Ok(*info),
            QueryAnswer::Error { code } => Err(refused(&code)),
            QueryAnswer::List { .. } => Err(Error::Refused(Code::ProtocolError)),
        }
    }

    /// See [`Relay::list`].
    ///
    /// # Errors
    /// As there.
    pub async fn list(&self) -> Result<Vec<MediatorSummary>, Error> {
        list(&self.line).await
    }

    /// Connects to a host of the private network, from any of the mediator's addresses.
    ///
    /// ```no_run
    /// # use isthmus_terminal::{Code, Error, Mediator};
    /// # async fn example(mediator: Mediator) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// match mediator.connect("10.0.0.5:80".parse()?).await {
    ///     Ok(mut stream) => {
    ///         stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    ///         let mut page = Vec::new();
    ///         stream.read_to_end(&mut page).await?;
    ///     }
    ///     Err(Error::Refused(Code::Denied)) => println!("the mediator's owner does not allow that"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// A dropped future closes the port; the host may see a connection that is reset.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason: [`Code::Refused`], [`Code::HostUnreachable`],
    /// [`Code::TimedOut`], [`Code::Denied`], [`Code::NotPermitted`] …; or the connection's end.
    pub async fn connect(&self, to: SocketAddr) -> Result<TcpStream, Error> {
        self.connect_with(to, &OpenOptions::tcp(), None).await
    }

    /// As [`Mediator::connect`], from a chosen address or port number of the mediator, or with another
    /// time to wait than the configuration's.
    ///
    /// # Errors
    /// Those of [`Mediator::connect`], and [`Code::AddressInUse`], [`Code::AddressNotLocal`] ….
    pub async fn connect_with(
        &self,
        to: SocketAddr,
        from: &OpenOptions,
        timeout: Option<Duration>,
    ) -> Result<TcpStream, Error> {
        let handle = self.line.link().await?;
        let timeout_ms = timeout_ms(timeout.unwrap_or(handle.shared().connect_timeout));
        // One round trip for both: the answer to the connect tells of the open as well.
        let (port, _) = Port::request(&handle, from, OpenFlags::QUIET)?;
        let reply = port.held().with(|state, key| state.connect(key, to, timeout_ms))?;
        port.held().answered(reply).await?;
        Ok(TcpStream::new(port.into_held()))
    }

    /// Connects to a host that the mediator finds by its name, in the private network's own DNS. Each of its addresses
    /// has to be allowed, and they are tried in turn. [`TcpStream::peer_addr`] is unspecified then.
    ///
    /// # Errors
    /// Those of [`Mediator::connect`], and [`Code::NameNotFound`], [`Code::NameFailed`]; the former also for a name of
    /// no or more than 255 bytes.
    pub async fn connect_name(&self, name: &str, port: u16) -> Result<TcpStream, Error> {
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(Error::Refused(Code::NameNotFound));
        }
        let handle = self.line.link().await?;
        let timeout_ms = timeout_ms(handle.shared().connect_timeout);
        let (opened, _) = Port::request(&handle, &OpenOptions::tcp(), OpenFlags::QUIET)?;
        let reply = opened.held().with(|state, key| state.connect_name(key, name, port, timeout_ms))?;
        opened.held().answered(reply).await?;
        Ok(TcpStream::new(opened.into_held()))
    }

    /// Makes a server of one of the mediator's ports: hosts of the private network connect to it.
    ///
    /// `local`'s address may be unspecified for any, its number 0 for any.
    ///
    /// # Errors
    /// [`Error::Refused`] with [`Code::AddressInUse`], [`Code::AddressNotLocal`], [`Code::Privileged`],
    /// [`Code::NoFreePort`], [`Code::NotPermitted`] …; or the connection's end.
    pub async fn listen(&self, local: SocketAddr, importance: Importance) -> Result<TcpListener, Error> {
        let options = OpenOptions::tcp().local(local).importance(importance);
        let port = self.open(&options).await?;
        port.make_server().await?;
        Ok(TcpListener::new(self.line.subscribe(options, port.into_held())))
    }

    /// Opens a UDP port of the mediator whose datagrams travel over the TCP channel: reliable and in
    /// order, with TCP's delays.
    ///
    /// # Errors
    /// As [`Mediator::listen`].
    pub async fn udp_bind(&self, local: SocketAddr, importance: Importance) -> Result<UdpSocket, Error> {
        self.udp(&OpenOptions::udp().local(local).importance(importance)).await
    }

    /// Redirects a UDP port of the mediator: its datagrams travel over UDP channels, with UDP's delay.
    /// With `fallback`, they may travel over TCP while no UDP channel works.
    ///
    /// # Errors
    /// As [`Mediator::listen`], and [`Code::NoUdpChannel`].
    pub async fn udp_redirect(
        &self,
        local: SocketAddr,
        importance: Importance,
        fallback: bool,
    ) -> Result<UdpSocket, Error> {
        self.udp(&OpenOptions::udp().local(local).importance(importance).redirect(fallback)).await
    }

    /// Opens a UDP port with all options.
    ///
    /// # Errors
    /// As [`Mediator::udp_redirect`]; [`Code::NotUdp`] when the options are TCP's.
    pub async fn udp(&self, options: &OpenOptions) -> Result<UdpSocket, Error> {
        if !options.is_udp() {
            return Err(Error::Refused(Code::NotUdp));
        }
        let port = self.open(options).await?;
        Ok(UdpSocket::new(self.line.subscribe(*options, port.into_held())))
    }

    /// The single request *open* (or *redirect*, by the options): a port that is not dedicated yet. It ends
    /// with its connection to the relay.
    ///
    /// # Errors
    /// As [`Mediator::udp_redirect`].
    pub async fn open(&self, options: &OpenOptions) -> Result<Port, Error> {
        open_on(&self.line.link().await?, options).await
    }

    /// Figures of the present connection, or of the last one while it is lost.
    pub fn stats(&self) -> Stats {
        let shared = self.line.last();
        let now = shared.now();
        let (udp_channels, udp_channels_live) = (shared.channels.len(), shared.channels.live(now));
        shared.with(|state| {
            let (link, counts) = (state.link.stats(), state.counts);
            Stats {
                reconnects: shared.generation,
                bytes_out: link.bytes_out,
                bytes_in: link.bytes_in,
                ports: state.link.ports(),
                rtt: state.link.rtt(),
                udp_channels,
                udp_channels_live,
                datagrams_dropped: counts.datagrams_dropped,
                datagrams_by_tcp: counts.datagrams_by_tcp,
                datagrams_refused: counts.datagrams_refused,
                accepts_dropped: counts.accepts_dropped,
            }
        })
    }

    /// Drops this handle and waits until the connection has ended in order: everything written has arrived at
    /// the relay. Waits for the other clones and all sockets to be dropped (or for the connection to be lost);
    /// a program calls it before it ends.
    pub async fn close(self) {
        self.line.close().await;
    }

    /// Whether the connection stands.
    pub fn is_connected(&self) -> bool {
        self.line.is_connected()
    }

    /// Waits until the connection stands, however long that takes.
    ///
    /// # Errors
    /// Why it is over for good.
    pub async fn connected(&self) -> Result<(), Error> {
        self.line.connected().await
    }

    /// Waits until the present connection is lost, and tells how; at once while none stands.
    pub async fn disconnected(&self) -> Error {
        self.line.disconnected().await
    }

    /// Whether the connection is over for good: lost in a way that waiting does not cure, or without
    /// [`Config::reconnect`].
    pub fn is_closed(&self) -> bool {
        self.line.is_over()
    }

    /// Waits until the connection is over for good, and tells why.
    pub async fn closed(&self) -> Error {
        self.line.over().await
    }
}

impl fmt::Debug for Mediator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mediator")
            .field("id", &self.id)
            .field("session", &self.session())
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("connected", &self.is_connected()).finish_non_exhaustive()
    }
}

async fn list(line: &Line) -> Result<Vec<MediatorSummary>, Error> {
    let mut all: Vec<MediatorSummary> = Vec::new();
    loop {
        let after = all.last().map(|last| last.id.clone());
        match ask(line, &Query::List { after: after.clone() }).await? {
            QueryAnswer::List { mediators, more } => {
                // A page that does not go on would be asked for again for ever.
                let ahead = mediators.last().map(|last| &last.id) > after.as_ref();
                all.extend(mediators);
                if !more || !ahead {
                    return Ok(all);
                }
            }
            QueryAnswer::Error { code } => return Err(refused(&code)),
            QueryAnswer::Info(_) => return Err(Error::Refused(Code::ProtocolError)),
        }
    }
}

async fn ask(line: &Line, query: &Query) -> Result<QueryAnswer, Error> {
    let handle = line.link().await?;
    let shared = handle.shared();
    let answer = shared.with(|state| state.query(query))?;
    answer.await.map_err(|_| gone(shared))
}

fn refused(word: &str) -> Error {
    Error::Refused(Code::ALL.iter().copied().find(|code| code.word() == word).unwrap_or(Code::Failed))
}

/// 0 would mean the mediator's default.
pub(crate) fn timeout_ms(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1)
}

//! Every request of a terminal and every answer that a mediator has, between the real programs.

use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp};
use std::time::Duration;

use isthmus_e2e::{Loopback, Process};
use isthmus_proto::Code;
use isthmus_terminal::{Config, Error, Importance, Mediator, OpenOptions, Relay, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn config(world: &Loopback, token_args: &[&str]) -> Config {
    let token = world.keys.terminal_token("*", token_args);
    Config::new(&*world.service, Trust::pin(world.keys.pin()).unwrap(), token)
}

async fn attach(world: &Loopback) -> Mediator {
    Mediator::attach(&config(world, &[]), "cpe".parse().unwrap()).await.unwrap()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, code: Code) {
    match result {
        Ok(_) => panic!("expected {}, but it worked", code.word()),
        Err(error) => assert_eq!(error.code(), Some(code), "{error}"),
    }
}

/// A free port number, held by the listener.
fn listener(ip: &str) -> (StdListener, SocketAddr) {
    let listener = StdListener::bind((ip, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

#[tokio::test]
async fn desired_number_that_is_taken_gives_the_next_free_one_and_obligatory_an_error() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let (_held, taken) = listener("127.0.0.1");
    for options in [OpenOptions::tcp(), OpenOptions::udp()] {
        // The UDP side of the same number, so that both kinds meet a taken one.
        let _held_udp = StdUdp::bind(taken);
        let desired = mediator.open(&options.local(taken)).await.unwrap();
        assert!(desired.local_addr().port() > taken.port());
        assert_eq!(desired.local_addr().ip(), taken.ip());
        refused(mediator.open(&options.local(taken).importance(Importance::Obligatory)).await, Code::AddressInUse);
        // What we opened ourselves is taken as well.
        let own = desired.local_addr();
        if own.port() != 0 && matches!(options, o if o == OpenOptions::udp()) {
            refused(mediator.open(&options.local(own).importance(Importance::Obligatory)).await, Code::AddressInUse);
        }
    }
}

#[tokio::test]
async fn port_zero_gives_any_number_and_each_local_address_can_be_chosen() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    for ip in ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0", "[::1]:0"] {
        for options in [OpenOptions::tcp(), OpenOptions::udp(), OpenOptions::udp().redirect(false)] {
            let port = mediator.open(&options.local(addr(ip))).await.unwrap();
            assert_eq!(port.local_addr().ip(), addr(ip).ip());
            assert_ne!(port.local_addr().port(), 0);
        }
    }
}

#[tokio::test]
async fn addresses_that_are_not_the_mediators_or_not_allowed_are_refused() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    refused(mediator.open(&OpenOptions::tcp().local(addr("192.0.2.1:0"))).await, Code::AddressNotLocal);
    refused(mediator.open(&OpenOptions::udp().local(addr("192.0.2.1:0"))).await, Code::AddressNotLocal);
    refused(mediator.connect(addr("192.0.2.1:80")).await, Code::Denied);
    refused(mediator.open(&OpenOptions::udp().peer(addr("192.0.2.1:80"))).await, Code::Denied);

    // Without a rule of its owner, a mediator lends no loopback address, neither to bind nor to reach.
    let _strict = Loopback::start_agent(&world.keys, &world.service, "strict", &[]);
    let strict = Mediator::attach(&config(&world, &[]), "strict".parse().unwrap()).await.unwrap();
    refused(strict.open(&OpenOptions::tcp().local(addr("127.0.0.1:0"))).await, Code::Denied);
    refused(strict.connect(addr("127.0.0.1:80")).await, Code::Denied);
    refused(strict.connect(addr("[::ffff:127.0.0.1]:80")).await, Code::Denied);
}

#[tokio::test]
async fn no_free_number_after_the_last_one() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let last = addr("127.0.0.77:65535");
    let _held = StdListener::bind(last).unwrap();
    refused(mediator.open(&OpenOptions::tcp().local(last)).await, Code::NoFreePort);
}

#[tokio::test]
async fn privileged_number_needs_the_privilege() {
    let lowest = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if lowest.trim().parse() == Ok(0u16) || !isthmus_e2e::have("setpriv") {
        println!("skipped: this system lets everyone bind low numbers, or has no setpriv");
        return;
    }
    let world = Loopback::start(&[], &[]);
    let plain = Loopback::agent_command(&world.keys, &world.service, "low", &["--allow", "127.0.0.0/8"]);
    let mut command = std::process::Command::new("setpriv");
    command.args(["--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service", "--"]);
    command.arg(plain.get_program()).args(plain.get_args());
    let low = Process::spawn("low", command);
    low.wait_for_line("tunnel up", isthmus_e2e::SOON);
    let mediator = Mediator::attach(&config(&world, &[]), "low".parse().unwrap()).await.unwrap();
    for options in [OpenOptions::tcp(), OpenOptions::udp()] {
        refused(
            mediator.open(&options.local(addr("127.0.0.1:80")).importance(Importance::Obligatory)).await,
            Code::Privileged,
        );
    }
}

#[tokio::test]
async fn connect_tells_refused_from_timed_out() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let (held, to) = listener("127.0.0.1");
    drop(held);
    let port = mediator.open(&OpenOptions::tcp().local(addr("127.0.0.1:0"))).await.unwrap();
    refused(port.connect(to, None).await, Code::Refused);
    // The port stays opened: the next connect uses it, from the same number.
    let (held, to) = listener("127.0.0.1");
    let number = port.local_addr();
    let stream = port.connect(to, None).await.unwrap();
    let (_accepted, from) = held.accept().unwrap();
    assert_eq!(from, number);
    drop(stream);

    // A listener whose queue is full answers nothing.
    let full = rustix_listener();
    let to = full.0;
    let _fill: Vec<_> = (0..4).map(|_| fill(to)).collect();
    let port = mediator.open(&OpenOptions::tcp()).await.unwrap();
    refused(port.connect(to, Some(Duration::from_millis(300))).await, Code::TimedOut);
}

/// A listener with the shortest queue, which never accepts.
fn rustix_listener() -> (SocketAddr, std::os::fd::OwnedFd) {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&fd, &addr("127.0.0.1:0")).unwrap();
    listen(&fd, 0).unwrap();
    let name: SocketAddr = getsockname(&fd).unwrap().try_into().unwrap();
    (name, fd)
}

/// Begins a connection without waiting for it.
fn fill(to: SocketAddr) -> std::os::fd::OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
    let fd = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
    let _ = connect(&fd, &to);
    fd
}

#[tokio::test]
async fn ports_take_only_what_their_kind_and_state_allow() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let (_held, to) = listener("127.0.0.1");

    let udp = mediator.open(&OpenOptions::udp().local(addr("127.0.0.1:0"))).await.unwrap();
    refused(udp.connect(to, None).await, Code::NotTcp);
    refused(udp.serve().await, Code::NotTcp);
    udp.switch(true, false).await.unwrap();
    udp.switch(false, false).await.unwrap();

    let tcp = mediator.open(&OpenOptions::tcp().local(addr("127.0.0.1:0"))).await.unwrap();
    refused(tcp.switch(true, false).await, Code::NotUdp);
    let _stream = tcp.connect(to, None).await.unwrap();
    refused(tcp.connect(to, None).await, Code::Dedicated);
    refused(tcp.serve().await, Code::Dedicated);

    let server = mediator.open(&OpenOptions::tcp().local(addr("127.0.0.1:0"))).await.unwrap();
    let _listener = server.serve().await.unwrap();
    refused(server.serve().await, Code::Dedicated);
    refused(server.connect(to, None).await, Code::Dedicated);
}

#[tokio::test]
async fn closed_port_is_unknown_from_then_on() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    for options in [OpenOptions::tcp(), OpenOptions::udp()] {
        let port = mediator.open(&options.local(addr("127.0.0.1:0"))).await.unwrap();
        let number = port.local_addr();
        port.close().await.unwrap();
        refused(port.close().await, Code::UnknownPort);
        refused(port.connect(addr("127.0.0.1:1"), None).await, Code::UnknownPort);
        // Its number is free again.
        let again = mediator.open(&options.local(number).importance(Importance::Obligatory)).await.unwrap();
        assert_eq!(again.local_addr(), number);
    }
}

#[tokio::test]
async fn number_that_another_server_took_in_the_meantime_is_told_by_make_server() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let options = OpenOptions::tcp().local(addr("127.0.0.1:0"));
    let first = mediator.open(&options).await.unwrap();
    // Both are bound, neither listens: the system lets that pass.
    let same = options.local(first.local_addr()).importance(Importance::Obligatory);
    if let Ok(second) = mediator.open(&same).await {
        let _listener = first.serve().await.unwrap();
        refused(second.serve().await, Code::AddressInUse);
    }
}

#[tokio::test]
async fn redirect_without_a_working_channel_says_so_unless_it_may_fall_back() {
    let world = Loopback::start(&[], &["--udp-channels", "0"]);
    let mediator = attach(&world).await;
    let options = OpenOptions::udp().local(addr("127.0.0.1:0"));
    refused(mediator.open(&options.redirect(false)).await, Code::NoUdpChannel);
    let port = mediator.open(&options.redirect(true)).await.unwrap();
    refused(port.switch(true, false).await, Code::NoUdpChannel);
    let socket = port.udp_socket().unwrap();
    echo(&socket, &[1, 1200]).await;
}

/// Sends datagrams of these sizes through a mediator's UDP port to an echo and checks what comes back.
async fn echo(socket: &isthmus_terminal::UdpSocket, sizes: &[usize]) {
    let host = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = host.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            let (len, from) = host.recv_from(&mut buffer).await.unwrap();
            host.send_to(&buffer[..len], from).await.unwrap();
        }
    });
    for &size in sizes {
        let sent: Vec<u8> = (0..size).map(|n| (n * 7 + size) as u8).collect();
        socket.send_to(&sent, to).await.unwrap();
        let got = tokio::time::timeout(Duration::from_secs(10), socket.recv_datagram()).await;
        let (bytes, from) = got.unwrap_or_else(|_| panic!("{size} bytes did not come back")).unwrap();
        assert_eq!(from, to);
        assert!(bytes == sent, "{size} bytes came back as {} others", bytes.len());
    }
    task.abort();
}

#[tokio::test]
async fn datagrams_of_every_size_keep_boundaries_and_source_opened_and_redirected_and_switched() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let sizes = [0, 1, 200, 1200, 1379, 1380, 1381, 1420, 1421, 1472, 9000, 16_358, 16_359, 40_000, 65_507];
    for options in [OpenOptions::udp(), OpenOptions::udp().redirect(false)] {
        let port = mediator.open(&options.local(addr("127.0.0.1:0"))).await.unwrap();
        let socket = port.udp_socket().unwrap();
        echo(&socket, &sizes).await;
        for redirect in [true, false, true] {
            socket.set_redirect(redirect, false).await.unwrap();
            echo(&socket, &sizes).await;
        }
    }
    // Those that fit no UDP channel went over TCP, counted.
    assert!(mediator.stats().datagrams_by_tcp > 0, "{:?}", mediator.stats());
}

#[tokio::test]
async fn udp_port_with_one_party_hears_nobody_else_and_learns_that_nobody_listens() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let host = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = host.local_addr().unwrap();
    let port = mediator.open(&OpenOptions::udp().redirect(false).peer(to)).await.unwrap();
    let socket = port.udp_socket().unwrap();
    socket.send(b"hello").await.unwrap();
    let mut buffer = [0; 64];
    let (len, from) = host.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..len], b"hello");
    let stranger = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.send_to(b"not for you", from).await.unwrap();
    host.send_to(b"answer", from).await.unwrap();
    let (bytes, source) = socket.recv_datagram().await.unwrap();
    assert_eq!((&*bytes, source), (&b"answer"[..], to));

    // ICMP's word that nobody listens comes through.
    drop(host);
    socket.send(b"anybody?").await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(10), socket.recv_datagram()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
}

#[tokio::test]
async fn limit_of_ports_holds_on_both_sides_of_its_edge() {
    let world = Loopback::start(&["--ports-max", "3"], &[]);
    let mediator = attach(&world).await;
    let options = OpenOptions::tcp().local(addr("127.0.0.1:0"));
    let mut ports = Vec::new();
    for _ in 0..3 {
        ports.push(mediator.open(&options).await.unwrap());
    }
    refused(mediator.open(&options).await, Code::TooManyPorts);
    ports.pop().unwrap().close().await.unwrap();
    mediator.open(&options).await.unwrap();
}

#[tokio::test]
async fn mediator_out_of_descriptors_says_so() {
    if !isthmus_e2e::have("prlimit") {
        println!("skipped: no prlimit");
        return;
    }
    let world = Loopback::start(&[], &[]);
    let plain = Loopback::agent_command(&world.keys, &world.service, "poor", &["--allow", "127.0.0.0/8"]);
    let mut command = std::process::Command::new("prlimit");
    command.args(["--nofile=64:64", "--"]).arg(plain.get_program()).args(plain.get_args());
    let poor = Process::spawn("poor", command);
    poor.wait_for_line("tunnel up", isthmus_e2e::SOON);
    let mediator = Mediator::attach(&config(&world, &[]), "poor".parse().unwrap()).await.unwrap();
    let options = OpenOptions::tcp().local(addr("127.0.0.1:0"));
    let mut ports = Vec::new();
    let error = loop {
        match mediator.open(&options).await {
            Ok(port) => ports.push(port),
            Err(error) => break error,
        }
        assert!(ports.len() < 64);
    };
    assert_eq!(error.code(), Some(Code::NoResources), "{error}");
    // It lives, and has room again once some are closed.
    ports.pop().unwrap().close().await.unwrap();
    mediator.open(&options).await.unwrap();
}

#[tokio::test]
async fn token_limits_operations_and_destinations() {
    let world = Loopback::start(&[], &[]);
    let (_held, to) = listener("127.0.0.1");
    let only = format!("127.0.0.1:{}", to.port());
    let narrow = config(&world, &["--allow", "open,connect", "--to", &only]);
    let mediator = Mediator::attach(&narrow, "cpe".parse().unwrap()).await.unwrap();
    mediator.connect(to).await.unwrap();
    refused(mediator.connect(addr("127.0.0.1:1")).await, Code::NotPermitted);
    refused(mediator.listen(addr("127.0.0.1:0"), Importance::Desired).await, Code::NotPermitted);
    refused(mediator.open(&OpenOptions::udp().redirect(true)).await, Code::NotPermitted);
    refused(mediator.info().await, Code::NotPermitted);
    refused(mediator.list().await, Code::NotPermitted);
    let port = mediator.open(&OpenOptions::udp().local(addr("127.0.0.1:0"))).await.unwrap();
    refused(port.switch(true, true).await, Code::NotPermitted);
}

#[tokio::test]
async fn mediator_that_is_not_there_is_away() {
    let world = Loopback::start(&[], &[]);
    refused(Mediator::attach(&config(&world, &[]), "nobody".parse().unwrap()).await, Code::MediatorAway);
    let relay = Relay::connect(&config(&world, &[])).await.unwrap();
    let names: Vec<_> = relay.list().await.unwrap().into_iter().map(|row| row.id.to_string()).collect();
    assert_eq!(names, ["cpe"]);
}

#[tokio::test]
async fn hosts_connection_arrives_with_its_address_and_both_ends_half_close() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    for local in ["127.0.0.1:0", "[::1]:0"] {
        let listener = mediator.listen(addr(local), Importance::Desired).await.unwrap();
        let mut host = tokio::net::TcpStream::connect(listener.local_addr()).await.unwrap();
        let (mut stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, host.local_addr().unwrap());
        assert_eq!(stream.local_addr(), listener.local_addr());
        // The host ends its direction first; the other one stays usable.
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"question");
        stream.write_all(b"answer").await.unwrap();
        stream.shutdown().await.unwrap();
        got.clear();
        host.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
    }
}

#[tokio::test]
async fn reset_never_looks_like_an_end_in_either_direction() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = host.local_addr().unwrap();

    // The host resets.
    let mut stream = mediator.connect(to).await.unwrap();
    let (socket, _) = host.accept().await.unwrap();
    socket.set_zero_linger().unwrap();
    drop(socket);
    let error = stream.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    // The terminal resets, by dropping an unfinished stream.
    let stream = mediator.connect(to).await.unwrap();
    let (mut socket, _) = host.accept().await.unwrap();
    drop(stream);
    let error = socket.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    // The host ends in order, with bytes before it.
    let mut stream = mediator.connect(to).await.unwrap();
    let (mut socket, _) = host.accept().await.unwrap();
    socket.write_all(b"last words").await.unwrap();
    drop(socket);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last words");
}

#[tokio::test]
async fn terminal_that_leaves_takes_its_ports_with_it() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let tcp = mediator.listen(addr("127.0.0.1:0"), Importance::Desired).await.unwrap();
    let udp = mediator.udp_bind(addr("127.0.0.1:0"), Importance::Desired).await.unwrap();
    let (tcp_addr, udp_addr) = (tcp.local_addr(), udp.local_addr());
    drop((tcp, udp, mediator));
    let other = attach(&world).await;
    // The mediator is told by the relay when the terminal's link ends: ask until the numbers are free.
    let obligatory = |options: OpenOptions, at| options.local(at).importance(Importance::Obligatory);
    for (options, at) in [(OpenOptions::tcp(), tcp_addr), (OpenOptions::udp(), udp_addr)] {
        let freed = async {
            while other.open(&obligatory(options, at)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), freed).await.expect("the port is still open");
    }
}

#[tokio::test]
async fn stalled_stream_stops_only_itself() {
    let world = Loopback::start(&[], &[]);
    let mediator = attach(&world).await;
    let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = host.local_addr().unwrap();
    // One whose reader never reads, in each direction.
    let mut stalled_out = mediator.connect(to).await.unwrap();
    let (_host_reads_nothing, _) = host.accept().await.unwrap();
    let stall = tokio::spawn(async move {
        let chunk = vec![7; 64 * 1024];
        while stalled_out.write_all(&chunk).await.is_ok() {}
    });
    let _terminal_reads_nothing = mediator.connect(to).await.unwrap();
    let (mut stalled_in, _) = host.accept().await.unwrap();
    let stall_in = tokio::spawn(async move {
        let chunk = vec![7; 64 * 1024];
        while stalled_in.write_all(&chunk).await.is_ok() {}
    });
    for _ in 0..8 {
        let mut stream = mediator.connect(to).await.unwrap();
        let (mut socket, _) = host.accept().await.unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| ((n * 31) >> 3) as u8).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move {
            stream.write_all(&copy).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await.unwrap();
            back
        });
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
        socket.write_all(&got).await.unwrap();
        drop(socket);
        assert!(writer.await.unwrap() == sent);
    }
    stall.abort();
    stall_in.abort();
}

//! The PROXY protocol, out to hosts and in from load balancers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use crate::common::{Host, counter, name_port, published};
use isthmus_e2e::{Agent, Keys, Loopback, Ns, Process, Proto, Relay, SOON, World, have};
use isthmus_proto::door::proxy_protocol::{Ends, Header, Transport, Version, decode, encode, encode_local};
use rustix::net::{AddressFamily, SocketType};

/// Sends a request and gives the addresses that it came from and to.
fn visit(to: &str) -> Ends {
    let mut stream = TcpStream::connect(to).expect("the relay listens");
    let ends =
        Ends { source: stream.local_addr().expect("an address"), target: stream.peer_addr().expect("an address") };
    stream.write_all(b"GET / HTTP/1.1\r\nHost: cpe.example\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an orderly end");
    assert!(answer.ends_with("here"), "{answer}");
    ends
}

#[test]
fn host_is_told_of_the_visitor_before_its_first_byte() {
    for (word, version) in [("v1", Version::V1), ("v2", Version::V2)] {
        let host = Host::http("here");
        let publish = format!("tcp:127.0.0.1:0=cpe/{},proxy={word}", host.address);
        let route = format!("cpe.example=cpe/{},proxy={word}", host.address);
        let args = ["--publish", &publish, "--names", "127.0.0.1:0", "--name", &route];
        let world = Loopback::start(&args, &[]);
        for port in [published(&world, "tcp"), name_port(&world)] {
            for _ in 0..6 {
                let ends = visit(&port);
                let header = encode(version, Transport::Stream, ends);
                let head = host.head();
                assert!(head.starts_with(&header), "{port}: {head:?}");
                assert!(head[header.len()..].starts_with(b"GET / HTTP/1.1\r\n"), "{port}: {head:?}");
            }
        }
    }
}

#[test]
fn flow_of_datagrams_begins_with_a_header() {
    let host = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    host.set_read_timeout(Some(SOON)).expect("a timeout");
    let target = host.local_addr().expect("an address");
    let world = Loopback::start(&["--publish", &format!("udp:127.0.0.1:0=cpe/{target},proxy=v2")], &[]);
    let listen: SocketAddr = published(&world, "udp").parse().expect("an address");
    let visitor = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    visitor.set_read_timeout(Some(SOON)).expect("a timeout");
    let ends = Ends { source: visitor.local_addr().expect("an address"), target: listen };
    let header = encode(Version::V2, Transport::Datagram, ends);
    let mut bytes = [0; 2048];
    for (sent, expected) in [(b"one", [&header[..], b"one"].concat()), (b"two", b"two".to_vec())] {
        visitor.send_to(sent, listen).expect("sent");
        let (length, from) = host.recv_from(&mut bytes).expect("a datagram");
        assert_eq!(bytes[..length], expected);
        // What comes back is as the host sent it.
        host.send_to(b"back", from).expect("sent");
        let (length, _) = visitor.recv_from(&mut bytes).expect("an answer");
        assert_eq!(&bytes[..length], b"back");
    }
}

/// Says `bytes` from a source address and gives what comes back, and whether the end was orderly.
fn say_from(source: [u8; 4], to: &str, bytes: &[u8]) -> (String, bool) {
    let to: SocketAddr = to.parse().expect("an address");
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    rustix::net::bind(&socket, &SocketAddr::from((source, 0))).expect("an address of this machine");
    rustix::net::connect(&socket, &to).expect("the relay listens");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream.write_all(bytes).expect("written");
    let mut answer = Vec::new();
    let orderly = stream.read_to_end(&mut answer).is_ok();
    (String::from_utf8_lossy(&answer).into_owned(), orderly)
}

#[test]
fn listed_balancer_is_believed_and_nobody_else() {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: cpe.example\r\n\r\n";
    let host = Host::http("here");
    let publish = format!("tcp:127.0.0.1:0=cpe/{},proxy=v2", host.address);
    let route = format!("cpe.example=cpe/{},proxy=v2", host.address);
    let args = ["--publish", &publish, "--names", "127.0.0.1:0", "--name", &route, "--proxy-from", "127.0.0.2"];
    let world = Loopback::start(&args, &[]);
    let ports = [published(&world, "tcp"), name_port(&world)];
    let told = |head: &[u8]| match decode(head) {
        Ok(Some(Header { ends: Some(ends), length })) => (ends, head[length..].to_vec()),
        other => panic!("{other:?} in {head:?}"),
    };
    let claimed = Ends {
        source: "192.0.2.7:1234".parse().expect("an address"),
        target: "198.51.100.1:443".parse().expect("an address"),
    };
    let (balancer, other) = ([127, 0, 0, 2], [127, 0, 0, 1]);
    for port in &ports {
        for version in [Version::V1, Version::V2].repeat(3) {
            let header = encode(version, Transport::Stream, claimed);
            let (answer, orderly) = say_from(balancer, port, &[&header, REQUEST].concat());
            assert!(orderly && answer.ends_with("here"), "{port}: {answer}");
            assert_eq!(told(&host.head()), (claimed, REQUEST.to_vec()));
        }
        // Its own health check: the connection's own addresses count.
        let (answer, _) = say_from(balancer, port, &[&encode_local(Version::V2), REQUEST].concat());
        assert!(answer.ends_with("here"), "{port}: {answer}");
        let (ends, rest) = told(&host.head());
        assert_eq!((ends.source.ip().to_string(), ends.target.to_string()), ("127.0.0.2".into(), port.clone()));
        assert_eq!(rest, REQUEST);
        // One that does not say whom it is from is refused.
        assert_eq!(say_from(balancer, port, REQUEST), (String::new(), false));
    }
    assert_eq!(counter(&world, "proxy_headers_bad"), 2);
    // From everybody else it is payload: of no use to a name listener, and the host's own affair behind a port.
    let forged = [&encode(Version::V1, Transport::Stream, claimed), REQUEST].concat();
    assert!(say_from(other, &ports[1], &forged).0.starts_with("HTTP/1.1 400 "));
    assert!(say_from(other, &ports[0], &forged).0.ends_with("here"));
    let (ends, rest) = told(&host.head());
    assert_eq!((ends.source.ip().to_string(), rest), ("127.0.0.1".into(), forged));
}

#[test]
fn nginx_behind_sees_the_address_that_haproxy_in_front_saw() {
    if !["curl", "haproxy", "nginx"].iter().all(|tool| have(tool)) {
        return;
    }
    let Some(world) = World::new() else { return };
    let files = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| files.path().join(name).display().to_string();
    let nginx = format!(
        "daemon off; master_process off; pid {0}/pid; error_log stderr; events {{}}
         http {{ access_log off; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;
           uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;
           server {{ listen 10.77.0.3:80 proxy_protocol; set_real_ip_from 10.77.0.0/24; real_ip_header proxy_protocol;
             location / {{ return 200 \"$remote_addr $host\"; }} }} }}",
        files.path().display()
    );
    std::fs::write(path("nginx.conf"), nginx).expect("a file");
    let haproxy = "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
         listen front\n bind 198.51.100.1:80\n server relay 198.51.100.1:8080 send-proxy-v2\n";
    std::fs::write(path("haproxy.cfg"), haproxy).expect("a file");
    let _nginx: Process = world.spawn(Ns::Host, "nginx", &["-c", &path("nginx.conf")]);
    let _haproxy = world.spawn(Ns::Relay, "haproxy", &["-db", "-f", &path("haproxy.cfg")]);
    let keys = Keys::new();
    let route = "cpe.example.net=cpe/10.77.0.3:80,proxy=v2";
    let args = ["--names", "198.51.100.1:8080", "--name", route, "--proxy-from", "198.51.100.1"];
    let _relay = Relay::start(&world, &keys, &args);
    let _agent = Agent::start(&world, &keys, "cpe", &[]);
    world.wait_listening(Ns::Host, Proto::Tcp, 80);
    world.wait_listening(Ns::Relay, Proto::Tcp, 80);
    let get = ["-sS", "-f", "-m", "20", "-H", "Host: cpe.example.net", "http://198.51.100.1/"];
    for _ in 0..6 {
        assert_eq!(world.run(Ns::Public, "curl", &get).ok().text(), "198.51.100.2 cpe.example.net");
    }
}

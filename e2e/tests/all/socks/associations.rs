//! UDP ASSOCIATE: datagrams of one client, for as long as its connection lives.

use super::*;

/// Whether the connection's end at `near` has the system probe a silent peer: by its running timer, of kind 2.
fn is_probed(near: SocketAddr, far: SocketAddr) -> bool {
    let name = |addr: SocketAddr| {
        let SocketAddr::V4(v4) = addr else { unreachable!("bound so") };
        format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port())
    };
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table.lines().find(|line| line.contains(&format!("{} {} 01", name(near), name(far))));
    line.is_some_and(|line| line.split_whitespace().nth(5).is_some_and(|timer| timer.starts_with("02:")))
}

#[test]
fn association_carries_datagrams_of_its_client_only_and_ends_with_it() {
    let w = world();
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = host.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok((count, from)) = host.recv_from(&mut bytes) {
            let _ = host.send_to(&bytes[..count], from);
        }
    });
    let mut control = Client::open(w.own);
    control.0.write_all(&request(3, "0.0.0.0:0".parse().unwrap())).unwrap();
    let (code, relay) = control.reply();
    assert_eq!((code, relay.ip()), (0, w.own.ip()));
    let socket = |ip: &str| {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.connect(relay).unwrap();
        socket
    };
    let client = socket("127.0.0.1");
    let SocketAddr::V4(v4) = to else { unreachable!("bound so") };
    let head = [&[0, 0, 0, 1][..], &v4.ip().octets(), &v4.port().to_be_bytes()].concat();
    let mut bytes = [0; 4096];
    for len in [0, 1, 1200, 3000] {
        let sent = [&head[..], &noise(len as u64, len)].concat();
        client.send(&sent).unwrap();
        let count = client.recv(&mut bytes).unwrap();
        assert!(bytes[..count] == sent, "{len} bytes came back as {count}");
    }
    // A fragment, another address, another port number of the same one, and where the mediator does not go.
    client.send(&[&[0, 0, 1], &head[3..], b"x"].concat()).unwrap();
    socket("127.0.0.2").send(&[&head[..], b"x"].concat()).unwrap();
    socket("127.0.0.1").send(&[&head[..], b"x"].concat()).unwrap();
    client.send(&[&[0, 0, 0, 1, 192, 0, 2, 7, 0, 9][..], b"x"].concat()).unwrap();
    assert!(ends(|| w.counter("socks_datagrams_refused") == 2));
    assert!(ends(|| w.counter("socks_datagrams_dropped_fragment") == 1));
    let last = [&head[..], b"still there"].concat();
    client.send(&last).unwrap();
    let count = client.recv(&mut bytes).unwrap();
    assert_eq!(bytes[..count], last);
    assert_eq!(w.counter("socks_associations_live"), 1);
    // As long as something waits to be acknowledged, that timer is shown instead.
    let near = control.0.local_addr().unwrap();
    assert!(ends(|| is_probed(w.own, near)), "a client that vanished would hold it for ever");
    drop(control);
    // The system says that nobody is there any more.
    assert!(ends(|| client.send(&last).is_err()));
    assert!(ends(|| w.counter("socks_associations_live") == 0));
}

#[test]
fn clients_that_stay_shut_nobody_out_and_unused_associations_end() {
    let w = world_with(&["--half-open-max", "4", "--udp-idle", "3s"]);
    let stay: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = Client::open(w.own);
            client.0.write_all(&request(3, "0.0.0.0:0".parse().unwrap())).unwrap();
            assert_eq!(client.reply().0, 0);
            client
        })
        .collect();
    let mut connected = Client::open(w.own);
    connected.0.write_all(&request(1, echo())).unwrap();
    assert_eq!(connected.reply().0, 0);
    speak(&mut connected.0, b"let in");
    for mut client in stay {
        assert_ended(&mut client.0);
    }
    assert!(ends(|| w.counter("socks_associations_live") == 0));
}

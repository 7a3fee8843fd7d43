//! Published ports that come and go at run time, from an operator's side; the sockets are real, the shards are not.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use crate::common::{Client, Plane};
use isthmus_relay::admin::Limits;

fn plane(flags: &[&str]) -> Plane {
    Plane::start_flags(3, Vec::new(), Limits::default(), flags)
}

/// The real port of a line such as "published tcp:127.0.0.1:4711=…".
fn port_of(answer: &str) -> u16 {
    let (_, rest) = answer.split_once("127.0.0.1:").unwrap_or_else(|| panic!("{answer}"));
    rest.split_once('=').unwrap().0.parse().unwrap()
}

fn published(client: &mut Client) -> Vec<String> {
    let json = client.ask_json("show publishes json");
    let rows = json["publishes"].as_array().unwrap();
    // Every fake shard publishes one of its own.
    let own = |row: &&serde_json::Value| row["origin"] != "config";
    rows.iter().filter(own).map(|row| format!("{} {}", row["publish"].as_str().unwrap(), row["origin"])).collect()
}

#[test]
fn port_is_published_and_unpublished_live() {
    let plane = plane(&[]);
    let mut client = plane.client();
    let answer = client.ask("publish tcp:127.0.0.1:0=cpe-9/10.0.0.5:80");
    let port = port_of(&answer);
    assert_eq!(answer, format!("published tcp:127.0.0.1:{port}=cpe-9/10.0.0.5:80"));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    assert_eq!(published(&mut client), [format!("tcp:127.0.0.1:{port}=cpe-9/10.0.0.5:80 \"runtime\"")]);

    let twice = client.ask(&format!("publish tcp:127.0.0.1:{port}=cpe-8/10.0.0.6:80"));
    assert!(twice.starts_with("error: it is published already, as tcp:") && twice.contains("cpe-9"), "{twice}");

    let gone = client.ask(&format!("unpublish tcp:127.0.0.1:{port}"));
    assert!(gone.starts_with("unpublished tcp:") && gone.contains("1 visitors stay"), "{gone}");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    let again = client.ask(&format!("unpublish tcp:127.0.0.1:{port}"));
    assert!(again.starts_with("error: nothing is published there"), "{again}");
    plane.stop();
}

#[test]
fn of_a_range_all_ports_are_taken_or_none() {
    let plane = plane(&[]);
    let mut client = plane.client();
    // Two neighbours, of which the second is somebody else's.
    let (first, taken) = loop {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        if port > 1 && TcpListener::bind((Ipv4Addr::LOCALHOST, port - 1)).is_ok() {
            break (port - 1, taken);
        }
    };
    let range = format!("tcp:127.0.0.1:{first}-{}", first + 1);
    let refused = client.ask(&format!("publish {range}=cpe-1/10.0.0.5:80-81"));
    assert!(refused.starts_with("error: ") && refused.contains("is taken"), "{refused}");
    assert!(published(&mut client).is_empty());
    assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, first)).is_ok());

    drop(taken);
    let answer = client.ask(&format!("publish {range}=cpe-1/10.0.0.5:80-81"));
    assert_eq!(answer.lines().count(), 2, "{answer}");
    assert!(answer.lines().nth(1).unwrap().ends_with(&format!("{}=cpe-1/10.0.0.5:81", first + 1)), "{answer}");
    assert_eq!(client.ask(&format!("unpublish {range} now")).lines().count(), 2);
    assert!(published(&mut client).is_empty());
    plane.stop();
}

#[test]
fn policy_bounds_what_is_published_at_run_time() {
    let plane = plane(&["--publish-allow", "127.0.0.0/8:0", "--publish-allow", "*:2000-2999"]);
    let mut client = plane.client();
    assert!(client.ask("publish udp:127.0.0.1:0=cpe-1/10.0.0.5:53").starts_with("published "));
    for outside in ["tcp:127.0.0.1:3000=cpe-1/10.0.0.5:80", "tcp:0.0.0.0:0=cpe-1/10.0.0.5:80"] {
        let answer = client.ask(&format!("publish {outside}"));
        assert!(answer.contains("--publish-allow"), "{answer}");
    }
    plane.stop();
}

#[test]
fn kept_ports_come_back_with_the_relay_and_others_do_not() {
    let plane = plane(&[]);
    let state = plane.path.parent().unwrap().to_owned();
    let file = state.join("publishes");
    let mut client = plane.client();
    client.ask("publish tcp:127.0.0.1:0=cpe-1/10.0.0.5:80");
    assert!(!file.exists());
    let port = port_of(&client.ask("publish tcp:127.0.0.1:0=cpe-2/10.0.0.5:81 save"));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.ends_with(&format!("\ntcp:127.0.0.1:{port}=cpe-2/10.0.0.5:81\n")), "{text}");
    let dir = plane.stop_and_keep();

    let plane = Plane::restart(3, dir, &["--keep-publishes"]);
    let mut client = plane.client();
    assert_eq!(published(&mut client), [format!("tcp:127.0.0.1:{port}=cpe-2/10.0.0.5:81 \"kept\"")]);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    // With the flag, every one is kept.
    let other = port_of(&client.ask("publish tcp:127.0.0.1:0=cpe-3/10.0.0.5:82"));
    client.ask(&format!("unpublish tcp:127.0.0.1:{port}"));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(&format!(":{other}=")) && !text.contains(&format!(":{port}=")), "{text}");
    plane.stop();
}

#[test]
fn full_disk_is_told_and_nothing_is_lost() {
    let plane = plane(&[]);
    let state = plane.path.parent().unwrap().to_owned();
    let mut client = plane.client();
    let port = port_of(&client.ask("publish tcp:127.0.0.1:0=cpe-2/10.0.0.5:81 save"));
    // Where the new file has to be written, a directory is in the way.
    std::fs::create_dir_all(state.join("publishes.new/x")).unwrap();
    let answer = client.ask("publish tcp:127.0.0.1:0=cpe-2/10.0.0.5:82 save");
    assert!(answer.starts_with("error: cannot write") && answer.contains("nothing is changed"), "{answer}");
    let answer = client.ask(&format!("unpublish tcp:127.0.0.1:{port}"));
    assert!(answer.starts_with("error: cannot write"), "{answer}");
    assert_eq!(published(&mut client), [format!("tcp:127.0.0.1:{port}=cpe-2/10.0.0.5:81 \"kept\"")]);
    plane.stop();
}

//! The stats socket from an operator's side, with shards that only answer commands.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Client, Plane, names, row};
use isthmus_proto::hello::Report;
use isthmus_proto::{Code, ShardId};
use isthmus_relay::admin::{Command, Counter, Counters, Limits, ShardHandle, Stop, TunnelRow};
use isthmus_relay::report::PackedReport;

fn rows(count: usize) -> Vec<TunnelRow> {
    names(count).iter().map(|id| row(id.as_str(), ShardId(0))).collect()
}

fn plane(tunnels: usize) -> Plane {
    Plane::start(3, rows(tunnels), Limits::default())
}

#[test]
fn pipelined_commands_are_answered_in_order() {
    let plane = plane(2);
    let mut client = plane.client();
    client.send("help\nshow info; show stat ;; \n\nshow tunnels\nshwo\n");
    let heads: Vec<String> =
        (0..5).map(|_| client.answer().unwrap().split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(heads, ["show info", "name: isthmus-relay", "counter total", "id session", "error: unknown"]);
    assert_eq!(client.figure("admin_commands_total"), 6);
    assert_eq!(client.figure("admin_errors_total"), 1);
    assert_eq!(plane.stop(), Stop::Asked);
}

#[test]
fn line_may_come_in_pieces_and_the_last_one_without_its_end() {
    let plane = plane(0);
    let (mut client, mut other) = (plane.client(), plane.client());
    for piece in ["he", "lp\nshow i", "nfo\nshow st", "at"] {
        client.send(piece);
        // By then the plane, which has one thread, has had the piece too.
        other.ask("help");
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.answer().unwrap().starts_with("show info"));
    assert!(client.answer().unwrap().starts_with("name: "));
    assert!(client.answer().unwrap().starts_with("counter "));
    assert_eq!(client.answer(), None);
    plane.stop();
}

#[test]
fn quit_ends_the_connection_and_leaves_the_rest_unanswered() {
    let plane = plane(0);
    let mut client = plane.client();
    client.send("help; quit; help\nhelp\n");
    assert!(client.answer().is_some());
    assert_eq!(client.answer(), None);
    plane.stop();
}

#[test]
fn counters_are_shown_per_shard_and_in_total() {
    let plane = plane(0);
    for (n, shared) in plane.counters.iter().enumerate() {
        let mut own = Counters::default();
        own.set(Counter::TunnelsLive, 10 * (n as u64 + 1));
        own.link_closed(Code::PeerClosed);
        own.publish(shared);
    }
    let mut client = plane.client();
    assert_eq!(client.figure("tunnels_live"), 60);
    let text = client.ask("show stat");
    let line = |name: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect()
    };
    assert_eq!(line("counter"), ["total", "shard0", "shard1", "shard2"]);
    assert_eq!(line("tunnels_live"), ["60", "10", "20", "30"]);
    assert_eq!(line("links_closed_peer_closed"), ["3", "1", "1", "1"]);
    assert!(!text.contains("links_closed_silent"));
    let json = client.ask_json("show stat json");
    assert_eq!(json["total"]["tunnels_live"], 60);
    assert_eq!(json["shards"][2]["tunnels_live"], 30);
    assert_eq!(json["total"]["links_closed"]["peer-closed"], 3);
    plane.stop();
}

#[test]
fn tunnels_of_all_shards_come_in_pages_by_name() {
    let plane = plane(25);
    let mut client = plane.client();
    let mut seen = Vec::new();
    let mut command = "show tunnels limit=10 json".to_owned();
    loop {
        let page = client.ask_json(&command);
        let ids = page["tunnels"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned());
        seen.extend(ids);
        if page["more"] == false {
            break;
        }
        command = format!("show tunnels limit=10 json after={}", seen.last().unwrap());
    }
    assert_eq!(seen, names(25).iter().map(ToString::to_string).collect::<Vec<_>>());

    // A page that ends with the last tunnel knows that there are no more.
    assert_eq!(client.ask_json("show tunnels limit=25 json")["more"], false);
    assert!(client.ask("show tunnels limit=24").ends_with("# there are more: after=cpe-023"));
    let one = client.ask("show tunnels id=cpe-01?  limit=1");
    assert!(one.lines().nth(1).unwrap().starts_with("cpe-010 "), "{one}");
    assert_eq!(client.ask("show tunnels id=hub-*").lines().count(), 1);
    plane.stop();
}

#[test]
fn rows_come_back_whole_in_json() {
    let plane = Plane::start(1, rows(1), Limits::default());
    let page = plane.client().ask_json("show tunnels json");
    let row: TunnelRow = serde_json::from_value(page["tunnels"][0].clone()).unwrap();
    assert_eq!(row, rows(1)[0]);
    plane.stop();
}

#[test]
fn what_a_mediator_wrote_cannot_forge_an_answer() {
    let mut nasty = row("cpe-1", ShardId(0));
    let hostname = "a\n\nerror: \u{1b}[2Jx";
    nasty.report =
        PackedReport::from(&Report { hostname: hostname.into(), service: "\n\n".into(), ..Report::default() });
    let plane = Plane::start(1, vec![nasty.clone()], Limits::default());
    let mut client = plane.client();
    let text = client.ask("show tunnels");
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(!text.contains('\u{1b}'));
    assert_eq!(client.ask_json("show tunnels json")["tunnels"][0]["report"]["hostname"], hostname);
    plane.stop();
}

#[test]
fn published_ports_of_all_shards_are_listed() {
    let plane = plane(0);
    let mut client = plane.client();
    let text = client.ask("show publishes");
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with("tcp:127.0.0.1:8000=cpe-1/10.0.0.5:80 "), "{text}");
    let json = client.ask_json("show publishes json");
    assert_eq!(json["publishes"][2]["publish"], "tcp:127.0.0.1:8002=cpe-1/10.0.0.5:80");
    plane.stop();
}

#[test]
fn kill_ends_the_named_tunnel_and_says_when_there_is_none() {
    let plane = plane(3);
    let mut client = plane.client();
    assert_eq!(client.ask("kill tunnel cpe-001"), "tunnel of cpe-001 killed");
    assert_eq!(client.ask("kill tunnel cpe-001"), "error: no tunnel of cpe-001");
    assert_eq!(client.ask_json("show tunnels json")["tunnels"].as_array().unwrap().len(), 2);
    plane.stop();
}

#[test]
fn reader_that_is_stuck_hinders_nobody_and_is_cut_off() {
    let limits = Limits { write: Duration::from_millis(300), ..Limits::default() };
    let plane = Plane::start(3, rows(900), limits);
    let (mut stuck, mut other) = (plane.client(), plane.client());
    // An answer is several times what a Unix socket buffers.
    stuck.send("show tunnels json\nshow tunnels json\n");
    other.ask("show tunnels json");
    other.await_figure("admin_write_timeouts", 1);
    let mut got = Vec::new();
    let _ = stuck.stream.read_to_end(&mut got);
    assert!(!got.ends_with(b"\n\n"), "the answer came whole");
    assert_eq!(other.figure("admin_write_timeouts"), 1);
    plane.stop();
}

#[test]
fn endless_line_is_refused_and_the_longest_one_is_not() {
    let plane = plane(0);
    let mut client = plane.client();
    let longest = format!("help{}", " ".repeat(4092));
    assert!(client.ask(&longest).starts_with("show info"));
    client.send(&format!("{longest} \nhelp\n"));
    assert_eq!(client.answer().unwrap(), "error: a line is longer than 4096 bytes");
    assert_eq!(client.answer(), None);

    let mut endless = plane.client();
    // The plane stops reading and closes: a write fails sooner or later.
    while endless.stream.write_all(&[b'x'; 1024]).is_ok() {}
    assert_eq!(endless.answer().unwrap(), "error: a line is longer than 4096 bytes");
    assert_eq!(plane.client().figure("admin_lines_oversize"), 2);
    plane.stop();
}

#[test]
fn connections_are_bounded_and_their_places_come_free() {
    let plane = Plane::start(1, Vec::new(), Limits { connections_max: 2, ..Limits::default() });
    let (mut first, mut second) = (plane.client(), plane.client());
    first.ask("help");
    second.ask("help");
    let mut third = plane.client();
    assert_eq!(third.answer().unwrap(), "error: there are 2 connections already; try later");
    assert_eq!(third.answer(), None);
    assert_eq!(first.figure("admin_connections_refused"), 1);
    second.send("quit\n");
    assert_eq!(second.answer(), None);
    // Its end was told by the plane, so its place may come free a moment later.
    let mut fourth = loop {
        let mut client = plane.client();
        // A refused one may be closed before it has asked.
        let _ = client.stream.write_all(b"help\n");
        if client.answer().is_some_and(|answer| !answer.starts_with("error")) {
            break client;
        }
    };
    fourth.ask("help");
    plane.stop();
}

#[test]
fn silent_connection_is_closed() {
    let plane = Plane::start(1, Vec::new(), Limits { idle: Duration::from_millis(20), ..Limits::default() });
    let mut client = plane.client();
    assert_eq!(client.answer(), None);
    assert_eq!(plane.client().figure("admin_idle_timeouts"), 1);
    plane.stop();
}

#[test]
fn shard_that_does_not_answer_is_named() {
    let shard = |commands| ShardHandle { commands, wake: Arc::new(|| {}), counters: Arc::default() };
    // Shard 0 takes commands and never answers; shard 1 has ended.
    let (stuck, _queue) = crossbeam_channel::bounded::<Command>(2);
    let (ended, _) = crossbeam_channel::bounded::<Command>(1);
    let limits = Limits { reply: Duration::from_millis(50), ..Limits::default() };
    let plane = Plane::start_with(vec![shard(stuck.clone())], Vec::new(), limits.clone());
    let mut client = plane.client();
    assert_eq!(client.ask("show tunnels"), "error: shard 0 did not answer within 50ms");
    assert_eq!(client.ask("kill tunnel cpe-1"), "error: shard 0 did not answer within 50ms");
    assert_eq!(client.ask("show publishes"), "error: shard 0: the shard is busy; try again");
    // Its figures need no answer.
    assert_eq!(client.figure("tunnels_live"), 0);
    plane.stop();

    let plane = Plane::start_with(vec![shard(ended)], Vec::new(), limits);
    assert_eq!(plane.client().ask("show tunnels"), "error: shard 0: the shard has ended");
    plane.stop();
}

#[test]
fn waiting_for_a_shard_hinders_no_other_operator() {
    let (commands, queue) = crossbeam_channel::bounded(2);
    let handle = ShardHandle { commands, wake: Arc::new(|| {}), counters: Arc::default() };
    let plane = Plane::start_with(vec![handle], Vec::new(), Limits::default());
    let mut waiting = plane.client();
    waiting.send("kill tunnel cpe-1\n");
    let Ok(Command::Kill { mediator, reply }) = queue.recv() else { panic!("no kill") };
    plane.client().ask("show info");
    assert_eq!(mediator.as_str(), "cpe-1");
    reply.send(true).unwrap();
    assert_eq!(waiting.answer().unwrap(), "tunnel of cpe-1 killed");
    plane.stop();
}

#[test]
fn stop_ends_connections_and_removes_the_socket() {
    let plane = plane(0);
    let path = plane.path.clone();
    let mut client = plane.client();
    client.ask("help");
    assert_eq!(plane.stop(), Stop::Asked);
    assert_eq!(client.answer(), None);
    assert!(!path.exists());
}

#[test]
fn many_operators_are_served_at_once() {
    let plane = plane(5);
    let mut clients: Vec<Client> = (0..20).map(|_| plane.client()).collect();
    for client in &mut clients {
        client.send("show tunnels json; show stat json\n");
    }
    for client in clients.iter_mut().rev() {
        let tunnels: serde_json::Value = serde_json::from_str(&client.answer().unwrap()).unwrap();
        assert_eq!(tunnels["tunnels"].as_array().unwrap().len(), 5);
        let stat: serde_json::Value = serde_json::from_str(&client.answer().unwrap()).unwrap();
        assert_eq!(stat["shards"].as_array().unwrap().len(), 3);
    }
    plane.stop();
}

#[test]
fn socket_lets_do_what_its_level_is_and_no_more() {
    let plane = plane(2);
    for (name, looks, changes, trusts) in
        [("user.sock", true, false, false), ("operator.sock", true, true, false), ("stats.sock", true, true, true)]
    {
        let mut client = plane.client_at(name);
        for (command, allowed) in [
            ("show tunnels", looks),
            ("kill tunnel cpe-000", changes),
            ("set log info", changes),
            ("revoke mediator x", trusts),
        ] {
            let answer = client.ask(command);
            assert_eq!(!answer.contains("needs the level"), allowed, "{name}: {command}: {answer}");
        }
    }
    assert_eq!(plane.client().figure("admin_refused_level"), 4);
    plane.stop();
}

#[test]
fn what_operators_did_is_among_the_events_and_a_watcher_sees_it_come() {
    let plane = plane(2);
    let (mut client, mut watcher) = (plane.client(), plane.client_at("user.sock"));
    assert!(client.ask("set log info").starts_with("log"), "it is done");
    let shown = client.ask("show events");
    assert!(shown.contains(" operator - set log info"), "{shown}");
    let json = client.ask_json("show events limit=1 json");
    assert_eq!((&json["events"][0]["what"], &json["v"]), (&"operator".into(), &1.into()), "{json}");
    assert_eq!(client.ask("show events id=cpe-*"), "# none");

    watcher.send("show events limit=0 -w\n");
    client.ask("set log debug");
    let mut line = String::new();
    let mut byte = [0];
    while !line.ends_with('\n') {
        watcher.stream.read_exact(&mut byte).unwrap();
        line.push(char::from(byte[0]));
    }
    assert!(line.ends_with(" operator - set log debug\n"), "{line}");
    // Whatever he sends ends it, and the connection goes on.
    watcher.send("\n");
    assert_eq!(watcher.answer().as_deref(), Some("# the watch ends"));
    assert!(watcher.ask("show info").starts_with("name: "));
    plane.stop();
}

#[test]
fn help_knows_one_command_and_prompt_shows_when_the_next_may_come() {
    let plane = plane(1);
    let mut client = plane.client();
    let help = client.ask("help show tunnel");
    assert!(help.lines().count() == 3 && help.lines().all(|line| line.starts_with("show tunnel")), "{help}");
    assert!(client.ask("help shwo").contains("unknown command 'shwo'"));
    client.send("prompt\nshow events\n");
    let mut text = vec![0; 12];
    client.stream.read_exact(&mut text).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), "> # none\n\n> ");
    plane.stop();
}

#[test]
fn one_tunnel_is_shown_with_its_ports_and_terminals() {
    let plane = plane(2);
    let mut client = plane.client();
    let text = client.ask("show tunnel cpe-001");
    for part in ["cpe-001", "terminal desk from ", "port 7 tcp of a visitor"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let json = client.ask_json("show tunnel cpe-001 json");
    assert_eq!(json["detail"]["tunnel"]["id"], "cpe-001");
    assert!(client.ask("show tunnel nobody").contains("no tunnel of nobody"));
    plane.stop();
}

#[test]
fn tunnels_are_sorted_and_chosen_by_columns_over_all_shards() {
    let mut rows = rows(250);
    for (n, row) in rows.iter_mut().enumerate() {
        row.bytes_in = (n as u64 * 37) % 250;
        row.idle_s = n as u64;
    }
    let plane = Plane::start(3, rows, Limits::default());
    let mut client = plane.client();
    let json = client.ask_json("show tunnels sort=bytes_in desc limit=3 json");
    let bytes: Vec<u64> =
        json["tunnels"].as_array().unwrap().iter().map(|row| row["bytes_in"].as_u64().unwrap()).collect();
    assert_eq!((bytes, &json["more"]), (vec![249, 248, 247], &true.into()));
    let text = client.ask("show tunnels idle_s>=248 columns=id,idle_s");
    assert_eq!(text, "id       idle_s\ncpe-248  248\ncpe-249  249");
    let text = client.ask("show tunnels sort=idle_s idle_s<5 idle_s>2 columns=idle_s");
    assert_eq!(text, "idle_s\n3\n4");
    assert_eq!(client.ask_json("show tunnels rtt_us<=0 json")["tunnels"], serde_json::json!([]));
    assert!(client.ask("show tunnels udp<1").contains("udp_live"));
    plane.stop();
}

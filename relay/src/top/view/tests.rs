//! Whole pictures, as an operator would see them.

use super::*;
use crate::top::answers::{Interface, Report, Tunnel};
use crate::top::asker::Want;
use crate::top::column::Column;
use crate::top::model::{Look, News};
use crate::top::once::picture;
use crate::top::testing::{look, tunnel};
use crate::top::ui::Ui;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use std::time::Duration;

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (140, 40);

fn counters(second: u64) -> Vec<(&'static str, u64)> {
    vec![
        ("tunnels_live", 15_000),
        ("tunnels_total", 20_000 + 12 * second),
        ("visitors_live", 1234),
        ("bytes_from_mediators", 125_000_000 * second),
        ("bytes_to_mediators", 1_250_000 * second),
        ("datagrams_from_mediators", 5000 * second),
        ("datagrams_dropped_forged", 7 * second),
        ("visitors_refused_away", 3),
    ]
}

fn seen(second: u64) -> Look {
    let tunnels = (0..100).map(|n| Tunnel {
        ports: n,
        age_s: 3600 * n,
        udp_channels: 2,
        udp_channels_live: 2,
        rtt_us: Some(350 + n),
        observed: "198.51.100.10:40000".to_owned(),
        ..tunnel(&format!("cpe-{n:03}"), n * 1000 * second, n * 125_000 * second)
    });
    let mut look = look(second, &counters(second), tunnels.collect());
    look.busy = vec![Duration::from_millis(500 * second)];
    look.want = Want::List("*".to_owned());
    look
}

fn model() -> Model {
    let mut model = Model::default();
    (1..=3).for_each(|second| model.take(News::Look(Box::new(seen(second)))));
    model
}

fn ui() -> Ui {
    Ui::new(Column::Out, String::new())
}

fn shown(model: &Model, ui: &mut Ui, size: (u16, u16)) -> String {
    let picture = picture(model, ui, size).unwrap();
    assert_eq!(picture.lines().count(), usize::from(size.1));
    picture
}

#[track_caller]
fn holds(picture: &str, parts: &[&str]) {
    for part in parts {
        assert!(picture.contains(part), "no {part:?} in:\n{picture}");
    }
}

#[test]
fn eighty_by_twenty_four_tells_all_that_matters() {
    let picture = shown(&model(), &mut ui(), SMALL);
    let lines: Vec<&str> = picture.lines().collect();
    holds(lines[0], &["isthmus-relay 0.1.0", "up 1m43s", "[::]:4470", "1 shard"]);
    holds(lines[1], &["visitors 1,234"]);
    holds(lines[2], &["in", "1.00 Gbit/s", "5.00k dgram/s", "█"]);
    holds(lines[3], &["out", "10.0 Mbit/s", "█"]);
    holds(lines[4], &["15,000", "+12/s"]);
    holds(lines[5], &["dropped", "7/s", "21 in all"]);
    holds(lines[6], &["forged 7/s (21), visitors refused away (3)"]);
    holds(lines[7], &["mean 50%", "by shard 0"]);
    holds(lines[8], &["tunnels 1-13 of 100, by out, falling"]);
    assert_eq!(lines[9].split_whitespace().collect::<Vec<_>>().join(" "), "id in out▼ ports term udp rtt age");
    assert_eq!(
        lines[10].split_whitespace().collect::<Vec<_>>(),
        ["cpe-099", "792k", "99.0M", "99", "0", "2/2", "449us", "4d03h"]
    );
    holds(lines[22], &["cpe-087"]);
    holds(lines[23], &["Enter open", "/ filter", "k kill", "? help", "q quit"]);
}

#[test]
fn larger_terminals_show_higher_charts_more_columns_and_more_rows() {
    let picture = shown(&model(), &mut ui(), LARGE);
    holds(&picture, &["dgrams", "idle", "total", "observed", "198.51.100.10:40000", "tunnels 1-25 of 100"]);
}

#[test]
fn small_places_are_no_reason_to_fail() {
    let mut opened = ui();
    opened.screen = Screen::Tunnel("cpe-001".to_owned());
    let mut shards = ui();
    shards.screen = Screen::Shards;
    shards.help = true;
    for size in [(1, 1), (2, 3), (20, 5), (40, 15), (79, 16), (500, 200)] {
        for ui in [&mut ui(), &mut opened, &mut shards] {
            shown(&model(), ui, size);
        }
    }
}

#[test]
fn mark_moves_by_whole_pages() {
    let (model, mut ui) = (model(), ui());
    for _ in 0..15 {
        ui.key(KeyEvent::from(KeyCode::Down), &model);
    }
    holds(&shown(&model, &mut ui, SMALL), &["tunnels 14-26 of 100"]);
    ui.key(KeyEvent::from(KeyCode::End), &model);
    holds(&shown(&model, &mut ui, SMALL), &["tunnels 92-100 of 100"]);
}

#[test]
fn list_that_is_not_whole_says_so() {
    let mut model = Model::default();
    let mut first = seen(1);
    first.answers.page.as_mut().unwrap().as_mut().unwrap().more = true;
    model.take(News::Look(Box::new(first)));
    holds(&shown(&model, &mut ui(), SMALL), &["tunnels 1-13 of 100", "of 15,000 not all were read yet"]);
}

#[test]
fn fifty_thousand_tunnels_fit() {
    let mut model = Model::default();
    let tunnels = (0..50_000).map(|n| tunnel(&format!("cpe-{n:05}"), 0, n)).collect();
    model.take(News::Look(Box::new(look(1, &counters(1), tunnels))));
    holds(&shown(&model, &mut ui(), SMALL), &["tunnels 1-13 of 50,000"]);
}

#[test]
fn filter_and_questions_stand_in_the_last_line() {
    let (model, mut ui) = (model(), ui());
    for key in "/cpe-01".chars() {
        ui.key(KeyEvent::from(KeyCode::Char(key)), &model);
    }
    let picture = shown(&model, &mut ui, SMALL);
    holds(&picture, &["/cpe-01▏", "tunnels 1-10 of 10, by out, falling, filter cpe-01"]);
    ui.key(KeyEvent::from(KeyCode::Enter), &model);
    ui.key(KeyEvent::from(KeyCode::Char('k')), &model);
    holds(&shown(&model, &mut ui, SMALL), &["kill tunnel cpe-019?  y: yes  n: no"]);
}

#[test]
fn outcome_of_a_command_is_shown_until_the_next_key() {
    let (mut model, mut ui) = (model(), ui());
    for key in "ky".chars() {
        ui.key(KeyEvent::from(KeyCode::Char(key)), &model);
    }
    model.take(News::Done(Ok("tunnel of cpe-099 killed".to_owned())));
    holds(&shown(&model, &mut ui, SMALL), &["tunnel of cpe-099 killed"]);
    ui.key(KeyEvent::from(KeyCode::Up), &model);
    assert!(!shown(&model, &mut ui, SMALL).contains("killed"));
}

#[test]
fn lost_relay_is_told_and_the_last_figures_stay() {
    let mut model = model();
    model.take(News::Lost("no relay runs".to_owned()));
    holds(&shown(&model, &mut ui(), SMALL), &["no answer, trying again: no relay runs", "cpe-099"]);
}

#[test]
fn opened_tunnel_shows_what_its_mediator_reports_and_what_the_relay_adds() {
    let (mut model, mut ui) = (model(), ui());
    ui.screen = Screen::Tunnel("cpe-001".to_owned());
    let mut look = seen(4);
    look.want = Want::Tunnel("cpe-001".to_owned());
    let interface = Interface { name: "eth0".to_owned(), mtu: 1500, addresses: vec!["10.0.0.2/24".to_owned()] };
    let report = Report {
        interfaces: vec![interface],
        os: "Linux 6.1\u{1b}[2J".to_owned(),
        hostname: "router".to_owned(),
        policy: vec!["10.0.0.0/24".to_owned()],
        ..Report::default()
    };
    let opened = Tunnel { report, udp_channels: 2, udp_channels_live: 1, ..tunnel("cpe-001", 4000, 500_000) };
    look.answers.page = Some(Ok(crate::top::answers::Page { tunnels: vec![opened], more: false }));
    let ports = serde_json::json!({"id": "cpe-001", "ports": [{"port": 5, "proto": "tcp", "why": null}], "events": []});
    look.answers.more = vec![("tunnel", Ok(ports))];
    model.take(News::Look(Box::new(look)));
    let picture = shown(&model, &mut ui, SMALL);
    holds(&picture, &["tunnel cpe-001", "Linux 6.1?[2J", "eth0 mtu 1500  10.0.0.2/24", "1 of 2 work", "1.00 Mbit/s"]);
    holds(&picture, &["ports (1)", "port=5  proto=tcp", "Esc back"]);
    assert!(!picture.contains("events") && !picture.contains("why"));
    ui.scrolled = 1000;
    shown(&model, &mut ui, LARGE);
    assert_eq!(ui.scrolled, 0);
    ui.screen = Screen::Tunnel("nobody".to_owned());
    holds(&shown(&model, &mut ui, SMALL), &["not connected"]);
}

#[test]
fn shards_stand_side_by_side_with_every_loss_below() {
    let (model, mut ui) = (model(), ui());
    ui.screen = Screen::Shards;
    let picture = shown(&model, &mut ui, SMALL);
    holds(&picture, &["shard  load", "all   50%", "datagrams_dropped_forged", "visitors_refused_away", "Tab tunnels"]);
}

#[test]
fn help_lies_above_and_names_drain_only_where_it_works() {
    let (mut model, mut ui) = (model(), ui());
    ui.help = true;
    let picture = shown(&model, &mut ui, SMALL);
    holds(&picture, &[" keys ", "reverse the order", "Ctrl-C"]);
    assert!(!picture.contains("drain"));
    model.look.knows.drain = true;
    holds(&shown(&model, &mut ui, SMALL), &["send all mediators away"]);
    (ui.help, ui.screen) = (false, Screen::Shards);
    holds(&shown(&model, &mut ui, SMALL), &["d drain"]);
}

use std::path::Path;

use super::*;

fn parse_line(line: &str) -> Result<Invocation, clap::Error> {
    parse(std::iter::once("isthmus-relay").chain(line.split_whitespace()))
}

fn config(line: &str) -> Config {
    match parse_line(line) {
        Ok(Invocation::Run(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn example_names_every_setting_and_sets_the_defaults() {
    let text = include_str!("../../../examples/relay.toml");
    let words = ["isthmus-relay", "--state", "/d"];
    assert_eq!(isthmus_settings::check_example(&Cli::command(), &words, text, RULES), Ok(()));
}

#[test]
fn command_lines_in_the_documentation_are_taken() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let take = |words: &[String]| {
        let cli = Cli::try_parse_from(words)?;
        // One that leaves flags out need not fit together.
        let whole = cli.command.is_none() && cli.state.is_some();
        let checked = if whole { cli.config.check(1) } else { Ok(()) };
        checked.map_err(|text| Cli::command().error(ErrorKind::ValueValidation, text))
    };
    let count =
        isthmus_settings::check_documents("isthmus-relay", root, take).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(count >= 20, "only {count} are found");
}

#[test]
fn examples_in_the_help_are_taken() {
    let take = |words: &[String]| Cli::try_parse_from(words).map(drop);
    let count = isthmus_settings::check_help(&Cli::command(), take).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(count >= 15, "only {count} are found");
}

#[test]
fn clap_finds_no_contradiction() {
    Cli::command().debug_assert();
}

#[test]
fn state_alone_is_enough_and_gives_the_documented_defaults() {
    let config = config("--state /d");
    assert_eq!(config.listen, "[::]:4470".parse().unwrap());
    assert_eq!(config.stats_socket_path(), Path::new("/d/stats.sock"));
    assert_eq!(config.keepalive_tcp, Duration::from_secs(20));
    assert_eq!(config.keepalive_udp, Duration::from_secs(8));
    assert_eq!(config.dead_after, limits::DEAD_AFTER);
    assert_eq!(config.keepalive_tcp, limits::KEEPALIVE_TCP);
    assert_eq!(config.keepalive_udp, limits::KEEPALIVE_UDP);
    assert_eq!(config.keepalive_udp_max, limits::KEEPALIVE_UDP_MAX);
    assert_eq!(config.handshake_timeout, limits::HANDSHAKE_TIMEOUT);
    assert_eq!(config.handshake_timeout, Duration::from_secs(10));
    assert_eq!(config.udp_idle, Duration::from_secs(60));
    assert_eq!(config.busy_poll, Duration::ZERO);
    assert_eq!((config.half_open_max, config.udp_flows_max, config.ports_max), (4096, 16_384, limits::PORTS_MAX));
    assert_eq!(config.exposed_flows_max, 1024);
    assert!(!config.plaintext && config.congestion.is_none() && config.shards >= 1);
}

#[test]
fn every_flag_reaches_its_setting() {
    let config = config(
        "--state /d --listen 127.0.0.1:1 --shards 3 --publish tcp:0.0.0.0:80=a/10.0.0.1:80 \
         --publish udp:0.0.0.0:80=a/10.0.0.1:80 --stats-socket /s --plaintext --keepalive-tcp 1s \
         --keepalive-udp 900ms --keepalive-udp-max 5s --dead-after 2s --handshake-timeout 3s --half-open-max 7 --udp-idle 4s \
         --udp-flows-max 8 --exposed-flows-max 6 --ports-max 9 --log debug --congestion cubic",
    );
    assert_eq!(config.listen, "127.0.0.1:1".parse().unwrap());
    assert_eq!((config.shards, config.publishes().count()), (3, 2));
    assert_eq!(config.stats_socket_path(), Path::new("/s"));
    assert_eq!((config.half_open_max, config.udp_flows_max, config.ports_max), (7, 8, 9));
    assert_eq!(config.exposed_flows_max, 6);
    assert_eq!((config.log.as_str(), config.congestion.as_deref()), ("debug", Some("cubic")));
    assert!(config.plaintext);
    assert_eq!(config.keepalive_udp_max, Duration::from_secs(5));
}

#[test]
fn errors_name_the_flag() {
    for (line, flag) in [
        ("", "--state"),
        ("--state /d --listen 4470", "--listen"),
        ("--state /d --shards 0", "--shards"),
        ("--state /d --shards 129", "--shards"),
        ("--state /d --publish x", "--publish"),
        ("--state /d --publish tcp:0.0.0.0:1=a/1.1.1.1:1 --publish tcp:0.0.0.0:1=b/1.1.1.1:1", "--publish"),
        ("--state /d --keepalive-tcp 20", "--keepalive-tcp"),
        ("--state /d --keepalive-udp 99ms", "--keepalive-udp"),
        ("--state /d --dead-after 25", "--dead-after"),
        ("--state /d --ports-max 524289", "--ports-max"),
        ("--state /d --busy-poll 50", "--busy-poll"),
        ("--state /d --busy-poll 1001us", "--busy-poll"),
        ("--state /d --http 0.0.0.0:9470", "--http-token-file"),
        ("--state /d --http-token-file /t", "--http "),
        ("--state /d --log a=b=c", "--log"),
        ("token --state /d", "--mediator"),
        ("token --state /d --terminal t", "--mediators"),
        ("token --state /d --mediator m --terminal t --mediators *", "--terminal"),
        ("token --state /d --mediator m --allow open", "--terminal"),
        ("token --state /d --terminal t --mediators * --allow fly", "--allow"),
        ("token --state /d --terminal t --mediators a/b", "--mediators"),
        ("token --state /d --mediator m --ttl 0s", "--ttl"),
        ("top --once", "--stats-socket"),
        ("top --state /d --interval 999ms", "--interval"),
        ("top --state /d --interval 61s", "--interval"),
        ("top --state /d --sort colour", "--sort"),
        ("top --state /d --filter a/b", "--filter"),
    ] {
        let error = parse_line(line).expect_err(line).to_string();
        assert!(error.contains(flag), "{line}: {error}");
    }
}

#[test]
fn busy_polling_is_bounded_and_needs_a_core_for_each_shard() {
    for (text, spell) in [("0", 0), ("0s", 0), ("50us", 50), ("1ms", 1000)] {
        let config = config(&format!("--state /d --shards 1 --busy-poll {text}"));
        assert_eq!(config.busy_poll, Duration::from_micros(spell));
    }
    let polling = config("--state /d --shards 1 --busy-poll 50us");
    let with = |shards| Config { shards, ..polling.clone() };
    assert_eq!(with(4).check(4), Ok(()));
    let refusal = with(5).check(4).unwrap_err();
    assert!(refusal.contains("--busy-poll") && refusal.contains("--shards 4"), "{refusal}");
    assert_eq!(Config { busy_poll: Duration::ZERO, ..with(5) }.check(4), Ok(()));
}

#[test]
fn subcommands_need_none_of_the_relays_settings() {
    let Ok(Invocation::Token(args)) =
        parse_line("token --state /d --terminal t --mediators cpe-* --allow open,connect --to 10.0.0.0/8,*:22")
    else {
        panic!("token")
    };
    assert_eq!((args.allow.len(), args.to.len()), (2, 2));
    assert_eq!(args.ttl, Duration::from_secs(30 * 24 * 60 * 60));
    assert!(matches!(parse_line("fingerprint --state /d"), Ok(Invocation::Fingerprint(_))));
    let Ok(Invocation::Ctl(args)) = parse_line("ctl --state /d show tunnels limit=3") else { panic!("ctl") };
    assert_eq!(args.stats_socket_path(), Path::new("/d/stats.sock"));
    assert_eq!(args.command, ["show", "tunnels", "limit=3"]);
}

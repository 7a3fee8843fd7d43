use isthmus_proto::MediatorId;
use isthmus_proto::hello::{Hello, Interface, Report, Role};
use isthmus_proto::limits::FRAME_PAYLOAD_MAX;

use super::*;
use crate::token::TOKEN_LEN_MAX;
use crate::token::tests::{good_token, jwt};

const PIN: &str = "SHA256:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff";

/// Settings from these flags, with a good token, and these variables.
fn config(flags: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let token = good_token();
    exact(&[flags, &["--token", &token]].concat(), environment)
}

fn exact(flags: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let args = Args::try_parse_from([&["isthmus-agent"], flags].concat()).expect("flags that clap takes");
    Config::resolve(args, |name| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
}

/// What clap says to flags that it refuses.
fn refusal(flags: &[&str]) -> String {
    match Args::try_parse_from([&["isthmus-agent"], flags].concat()) {
        Ok(_) => panic!("{flags:?} was taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn example_names_every_setting_and_sets_the_defaults() {
    use clap::CommandFactory;
    let text = include_str!("../../../examples/agent.toml");
    assert_eq!(isthmus_settings::check_example(&Args::command(), &["isthmus-agent"], text, RULES), Ok(()));
}

#[test]
fn command_lines_in_the_documentation_are_taken() {
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let take = |words: &[String]| Args::try_parse_from(words).map(drop);
    let count =
        isthmus_settings::check_documents("isthmus-agent", root, take).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(count >= 5, "only {count} are found");
}

#[test]
fn examples_in_the_help_are_taken() {
    let take = |words: &[String]| Args::try_parse_from(words).map(drop);
    let count = isthmus_settings::check_help(&Args::command(), take).unwrap_or_else(|wrong| panic!("{wrong}"));
    assert!(count >= 6, "only {count} are found");
}

#[test]
fn the_smallest_command_line_gives_the_defaults() {
    let config = config(&["--relay", "relay.test:4470", "--pin", PIN], &[]).unwrap();
    assert_eq!(config.relay.to_string(), "relay.test:4470");
    assert!(matches!(config.trust, Trust::Pin(pin) if pin[..3] == [0, 1, 2] && pin[31] == 0xff));
    assert_eq!(config.token.load().unwrap().mediator.as_str(), "m1");
    assert_eq!((config.allow.len(), config.udp_channels, config.service.as_str()), (0, 2, ""));
    assert_eq!((config.congestion, config.log, config.busy_poll), (None, LevelFilter::INFO, Duration::ZERO));
}

#[test]
fn every_flag_arrives() {
    let ca = tempfile::NamedTempFile::new().unwrap();
    let flags = "--relay [::1]:1 --allow 10.0.0.0/8 --allow [fd00::/8]:22 --udp-channels 16 --service print \
                 --congestion cubic --log debug --ca";
    let mut flags: Vec<_> = flags.split_ascii_whitespace().collect();
    flags.push(ca.path().to_str().unwrap());
    let config = config(&flags, &[]).unwrap();
    assert_eq!(config.trust, Trust::Ca(ca.path().to_owned()));
    assert_eq!(config.allow.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "[fd00::/8]:22"]);
    assert_eq!((config.udp_channels, config.service.as_str(), config.log), (16, "print", LevelFilter::DEBUG));
    assert_eq!(config.congestion.as_deref(), Some("cubic"));
}

#[test]
fn the_environment_fills_in_and_the_command_line_wins() {
    let token = good_token();
    let all = [("ISTHMUS_RELAY", "env.test:1"), ("ISTHMUS_PIN", PIN), ("ISTHMUS_TOKEN", &token)];
    let from_environment = exact(&[], &all).unwrap();
    assert_eq!(from_environment.relay.host(), "env.test");
    assert!(matches!(from_environment.trust, Trust::Pin(_)));
    assert_eq!(from_environment.token.load().unwrap().mediator.as_str(), "m1");

    let other = jwt(r#"{"role":"mediator","sub":"m2"}"#);
    let both = exact(&["--relay", "flag.test:1", "--plaintext", "--token", &other], &all).unwrap();
    assert_eq!((both.relay.host(), both.trust), ("flag.test", Trust::Plaintext));
    assert_eq!(both.token.load().unwrap().mediator.as_str(), "m2");
    let spell = [&all[..], &[("ISTHMUS_BUSY_POLL", "50us")]].concat();
    assert_eq!(exact(&[], &spell).unwrap().busy_poll, Duration::from_micros(50));
    assert_eq!(exact(&["--busy-poll", "20us"], &spell).unwrap().busy_poll, Duration::from_micros(20));
    let ca = tempfile::NamedTempFile::new().unwrap();
    let with_ca = exact(&["--ca", ca.path().to_str().unwrap()], &all).unwrap();
    assert_eq!(with_ca.trust, Trust::Ca(ca.path().to_owned()));
}

#[test]
fn what_is_missing_is_asked_for_by_flag_and_variable() {
    let (relay, token) = (["--relay", "r:1"], good_token());
    for (result, words) in [
        (config(&["--pin", PIN], &[("ISTHMUS_RELAY", "")]), ["--relay", "ISTHMUS_RELAY"]),
        (config(&relay, &[("ISTHMUS_PIN", " ")]), ["--pin", "--ca"]),
        (exact(&[&relay[..], &["--plaintext"]].concat(), &[]), ["--token-file", "ISTHMUS_TOKEN"]),
        (exact(&["--pin", "x", "--relay", "r:1", "--token", &token], &[]), ["--pin", "isthmus-relay fingerprint"]),
        (config(&["--relay", "r", "--plaintext"], &[]), ["--relay", "relay.example.net:4470"]),
        (config(&[&relay[..], &["--ca", "/nowhere/ca.pem"]].concat(), &[]), ["--ca", "/nowhere/ca.pem"]),
        (config(&[&relay[..], &["--ca", "/"]].concat(), &[]), ["--ca", "ca.pem"]),
        (
            config(&[&relay[..], &["--plaintext", "--congestion", "a/b"]].concat(), &[]),
            ["--congestion", "tcp_allowed_congestion_control"],
        ),
        (config(&[&relay[..], &["--plaintext", "--busy-poll", "50"]].concat(), &[]), ["--busy-poll", "50us"]),
        (config(&[&relay[..], &["--plaintext", "--service", "a\nb"]].concat(), &[]), ["--service", "shorten"]),
    ] {
        let text = result.unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn contradictions_and_values_out_of_range_are_refused_by_flag() {
    for (flags, word) in [
        (&["--pin", "a", "--ca", "b"][..], "--ca"),
        (&["--plaintext", "--pin", "a"], "--plaintext"),
        (&["--plaintext", "--ca", "b"], "--plaintext"),
        (&["--token", "a", "--token-file", "b"], "--token-file"),
        (&["--udp-channels", "17"], "--udp-channels"),
        (&["--allow", "10.0.0.0/33"], "CIDR[:PORTS], as in"),
        (&["--log", "loud"], "--log"),
    ] {
        let text = refusal(flags);
        assert!(text.contains(word), "{text}");
    }
    assert_eq!(config(&["--relay", "r:1", "--plaintext", "--udp-channels", "0"], &[]).unwrap().udp_channels, 0);
}

#[test]
fn limits_hold_on_both_sides_of_their_edges() {
    let with = |flag: &str, value: &str| config(&["--relay", "r:1", "--plaintext", flag, value], &[]);
    assert!(with("--service", &"s".repeat(SERVICE_LEN_MAX)).is_ok());
    assert!(matches!(with("--service", &"s".repeat(SERVICE_LEN_MAX + 1)), Err(ConfigError::BadService)));
    assert!(with("--congestion", &"c".repeat(CONGESTION_LEN_MAX)).is_ok());
    assert!(matches!(with("--congestion", &"c".repeat(CONGESTION_LEN_MAX + 1)), Err(ConfigError::BadCongestion(_))));
    assert_eq!(with("--busy-poll", "1ms").unwrap().busy_poll, BUSY_POLL_MAX);
    assert_eq!(with("--busy-poll", "0").unwrap().busy_poll, Duration::ZERO);
    assert!(matches!(with("--busy-poll", "1001us"), Err(ConfigError::BadBusyPoll(_))));
    let rules =
        |count| config(&[&["--relay", "r:1", "--plaintext"], &["--allow", "*"].repeat(count)[..]].concat(), &[]);
    assert_eq!(rules(RULES_MAX).unwrap().allow.len(), RULES_MAX);
    assert!(matches!(rules(RULES_MAX + 1), Err(ConfigError::TooManyRules(_))));
}

#[test]
fn the_greatest_hello_fits_one_frame() {
    let net = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap();
    let interface = |_| Interface { name: "n".repeat(15), mtu: u32::MAX, addresses: vec![net] };
    let rule: AllowRule = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128]:64000-65535".parse().unwrap();
    let report = Report {
        interfaces: (0..crate::environment::ADDRESSES_MAX).map(interface).collect(),
        gateways: vec![net.addr(); crate::environment::GATEWAYS_MAX],
        os: "o".repeat(130),
        version: "v".repeat(32),
        hostname: "h".repeat(64),
        policy: vec![rule; RULES_MAX.max(crate::environment::ADDRESSES_MAX)],
        // Escapes double it.
        service: "\"".repeat(SERVICE_LEN_MAX),
        offers: vec![Offer { name: "n".repeat(HostName::LEN_MAX), target: (net.addr(), u16::MAX).into() }; OFFERS_MAX],
        asks: vec!["a".repeat(ASKS_LEN_MAX / ASKS_MAX); ASKS_MAX],
    };
    let len = serde_json::to_vec(&report).unwrap().len();
    assert!(len <= FRAME_PAYLOAD_MAX, "{len} of {FRAME_PAYLOAD_MAX}");
    // What is offered and asked for may come in a report of its own.
    let report = Box::new(Report { offers: Vec::new(), asks: Vec::new(), ..report });
    let role = Role::Mediator { id: "m".repeat(MediatorId::LEN_MAX).parse().unwrap(), report };
    let hello = Hello { token: "t".repeat(TOKEN_LEN_MAX), role, udp_channels: 16, instance: u64::MAX };
    let len = serde_json::to_vec(&hello).unwrap().len();
    // The version stands before the JSON.
    assert!(len + size_of::<u16>() <= FRAME_PAYLOAD_MAX, "{len} of {FRAME_PAYLOAD_MAX}");
}

#[test]
fn debug_forms_keep_the_token_to_themselves() {
    let token = good_token();
    let config = config(&["--relay", "r:1", "--plaintext"], &[]).unwrap();
    let text = format!("{config:?} {:?}", config.token.load().unwrap());
    assert!(!text.contains(&token) && text.contains("m1"), "{text}");
}

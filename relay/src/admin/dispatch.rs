//! What the words of a command mean.

use std::ops::RangeInclusive;
use std::time::Duration;

use isthmus_proto::MediatorId;

use super::answer::phrase;
use super::level::Level;
use super::tunnels::Query;
use crate::expose::{BadExpose, Expose, ServerPort};
use crate::journal::{Event, KEPT};
use crate::names::{BadNameRoute, NameRoute, Pattern};
use crate::publish::{BadPublish, Ports, PublishSpec};
use crate::trust::{Glob, Target, token_named};

/// Events that are shown unless a limit says otherwise.
const EVENTS_DEFAULT: usize = 100;

/// What `help` says.
pub(super) const HELP: &str = "\
show info [json]                                           the relay itself
show stat [json]                                           every counter, in total and per shard
show metrics                                               the same and more, as Prometheus reads it
show shards [json]                                         each shard: load, links, what waits
show pools [json]                                          buffers of each shard
show limits [json]                                         bounds, how near they are, what they refused
show errors [json]                                         what went wrong since the start, and what it means
show config [json]                                         settings in force, and where each is from
show tunnels [id=GLOB] [after=ID] [limit=N] [json]         connected mediators, by name
show tunnels sort=COLUMN [desc] [columns=A,B] [COLUMN>N]   the same, sorted and chosen by columns
show tunnel ID [json]                                      one mediator: ports, terminals, environment
show events [id=GLOB] [limit=N] [-w] [json]                what happened; with -w also what happens from now on
show flows [id=GLOB] [limit=N] [json]                      UDP flows of published ports and exposed services
show publishes [json]                                      published ports
publish PROTO:ADDR:PORT=MEDIATOR/HOST:PORT [save]          lend a port; [save] keeps it over a restart
unpublish PROTO:ADDR:PORT [now]                            close it; visitors stay, but for [now]
show asks [json]                                           what mediators ask for, and what became of it
show exposes [json]                                        ports of mediators that lead to public addresses
expose PROTO:MEDIATOR/IP:PORT=HOST:PORT                    lead hosts there, until the relay ends
unexpose PROTO:MEDIATOR/IP:PORT [now]                      lead them no more; TCP connections stay, but for [now]
show names [json]                                          where names lead
name NAME=MEDIATOR/HOST:PORT                               lead visitors of a name there, until the relay ends
unname NAME                                                lead them no more; visitors stay
reload                                                     read configuration and keys again, as SIGHUP does
set log FILTER                                             log level or filter, until the next reload
check tunnels [within=TIME]                                an operation through each; says how many answered in 10 s or this time
show trust [json]                                          token keys, issuers, authorities, revocations
reload trust                                               read them again; sessions that they do not cover end
revoke token JTI                                           end what that token let in
revoke mediator ID                                         end what that mediator was issued so far
revoke terminal NAME                                       end what that terminal was issued so far
kill tunnel ID                                             end a mediator's tunnel; it may connect again
drain [over=TIME]                                          send mediators away, spread over a minute or this time
undrain                                                    let them in again
help [COMMAND]                                             this list, or of it what begins so
prompt                                                     show '> ' when the next command may come
quit                                                       end this connection
Commands end with a line's end or ';', answers with a blank line; errors begin with 'error: '.
";

/// How an answer is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
}

/// One command, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// All of it, or of the commands that begin so.
    Help(Option<String>),
    Prompt,
    Quit,
    Info(Format),
    Stat(Format),
    Metrics,
    Shards(Format),
    Pools(Format),
    Flows {
        glob: Glob,
        limit: usize,
        format: Format,
    },
    Limits(Format),
    Errors(Format),
    Config(Format),
    Tunnels(Query, Format),
    Detail(MediatorId, Format),
    Events {
        filter: EventsFilter,
        watch: bool,
        format: Format,
    },
    Publishes(Format),
    Trust(Format),
    ReloadTrust,
    /// With the end of what is revoked, if it tells.
    Revoke(Target, Option<u64>),
    Publish {
        spec: PublishSpec,
        save: bool,
    },
    Unpublish {
        ports: Ports,
        now: bool,
    },
    Asks(Format),
    Exposes(Format),
    Expose(Expose),
    Unexpose {
        server: ServerPort,
        now: bool,
    },
    Names(Format),
    Name(NameRoute),
    Unname(Pattern),
    Reload,
    SetLog(String),
    Kill(MediatorId),
    Drain(Duration),
    Undrain,
    Check(Duration),
}

impl Request {
    /// What one has to be to give it.
    pub(super) fn level(&self) -> Level {
        match self {
            Self::Help(_) | Self::Prompt | Self::Quit | Self::Info(_) | Self::Stat(_) | Self::Metrics => Level::User,
            Self::Tunnels(..) | Self::Detail(..) | Self::Events { .. } | Self::Publishes(_) => Level::User,
            Self::Shards(_) | Self::Pools(_) | Self::Flows { .. } | Self::Limits(_) | Self::Errors(_) => Level::User,
            Self::Config(_) => Level::User,
            Self::Trust(_) | Self::Asks(_) | Self::Exposes(_) | Self::Names(_) => Level::User,
            Self::Publish { .. } | Self::Unpublish { .. } | Self::Expose(_) | Self::Unexpose { .. } => Level::Operator,
            Self::Name(_) | Self::Unname(_) | Self::SetLog(_) | Self::Kill(_) | Self::Check(_) => Level::Operator,
            Self::Drain(_) | Self::Undrain => Level::Operator,
            Self::Reload | Self::ReloadTrust | Self::Revoke(..) => Level::Admin,
        }
    }
}

/// Which events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EventsFilter {
    /// Of mediators of this pattern only.
    pub(super) glob: Option<Glob>,
    /// How many of those that were.
    pub(super) limit: usize,
}

impl EventsFilter {
    pub(super) fn passes(&self, event: &Event) -> bool {
        match (&self.glob, &event.mediator) {
            (None, _) => true,
            (Some(glob), Some(id)) => glob.matches(id),
            (Some(_), None) => false,
        }
    }
}

/// The help's lines on the commands that begin so.
pub(super) fn help(words: &str) -> Result<String, String> {
    let found: String = HELP.lines().filter(|line| line.starts_with(words)).map(|line| format!("{line}\n")).collect();
    if found.is_empty() { Err(unknown(words)) } else { Ok(found) }
}

fn unknown(command: &str) -> String {
    let command = command.trim();
    let shown = phrase(command);
    match nearest(command) {
        Some(near) => format!("unknown command '{shown}'; did you mean '{near}'? 'help' lists them"),
        None => format!("unknown command '{shown}'; 'help' lists them"),
    }
}

/// The words of a command that are most like these, if any are.
fn nearest(command: &str) -> Option<String> {
    let words = |text: &str| {
        let plain = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
        text.split(' ').take_while(plain).take(2).collect::<Vec<_>>().join(" ")
    };
    let given = command.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let commands = HELP.lines().filter(|line| line.contains("  ")).map(words).filter(|words| !words.is_empty());
    let likeness = |near: &String| strsim::jaro_winkler(near, &given);
    commands.max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|near| likeness(near) >= 0.8)
}

/// Reads one command; an error is a text for the operator.
pub(super) fn parse(command: &str) -> Result<Request, String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["help"] => Ok(Request::Help(None)),
        ["help", ..] => Ok(Request::Help(Some(words[1..].join(" ")))),
        ["prompt"] => Ok(Request::Prompt),
        ["quit" | "exit"] => Ok(Request::Quit),
        ["show", "info", rest @ ..] => format_only(rest).map(Request::Info),
        ["show", "stat", rest @ ..] => format_only(rest).map(Request::Stat),
        ["show", "metrics"] => Ok(Request::Metrics),
        ["show", "shards", rest @ ..] => format_only(rest).map(Request::Shards),
        ["show", "pools", rest @ ..] => format_only(rest).map(Request::Pools),
        ["show", "limits", rest @ ..] => format_only(rest).map(Request::Limits),
        ["show", "errors", rest @ ..] => format_only(rest).map(Request::Errors),
        ["show", "config", rest @ ..] => format_only(rest).map(Request::Config),
        ["show", "flows", rest @ ..] => flows(rest),
        ["show", "publishes", rest @ ..] => format_only(rest).map(Request::Publishes),
        ["show", "tunnels", rest @ ..] => Query::parse(rest).map(|(query, format)| Request::Tunnels(query, format)),
        ["show", "tunnel", id, rest @ ..] => match id.parse() {
            Ok(id) => format_only(rest).map(|format| Request::Detail(id, format)),
            Err(error) => Err(format!("'{}': {error}", phrase(id))),
        },
        ["show", "tunnel"] => Err("write: show tunnel ID [json]".to_owned()),
        ["show", "events", rest @ ..] => events(rest),
        ["kill", "tunnel", id] => id.parse().map(Request::Kill).map_err(|error| format!("'{}': {error}", phrase(id))),
        ["show", "asks", rest @ ..] => format_only(rest).map(Request::Asks),
        ["show", "exposes", rest @ ..] => format_only(rest).map(Request::Exposes),
        ["expose", service] => service.parse().map(Request::Expose).map_err(|error: BadExpose| bad(service, &error)),
        ["unexpose", server, rest @ ..] => Ok(Request::Unexpose {
            server: server.parse().map_err(|error: BadExpose| bad(server, &error))?,
            now: option(rest, "now")?,
        }),
        ["expose", ..] => Err("write: expose PROTO:MEDIATOR/IP:PORT=HOST:PORT".to_owned()),
        ["unexpose"] => Err("write: unexpose PROTO:MEDIATOR/IP:PORT [now]".to_owned()),
        ["show", "names", rest @ ..] => format_only(rest).map(Request::Names),
        ["name", route] => route.parse().map(Request::Name).map_err(|error: BadNameRoute| bad(route, &error)),
        ["unname", name] => name.parse().map(Request::Unname).map_err(|error: BadNameRoute| bad(name, &error)),
        ["name", ..] => Err("write: name NAME=MEDIATOR/HOST:PORT".to_owned()),
        ["unname", ..] => Err("write: unname NAME".to_owned()),
        ["show", "trust", rest @ ..] => format_only(rest).map(Request::Trust),
        ["reload", "trust"] => Ok(Request::ReloadTrust),
        ["revoke", "token", text] => token_named(text).map(|(target, until)| Request::Revoke(target, until)),
        ["revoke", "mediator", id] => match id.parse() {
            Ok(id) => Ok(Request::Revoke(Target::Mediator(id), None)),
            Err(error) => Err(format!("'{}': {error}", phrase(id))),
        },
        // A terminal's name may have spaces.
        ["revoke", "terminal", first, rest @ ..] => {
            let name = [&[*first], rest].concat().join(" ");
            Ok(Request::Revoke(Target::Terminal(name), None))
        }
        ["revoke", ..] => Err("write: revoke token JTI, revoke mediator ID, or revoke terminal NAME".to_owned()),
        ["publish", spec, rest @ ..] => Ok(Request::Publish {
            spec: spec.parse().map_err(|e: BadPublish| bad(spec, &e))?,
            save: option(rest, "save")?,
        }),
        ["unpublish", ports, rest @ ..] => Ok(Request::Unpublish {
            ports: ports.parse().map_err(|e: BadPublish| bad(ports, &e))?,
            now: option(rest, "now")?,
        }),
        ["publish"] => Err("write: publish PROTO:ADDR:PORT=MEDIATOR/HOST:PORT [save]".to_owned()),
        ["unpublish"] => Err("write: unpublish PROTO:ADDR:PORT [now]".to_owned()),
        ["reload"] => Ok(Request::Reload),
        ["set", "log", filter] => Ok(Request::SetLog((*filter).to_owned())),
        ["set", ..] => Err("write: set log FILTER".to_owned()),
        ["drain", rest @ ..] => drain(rest).map(Request::Drain),
        ["undrain"] => Ok(Request::Undrain),
        ["check", "tunnels", rest @ ..] => check(rest).map(Request::Check),
        ["kill", "tunnel", ..] => Err("write: kill tunnel ID".to_owned()),
        _ => Err(unknown(command)),
    }
}

fn bad(word: &str, error: &dyn std::error::Error) -> String {
    format!("'{}': {}", phrase(word), error.to_string().replace(char::is_control, "?"))
}

/// Whether the one optional word is there.
fn option(words: &[&str], name: &str) -> Result<bool, String> {
    match words {
        [] => Ok(false),
        [word] if *word == name => Ok(true),
        [word, ..] => Err(format!("'{}' is not understood here; only '{name}' is", phrase(word))),
    }
}

fn format_only(words: &[&str]) -> Result<Format, String> {
    match words {
        [] => Ok(Format::Text),
        ["json"] => Ok(Format::Json),
        [word, ..] => Err(format!("'{}' is not understood here; 'help' lists the commands", phrase(word))),
    }
}

/// How long a draining may be spread.
const DRAIN_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const DRAIN_DEFAULT: Duration = Duration::from_secs(60);

/// How long a mediator may take to answer a check.
const CHECK_DEFAULT: Duration = Duration::from_secs(10);

fn drain(words: &[&str]) -> Result<Duration, String> {
    let bad = |word: &str| format!("'{}': write drain, or drain over=TIME such as 5m, of at most a day", phrase(word));
    time(words, "over=", Duration::ZERO..=DRAIN_MAX).map(|time| time.unwrap_or(DRAIN_DEFAULT)).map_err(bad)
}

/// What a mediator may take at the least and at the most to answer a check.
const CHECK_WITHIN: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

fn check(words: &[&str]) -> Result<Duration, String> {
    let bad =
        |word: &str| format!("'{}': write check tunnels, or check tunnels within=TIME, of 1s to 60s", phrase(word));
    time(words, "within=", CHECK_WITHIN).map(|time| time.unwrap_or(CHECK_DEFAULT)).map_err(bad)
}

/// The time of the one optional word; the word that is none.
fn time<'a>(words: &[&'a str], prefix: &str, range: RangeInclusive<Duration>) -> Result<Option<Duration>, &'a str> {
    match words {
        [] => Ok(None),
        [word] => {
            let time = word.strip_prefix(prefix).and_then(|text| humantime::parse_duration(text).ok());
            time.filter(|time| range.contains(time)).map(Some).ok_or(word)
        }
        [_, word, ..] => Err(word),
    }
}

/// Flows that are shown unless a limit says otherwise, and at most.
const FLOWS_DEFAULT: usize = 1000;
const FLOWS_MAX: usize = 100_000;

fn flows(words: &[&str]) -> Result<Request, String> {
    let (mut glob, mut limit, mut format) = (Glob::any(), FLOWS_DEFAULT, Format::Text);
    for word in words {
        let bad = |why: String| format!("'{}': {why}", phrase(word));
        match word.split_once('=') {
            None if *word == "json" => format = Format::Json,
            Some(("id", text)) => glob = text.parse().map_err(|error: crate::trust::BadGlob| bad(error.to_string()))?,
            Some(("limit", text)) => match text.parse() {
                Ok(number @ 1..=FLOWS_MAX) => limit = number,
                _ => return Err(bad(format!("a limit is a number from 1 to {FLOWS_MAX}"))),
            },
            _ => return Err(bad("write id=GLOB, limit=N or json".to_owned())),
        }
    }
    Ok(Request::Flows { glob, limit, format })
}

fn events(words: &[&str]) -> Result<Request, String> {
    let mut filter = EventsFilter { glob: None, limit: EVENTS_DEFAULT };
    let (mut watch, mut format) = (false, Format::Text);
    for word in words {
        let bad = |why: String| format!("'{}': {why}", phrase(word));
        match word.split_once('=') {
            None if *word == "json" => format = Format::Json,
            None if *word == "-w" => watch = true,
            Some(("id", glob)) => {
                filter.glob = Some(glob.parse().map_err(|error: crate::trust::BadGlob| bad(error.to_string()))?);
            }
            Some(("limit", limit)) => match limit.parse() {
                Ok(limit @ 0..=KEPT) => filter.limit = limit,
                _ => return Err(bad(format!("a limit is a number from 0 to {KEPT}"))),
            },
            _ => return Err(bad("write id=GLOB, limit=N, -w or json".to_owned())),
        }
    }
    Ok(Request::Events { filter, watch, format })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctl_commands_in_the_documentation_are_understood() {
        let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let found = std::cell::RefCell::new(Vec::new());
        let take = |words: &[String]| {
            let mut behind = words.iter().skip_while(|word| *word != "ctl").skip(1).peekable();
            // Where the relay is: a flag and its value.
            while behind.next_if(|word| word.starts_with("--")).is_some() {
                behind.next();
            }
            let command: Vec<_> = behind.cloned().collect();
            found.borrow_mut().push(command.join(" "));
            Ok(())
        };
        isthmus_settings::check_documents("isthmus-relay", root, take).unwrap();
        for path in isthmus_settings::documents(root) {
            for (_, line) in isthmus_settings::code_lines(&std::fs::read_to_string(path).unwrap()) {
                // A remark stands behind three blanks.
                let command = line.split("   ").next().unwrap_or_default();
                if ["publish ", "unpublish ", "expose ", "unexpose ", "set log "]
                    .iter()
                    .any(|word| line.starts_with(word))
                {
                    found.borrow_mut().push(command.to_owned());
                }
            }
        }
        let lines = found.into_inner();
        let commands: Vec<&str> =
            lines.iter().flat_map(|line| line.split(';')).filter(|c| !c.trim().is_empty()).collect();
        assert!(commands.len() > 10, "{commands:?}");
        for command in commands {
            assert!(parse(command).is_ok(), "{command}: {:?}", parse(command));
        }
    }

    #[test]
    fn every_command_of_the_help_is_understood() {
        let commands: Vec<&str> = HELP.lines().filter_map(|line| line.split("  ").next()).collect();
        for command in &commands[..commands.len() - 1] {
            let full = command
                .replace("PROTO:ADDR:PORT", "tcp:0.0.0.0:1-2")
                .replace("PROTO:", "udp:")
                .replace("IP:PORT", "10.0.0.2:1")
                .replace("HOST:PORT", "10.0.0.5:1")
                .replace("MEDIATOR", "m")
                .replace("GLOB", "*")
                .replace("ID", "cpe-1")
                .replace("JTI", "00ff")
                .replace("NAME", "desk")
                .replace("=N", "=5")
                .replace("TIME", "30s")
                .replace("COLUMN", "age_s")
                .replace("A,B", "id,ports")
                .replace(">N", ">5");
            assert!(parse(&full.replace(['[', ']'], "")).is_ok(), "{command}");
            let short = full.split(" [").next().unwrap();
            assert!(parse(short).is_ok(), "{command}");
        }
        assert_eq!(commands.len(), 38);
    }

    #[test]
    fn every_command_is_in_the_documentation() {
        let page = include_str!("../../../docs/stats.md");
        for line in HELP.lines().filter(|line| line.contains("  ")) {
            let command = line.split("  ").next().unwrap_or_default();
            assert!(page.contains(&format!("`{command}`")), "docs/stats.md says nothing of `{command}`");
        }
    }

    #[test]
    fn errors_say_what_to_write() {
        for (command, part) in [
            ("shwo info", "did you mean 'show info'"),
            ("kil tunnel x", "did you mean 'kill tunnel'"),
            ("show tunnel", "show tunnel ID"),
            ("show events limit=4097", "0 to 4096"),
            ("show events -f", "-w"),
            ("", "'help' lists"),
            ("show", "'help' lists"),
            ("show info xml", "'xml'"),
            ("show tunnels order=age", "id=GLOB"),
            ("publish", "write: publish"),
            ("publish tcp:0.0.0.0:80", "no '='"),
            ("publish tcp:0.0.0.0:80=m/10.0.0.5:80 now", "only 'save'"),
            ("unpublish", "write: unpublish"),
            ("unpublish tcp:0.0.0.0", "port number"),
            ("unpublish tcp:0.0.0.0:80 save", "only 'now'"),
            ("expose", "write: expose"),
            ("expose udp:m/10.0.0.2:1=192.0.2.1:1,proxy=v1", "write proxy=v2"),
            ("unexpose", "write: unexpose"),
            ("unexpose tcp:m/10.0.0.2:1 save", "only 'now'"),
            ("name", "write: name"),
            ("name a.b", "no '='"),
            ("unname", "write: unname"),
            ("unname a_*", "'a_*'"),
            ("kill tunnel", "kill tunnel ID"),
            ("revoke", "revoke mediator ID"),
            ("revoke mediator a/b", "'a/b'"),
            ("show flows limit=0", "1 to 100000"),
            ("show flows to=x", "id=GLOB"),
            ("drain now", "over=TIME"),
            ("drain over=2d", "at most a day"),
            ("kill tunnel a b", "kill tunnel ID"),
            ("kill tunnel a/b", "'a/b'"),
            ("\u{1b}[2J", "'?[2J'"),
        ] {
            let error = parse(command).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{command}: {error}");
        }
    }
}

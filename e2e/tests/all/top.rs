//! `isthmus-relay top` in a real terminal (tmux, 80 x 24), on a relay with traffic.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_e2e::{Loopback, Process, SOON, program};
use tempfile::TempDir;

use crate::common::{ctl, published, until};

/// A tmux server of the test's own, with one program on its screen.
struct Tmux {
    folder: TempDir,
}

impl Tmux {
    /// Starts the program, or says that the test is skipped.
    fn start(size: (u16, u16), words: &[&OsStr]) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            eprintln!("skipped: tmux is not installed");
            return None;
        }
        let it = Self { folder: TempDir::new().expect("a temporary directory") };
        let (width, height) = (size.0.to_string(), size.1.to_string());
        // What the program leaves on the screen, and how it ended, can be seen after its end.
        let script = r#""$@"; echo "ended with $?"; stty -a | grep -o -e '-\?icanon'; sleep 600"#;
        let mut command =
            it.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, "sh", "-c", script, "sh"]);
        let status = command.args(words).env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").status();
        assert!(status.expect("tmux can be started").success());
        Some(it)
    }

    fn tmux(&self, args: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.socket()).arg("-u").args(args);
        command
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("tmux")
    }

    fn keys(&self, keys: &[&str]) {
        let status = self.tmux(&["send-keys"]).args(keys).status().expect("tmux can be started");
        assert!(status.success(), "{keys:?}");
    }

    fn screen(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p"]).output().expect("tmux can be started");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits for a screen that is as wanted, and returns it.
    #[track_caller]
    fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                keep(what, &screen);
                return screen;
            }
            assert!(Instant::now() < deadline, "never seen: {what}; at last:\n{screen}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // Its own server, on its own socket.
        let _ = self.tmux(&["kill-server"]).output();
    }
}

/// Screens go to this folder, for the documentation.
fn keep(what: &str, screen: &str) {
    if let Some(folder) = std::env::var_os("ISTHMUS_TOP_SCREENS") {
        let _ = std::fs::write(PathBuf::from(folder).join(what.replace(' ', "-")), screen);
    }
}

/// A relay, three mediators, and traffic through the first until the test ends.
struct Busy {
    world: Loopback,
    _others: Vec<Process>,
}

impl Busy {
    fn start() -> Self {
        let host = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let target = host.local_addr().expect("an address");
        thread::spawn(move || {
            for stream in host.incoming().map_while(Result::ok) {
                thread::spawn(move || echo(stream));
            }
        });
        let publish = format!("tcp:127.0.0.1:0=cpe/{target}");
        let world = Loopback::start(&["--publish", &publish], &["--service", "meter reading"]);
        let others = ["hub-1", "hub-2"].map(|id| Loopback::start_agent(&world.keys, &world.service, id, &[]));
        let port = published(&world, "tcp");
        thread::spawn(move || visit(&port));
        Self { world, _others: others.into() }
    }

    fn top(&self, args: &[&str]) -> Vec<std::ffi::OsString> {
        let mut words = vec![program("isthmus-relay").into_os_string(), "top".into(), "--state".into()];
        words.push(self.world.keys.path().into());
        words.extend(args.iter().map(Into::into));
        words
    }

    fn show(&self, args: &[&str]) -> Option<Tmux> {
        let words = self.top(args);
        Tmux::start((80, 24), &words.iter().map(|word| word.as_os_str()).collect::<Vec<_>>())
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 16_384];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
}

/// A visitor who sends and reads on, with rests; a new one where the tunnel has ended.
fn visit(port: &str) {
    let mut buffer = [7; 8192];
    while let Ok(mut stream) = TcpStream::connect(port) {
        while stream.write_all(&buffer).and_then(|()| stream.read_exact(&mut buffer)).is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// The rows of the list, by their first words.
fn listed(screen: &str) -> Vec<&str> {
    let first = |line: &'_ str| line.split_whitespace().next().unwrap_or_default().len();
    screen.lines().map(|line| &line[..first(line)]).filter(|word| *word == "cpe" || word.starts_with("hub-")).collect()
}

#[test]
fn screens_follow_the_keys_and_a_kill_asks_first() {
    let busy = Busy::start();
    let Some(top) = busy.show(&[]) else { return };
    let screen = top.wait("list", |screen| {
        // Two looks make rates.
        let busy = screen.lines().any(|line| line.starts_with("cpe ") && line.contains(['k', 'M']));
        busy && listed(screen) == ["cpe", "hub-1", "hub-2"]
    });
    assert!(screen.contains("isthmus-relay 0.1.0") && screen.contains("2 shards"), "{screen}");
    assert!(screen.contains("tunnels 1-3 of 3, by out, falling") && screen.contains("q quit"), "{screen}");
    assert!(screen.contains("visitors 1") && screen.contains("mean"), "{screen}");

    top.keys(&["n", "r"]);
    top.wait("sorted", |screen| listed(screen) == ["hub-2", "hub-1", "cpe"]);
    top.keys(&["/", "hub"]);
    top.wait("filter being written", |screen| screen.contains("/hub") && listed(screen) == ["hub-2", "hub-1"]);
    top.keys(&["Enter"]);
    top.wait("filtered", |screen| screen.contains("filter hub") && screen.contains("q quit"));
    top.keys(&["Escape"]);
    top.wait("all again", |screen| listed(screen).len() == 3);

    top.keys(&["End", "Enter"]);
    let screen = top.wait("tunnel", |screen| {
        screen.contains("tunnel cpe") && screen.contains("meter reading") && screen.contains("published ports (1)")
    });
    assert!(screen.contains("127.0.0.0/8") && screen.contains("Esc back"), "{screen}");
    top.keys(&["Tab"]);
    top.wait("shards", |screen| screen.contains("shard  load") && screen.contains("dropped or refused"));
    top.keys(&["Tab", "?"]);
    top.wait("help", |screen| screen.contains("reverse the order"));
    top.keys(&["?", "Home", "k"]);
    top.wait("kill asks", |screen| screen.contains("kill tunnel hub-2?  y: yes  n: no"));
    top.keys(&["n"]);
    top.wait("not killed", |screen| screen.contains("q quit"));
    assert!(!busy.world.relay.lines().iter().any(|line| line.contains("killed")));
    top.keys(&["k", "y"]);
    top.wait("killed", |screen| screen.contains("tunnel of hub-2 killed"));
    busy.world.relay.wait_for_line("tunnel ended mediator=hub-2 .. reason=killed", SOON);

    top.keys(&["q"]);
    let screen = top.wait("after the end", |screen| screen.contains("ended with 0") && screen.contains("icanon"));
    assert!(!screen.contains("-icanon"), "the terminal was not given back: {screen}");
}

#[test]
fn lost_relay_is_shown_and_a_signal_gives_the_terminal_back() {
    let mut busy = Busy::start();
    let Some(top) = busy.show(&[]) else { return };
    top.wait("before the loss", |screen| listed(screen).len() == 3);
    let pids = top.tmux(&["list-panes", "-F", "#{pane_pid}"]).output().expect("tmux can be started");
    busy.world.relay.kill();
    top.wait("lost", |screen| screen.contains("no answer, trying again") && listed(screen).len() == 3);
    // The pane's process is the shell; its only child is what is tested.
    let shell = String::from_utf8_lossy(&pids.stdout).trim().to_owned();
    let children = format!("/proc/{shell}/task/{shell}/children");
    let child = std::fs::read_to_string(children).expect("the shell runs").trim().to_owned();
    assert!(Command::new("kill").arg(&child).status().expect("kill can be started").success());
    let screen = top.wait("after the signal", |screen| screen.contains("ended with 0") && screen.contains("icanon"));
    assert!(!screen.contains("-icanon"), "the terminal was not given back: {screen}");
}

#[test]
fn picture_follows_the_size_of_the_terminal_and_control_c_ends_it() {
    let busy = Busy::start();
    let Some(top) = busy.show(&["--filter", "hub-*", "--sort", "id"]) else { return };
    top.wait("filtered from the start", |screen| listed(screen) == ["hub-1", "hub-2"]);
    assert!(top.tmux(&["resize-window", "-x", "140", "-y", "40"]).status().expect("tmux can be started").success());
    top.wait("large", |screen| screen.contains("observed") && screen.lines().count() == 40);
    top.keys(&["C-c"]);
    top.wait("ended", |screen| screen.contains("ended with 0"));
}

#[test]
fn once_prints_one_picture_as_text_and_says_when_there_is_no_relay() {
    let mut busy = Busy::start();
    let once = |busy: &Busy| {
        let words = busy.top(&["--once"]);
        Command::new(&words[0]).args(&words[1..]).output().expect("isthmus-relay can be started")
    };
    until(SOON, || ctl(&busy.world, "show info").contains("tunnels_live: 3"));
    let output = once(&busy);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !text.contains('\u{1b}'), "{text}");
    assert_eq!((listed(&text).len(), text.lines().count()), (3, 24), "{text}");
    busy.world.relay.kill();
    let output = once(&busy);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("no relay runs"), "{error}");
}

#[test]
fn program_ends_when_its_terminal_has_gone() {
    let busy = Busy::start();
    let Some(tmux) = busy.show(&[]) else { return };
    tmux.wait("the list before its end", |screen| screen.contains("hub-2"));
    let output = tmux.tmux(&["display-message", "-p", "#{pane_pid}"]).output().expect("tmux can be started");
    let shell = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
    let top = format!("/proc/{}", children.split_whitespace().next().expect("the program runs"));
    drop(tmux);
    let deadline = Instant::now() + SOON;
    while std::fs::read_to_string(format!("{top}/cmdline")).is_ok_and(|words| words.contains("top")) {
        assert!(Instant::now() < deadline, "it goes on without a terminal");
        thread::sleep(Duration::from_millis(50));
    }
}

//! The terminal's command line against a relay and a mediator behind the gateway.

use isthmus_e2e::{Agent, Keys, Ns, Proto, Relay, SOON, Terminal, World, have, noise};

fn tunnel(world: &World) -> (Keys, Relay, Agent) {
    let keys = Keys::new();
    let relay = Relay::start(world, &keys, &[]);
    let agent = Agent::start(world, &keys, "cpe", &["--service", "temperature watch"]);
    (keys, relay, agent)
}

#[test]
fn info_and_list_tell_about_the_mediator() {
    let Some(world) = World::new() else { return };
    let (keys, _relay, _agent) = tunnel(&world);
    let _other = Agent::start(&world, &keys, "hub", &[]);
    let terminal = Terminal::new(&keys);
    let info = terminal.run(&world, &["info", "cpe"]).ok().text();
    for part in ["cpe", "198.51.100.10", "10.77.0.2", "temperature watch"] {
        assert!(info.contains(part), "no '{part}' in:\n{info}");
    }
    let list = terminal.run(&world, &["list"]).ok().text();
    assert!(list.contains("cpe") && list.contains("hub"), "{list}");

    let cpe_only = Terminal::with_token(keys.pin(), keys.terminal_token("cp*", &[]));
    let list = cpe_only.run(&world, &["list"]).ok().text();
    assert!(list.contains("cpe") && !list.contains("hub"), "{list}");
    let away = terminal.run(&world, &["info", "nobody"]).failed().all();
    assert!(away.contains("not connected"), "{away}");
}

#[test]
fn forward_brings_a_file_from_a_host() {
    let Some(world) = World::new() else { return };
    if !have("curl") {
        return;
    }
    let (keys, _relay, _agent) = tunnel(&world);
    let files = tempfile::tempdir().expect("a temporary directory");
    let content = noise(11, 8 << 20);
    std::fs::write(files.path().join("file"), &content).expect("a file");
    let dir = files.path().to_str().expect("a plain path");
    let _http = world.serve(Ns::Host, &["http", "10.77.0.3:80", "--dir", dir]);
    let _forward = Terminal::new(&keys).spawn(&world, &["forward", "cpe", "-L", "127.0.0.1:8080:10.77.0.3:80"]);
    world.wait_listening(Ns::Public, Proto::Tcp, 8080);
    for _ in 0..3 {
        let got = world.run(Ns::Public, "curl", &["-sS", "-f", "-m", "50", "http://127.0.0.1:8080/file"]).ok().stdout;
        assert!(got == content, "{} bytes, and not those that were sent", got.len());
    }
}

#[test]
fn forward_keeps_half_closes_resets_and_many_streams_apart() {
    let Some(world) = World::new() else { return };
    let (keys, _relay, _agent) = tunnel(&world);
    let _half = world.serve(Ns::Host, &["half-close-serve", "10.77.0.3:5001"]);
    let _resets = world.serve(Ns::Host, &["end-serve", "--how", "reset", "10.77.0.3:5002"]);
    let _ends = world.serve(Ns::Host, &["end-serve", "--how", "fin", "10.77.0.3:5003"]);
    let _streams = world.serve(Ns::Host, &["streams-serve", "10.77.0.3:5004"]);
    let terminal = Terminal::new(&keys);
    let _forwards: Vec<_> = (5001..=5005)
        .map(|port| {
            let forward = format!("127.0.0.1:{port}:10.77.0.3:{port}");
            let process = terminal.spawn(&world, &["forward", "cpe", "-L", &forward]);
            world.wait_listening(Ns::Public, Proto::Tcp, port);
            process
        })
        .collect();

    world.run_tool(Ns::Public, &["half-close-call", "127.0.0.1:5001"]).ok();
    // On 5005 nobody listens: a refusal is not an orderly end either.
    for (port, end) in [("5002", "end reset"), ("5003", "end fin"), ("5005", "end reset")] {
        let seen = world.run_tool(Ns::Public, &["end-call", "--how", "watch", &format!("127.0.0.1:{port}")]).ok();
        assert!(seen.text().starts_with(end), "port {port}: {}", seen.text());
    }
    let call = ["streams-call", "--n", "32", "--bytes", "64M", "--stall", "1", "127.0.0.1:5004"];
    world.run_tool(Ns::Public, &call).ok();
}

#[test]
fn forward_of_udp_keeps_sizes_and_senders() {
    let Some(world) = World::new() else { return };
    let (keys, _relay, _agent) = tunnel(&world);
    let _echo = world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]);
    let terminal = Terminal::new(&keys);
    let _forward = terminal.spawn(&world, &["forward", "cpe", "-L", "127.0.0.1:5300:10.77.0.3:5300", "-U"]);
    world.wait_listening(Ns::Public, Proto::Udp, 5300);
    let ping = ["udp-ping", "--visitors", "10", "--count", "5", "--sizes", "0,1,1200,1472", "127.0.0.1:5300"];
    world.run_tool(Ns::Public, &ping).ok();
    world.run_tool(Ns::Public, &["udp-ping", "--sizes", "9000,65507", "127.0.0.1:5300"]).ok();
}

#[test]
fn listen_makes_a_server_in_the_private_network_that_leads_to_the_terminal() {
    let Some(world) = World::new() else { return };
    let (keys, _relay, _agent) = tunnel(&world);
    let _echo = world.serve(Ns::Public, &["tcp-echo", "127.0.0.1:5001"]);
    let listen = ["listen", "cpe", "10.77.0.2:9000", "--to", "127.0.0.1:5001"];
    let mut process = Terminal::new(&keys).spawn(&world, &listen);
    world.wait_listening(Ns::Private, Proto::Tcp, 9000);
    // A host of the private network, which knows nothing of all this, reaches the terminal's service.
    world.run_tool(Ns::Host, &["tcp-ping", "--bytes", "1000000", "10.77.0.2:9000"]).ok();
    for _ in 0..10 {
        world.run_tool(Ns::Host, &["tcp-ping", "--bytes", "1", "10.77.0.2:9000"]).ok();
    }
    // The port is the terminal's: it goes when the terminal goes.
    process.kill();
    world.wait_free(Ns::Private, Proto::Tcp, 9000);
}

#[test]
fn nc_carries_standard_input_and_output_and_names_refusals() {
    let Some(world) = World::new() else { return };
    let (keys, _relay, _agent) = tunnel(&world);
    let _echo = world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]);
    let terminal = Terminal::new(&keys);
    let mut nc = terminal.spawn(&world, &["nc", "cpe", "10.77.0.3", "5001"]);
    for word in ["first\n", "second\n"] {
        nc.write(word.as_bytes());
        nc.wait_for_line(word.trim(), SOON);
    }
    nc.close_input();
    assert!(nc.wait_exit(SOON).success());

    let refused = terminal.run(&world, &["nc", "cpe", "10.77.0.3", "9"]).failed().all();
    assert!(refused.contains("refused"), "{refused}");
}

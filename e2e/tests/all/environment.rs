//! What the mediator tells about itself, and what it answers where no way leads.

use isthmus_e2e::{Agent, Keys, Ns, Relay, SOON, Terminal, World};

#[test]
fn changed_address_is_reported_again_and_the_policy_follows() {
    let Some(world) = World::new() else { return };
    let keys = Keys::new();
    let relay = Relay::start(&world, &keys, &[]);
    let _agent = Agent::start(&world, &keys, "cpe", &["--service", "remote help"]);
    let terminal = Terminal::new(&keys);

    let before = terminal.run(&world, &["info", "cpe"]).ok().text();
    for told in ["10.77.0.2/24", "fd77::2/64", "10.77.0.1", "mtu", "Linux", "remote help", "10.77.0.0/24"] {
        assert!(before.contains(told), "no {told} in:\n{before}");
    }
    assert!(!before.contains("192.168.77.0/24"));
    let denied = terminal.run(&world, &["nc", "cpe", "192.168.77.9", "80"]).failed().all();
    assert!(denied.contains("allow-list"), "{denied}");

    world.run(Ns::Private, "ip", &["address", "add", "192.168.77.2/24", "dev", "eth0"]).ok();
    relay.process.wait_for_line("environment changed .. cpe", SOON);
    let after = terminal.run(&world, &["info", "cpe"]).ok().text();
    assert!(after.contains("192.168.77.2/24") && after.contains("192.168.77.0/24"), "{after}");
    let rows = relay.ctl(&world, &keys, &["show", "tunnels", "json"]).ok().text();
    assert!(rows.contains("192.168.77.2/24"), "{rows}");
    // Now it is an attached subnet: nobody answers there, but nothing forbids it.
    let unanswered = terminal.run(&world, &["nc", "cpe", "192.168.77.9", "80"]).failed().all();
    assert!(!unanswered.contains("allow-list"), "{unanswered}");
}

#[test]
fn unreachable_hosts_and_networks_have_their_own_answers() {
    let Some(world) = World::new() else { return };
    let keys = Keys::new();
    let _relay = Relay::start(&world, &keys, &[]);
    world.run(Ns::Private, "ip", &["route", "add", "unreachable", "10.99.0.0/24"]).ok();
    let _agent = Agent::start(&world, &keys, "cpe", &["--allow", "*"]);
    world.run(Ns::Private, "ip", &["-6", "route", "del", "default"]).ok();
    let terminal = Terminal::new(&keys);
    for (to, words) in [("10.99.0.1", "cannot be reached"), ("2001:db8:99::1", "no route to the destination network")] {
        let said = terminal.run(&world, &["nc", "cpe", to, "80"]).failed().all();
        assert!(said.contains(words), "{to}: {said}");
    }
}

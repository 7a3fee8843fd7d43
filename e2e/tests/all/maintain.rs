//! What the maintain channel is for: bindings that would expire, are lost, or change; darkness; ghosts. All times are
//! shortened in proportion: the gateway forgets UDP after 2 s, the mediator sends each 500 ms, 3 s of silence are death.

use std::time::Duration;

use isthmus_e2e::{Agent, Keys, Ns, Relay, SOON, World, silence};

const UDP: &str = "198.51.100.1:5300";
const TCP: &str = "198.51.100.1:5001";
/// How long coming back may take: the dead time, a back-off, and a busy machine.
const BACK_AGAIN: Duration = Duration::from_secs(40);

/// A tunnel behind a forgetful gateway, with echo services published.
struct Maintained {
    agent: Agent,
    relay: Relay,
    _services: [isthmus_e2e::Process; 2],
    _keys: Keys,
    world: World,
}

impl Maintained {
    fn new() -> Option<Self> {
        let world = World::with(&["--udp-timeout", "2", "--tcp-timeout", "4"])?;
        let services = [
            world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]),
            world.serve(Ns::Host, &["tcp-echo", "10.77.0.3:5001"]),
        ];
        let keys = Keys::new();
        let args = "--keepalive-udp 500ms --keepalive-tcp 1s --dead-after 3s --udp-idle 5m \
                    --publish udp:0.0.0.0:5300=cpe/10.77.0.3:5300 --publish tcp:0.0.0.0:5001=cpe/10.77.0.3:5001";
        let relay = Relay::start(&world, &keys, &args.split_whitespace().collect::<Vec<_>>());
        let agent = Agent::start(&world, &keys, "cpe", &[]);
        Some(Self { agent, relay, _services: services, _keys: keys, world })
    }

    /// Datagrams from the relay's side, each of which has to come through without a second try, and as UDP: all but the
    /// first, which may travel together with the announcement of its visitor.
    #[track_caller]
    fn datagrams_pass_at_once(&self) {
        let before = self.world.counters();
        self.world.run_tool(Ns::Public, &["udp-ping", "--count", "3", "--sizes", "700", UDP]).ok();
        let after = self.world.counters();
        let crossed = after.udp_in.bytes - before.udp_in.bytes;
        assert!(crossed >= 1400, "only {crossed} bytes crossed the gateway as UDP, so the binding was not kept");
    }

    #[track_caller]
    fn stream_passes(&self) {
        self.world.run_tool(Ns::Public, &["tcp-ping", TCP]).ok();
    }

    /// Whether the session has lived on without an interruption since `marks`.
    #[track_caller]
    fn assert_same_session(&self) {
        assert!(!self.agent.process.said_after(0, "tunnel down"), "the mediator lost its session");
        assert!(!self.relay.process.said_after(0, "tunnel ended"), "the relay ended the session");
    }

    #[track_caller]
    fn comes_back_after(&self, mark: usize) {
        self.agent.process.wait_for_line_after(mark, "tunnel down", BACK_AGAIN);
        self.agent.process.wait_for_line_after(mark, "tunnel up", BACK_AGAIN);
        self.stream_passes();
        // UDP channels may need a first exchange of their own.
        self.world.run_tool(Ns::Public, &["udp-ping", "--retries", "10", "--timeout-ms", "1000", UDP]).ok();
    }
}

#[test]
fn idle_tunnel_takes_a_datagram_and_a_stream_after_several_binding_lifetimes() {
    let Some(it) = Maintained::new() else { return };
    it.datagrams_pass_at_once();
    for _ in 0..2 {
        silence(Duration::from_secs(7));
        it.datagrams_pass_at_once();
        silence(Duration::from_secs(7));
        it.stream_passes();
    }
    it.assert_same_session();
}

#[test]
fn gateways_udp_lifetime_is_learned_from_a_spare_port_and_relied_on() {
    let Some(world) = World::with(&["--udp-timeout", "3"]) else { return };
    let _service = world.serve(Ns::Host, &["udp-echo", "10.77.0.3:5300"]);
    let keys = Keys::new();
    let args = "--keepalive-udp 1s --keepalive-udp-max 6s --dead-after 3s --udp-idle 5m \
                --publish udp:0.0.0.0:5300=cpe/10.77.0.3:5300";
    let relay = Relay::start(&world, &keys, &args.split_whitespace().collect::<Vec<_>>());
    let agent = Agent::start(&world, &keys, "cpe", &[]);
    world.run_tool(Ns::Public, &["udp-ping", "--retries", "10", "--timeout-ms", "1000", UDP]).ok();
    let learned = agent.process.wait_for_line("settled=true", Duration::from_secs(120));
    let proven = learned.split("proven_s=").nth(1).and_then(|rest| rest.split_whitespace().next());
    let proven: f32 = proven.unwrap().parse().unwrap();
    assert!((1.7..=3.5).contains(&proven), "the gateway forgets after 3 s, and {proven} s was learned");
    // The flow's binding outlives several of its own lifetimes, kept by the rarer packets.
    silence(Duration::from_secs(10));
    let rows = relay.ctl(&world, &keys, &["show", "tunnels", "json"]).ok().text();
    assert!(rows.contains("\"udp_period_s\":1") || rows.contains("\"udp_period_s\":2"), "{rows}");
    world.run_tool(Ns::Public, &["udp-ping", "--count", "3", "--sizes", "700", UDP]).ok();
    assert!(!agent.process.said_after(0, "tunnel down"), "the mediator lost its session");
}

#[test]
fn open_stream_survives_quiet_times_longer_than_any_binding() {
    let Some(it) = Maintained::new() else { return };
    let mut stream = it.world.tool(Ns::Public, &["pipe", TCP]);
    for word in ["one", "two", "three"] {
        stream.write(format!("{word}\n").as_bytes());
        stream.wait_for_line(word, SOON);
        silence(Duration::from_secs(6));
    }
    it.assert_same_session();
}

#[test]
fn udp_rebinding_is_adopted_without_losing_the_session() {
    let Some(it) = Maintained::new() else { return };
    it.datagrams_pass_at_once();
    for _ in 0..3 {
        it.world.rebind_udp();
        // Until the next maintain packet the relay cannot know; from then on every datagram arrives.
        it.world.run_tool(Ns::Public, &["udp-ping", "--retries", "20", "--timeout-ms", "300", UDP]).ok();
        // Of each channel, and that was one.
        silence(Duration::from_secs(2));
        it.datagrams_pass_at_once();
        it.stream_passes();
    }
    it.assert_same_session();
}

#[test]
fn gateway_that_forgets_everything_is_noticed_and_overcome() {
    let Some(it) = Maintained::new() else { return };
    let mark = it.agent.process.mark();
    it.world.flush_conntrack();
    it.comes_back_after(mark);
}

#[test]
fn change_of_the_public_address_is_noticed_and_overcome() {
    let Some(it) = Maintained::new() else { return };
    let (agent, relay) = (it.agent.process.mark(), it.relay.process.mark());
    it.world.change_public_address("198.51.100.10", "198.51.100.77");
    it.comes_back_after(agent);
    it.relay.process.wait_for_line_after(relay, "tunnel ended mediator=cpe", BACK_AGAIN);
}

#[test]
fn short_darkness_interrupts_nothing() {
    let Some(it) = Maintained::new() else { return };
    let mut stream = it.world.tool(Ns::Public, &["pipe", TCP]);
    stream.write(b"before\n");
    stream.wait_for_line("before", SOON);
    it.world.drop_everything(true);
    stream.write(b"meanwhile\n");
    silence(Duration::from_millis(1000));
    it.world.drop_everything(false);
    stream.wait_for_line("meanwhile", SOON);
    stream.write(b"after\n");
    stream.wait_for_line("after", SOON);
    it.assert_same_session();
}

#[test]
fn long_darkness_is_noticed_by_both_ends_and_overcome() {
    let Some(it) = Maintained::new() else { return };
    let mut witness = it.world.tool(Ns::Public, &["pipe", TCP]);
    witness.write(b"there\n");
    witness.wait_for_line("there", SOON);
    let (agent, relay) = (it.agent.process.mark(), it.relay.process.mark());
    it.world.drop_everything(true);
    it.agent.process.wait_for_line_after(agent, "tunnel down", BACK_AGAIN);
    it.relay.process.wait_for_line_after(relay, "tunnel ended mediator=cpe .. reason=silent", BACK_AGAIN);
    witness.wait_for_line("end reset", SOON);
    silence(Duration::from_secs(6));
    it.world.drop_everything(false);
    it.comes_back_after(agent);
}

#[test]
fn udp_that_is_blocked_in_mid_life_falls_back_to_tcp_and_returns() {
    let Some(it) = Maintained::new() else { return };
    it.datagrams_pass_at_once();
    it.world.drop_udp(true);
    // Until the channel counts as dead, datagrams are lost, as datagrams may be.
    it.world.run_tool(Ns::Public, &["udp-ping", "--retries", "30", "--timeout-ms", "500", UDP]).ok();
    it.world.drop_udp(false);
    let deadline = std::time::Instant::now() + BACK_AGAIN;
    loop {
        let before = it.world.counters();
        it.world
            .run_tool(
                Ns::Public,
                &["udp-ping", "--retries", "30", "--timeout-ms", "500", "--sizes", "700", "--count", "3", UDP],
            )
            .ok();
        let after = it.world.counters();
        if after.udp_in.bytes - before.udp_in.bytes >= 1400 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "datagrams stayed on TCP");
    }
    it.assert_same_session();
}

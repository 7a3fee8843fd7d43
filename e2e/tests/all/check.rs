//! `check tunnels`, on the loopback interface.

use crate::common::{counter, ctl};
use isthmus_e2e::Loopback;
use rustix::process::Signal;

#[test]
fn check_says_within_its_time_how_many_tunnels_did_not_answer() {
    let mut world = Loopback::start(&[], &[]);
    let _other = Loopback::start_agent(&world.keys, &world.service, "other", &[]);
    assert_eq!(ctl(&world, "check tunnels").trim(), "2 tunnels are asked: 2 answered");
    // Its kernel goes on, so that the tunnel is not lost.
    world.agent.signal(Signal::STOP);
    let said = ctl(&world, "check tunnels within=2s");
    world.agent.signal(Signal::CONT);
    assert!(said.contains("2 tunnels are asked: 1 answered, 1 did not answer within 2s"), "{said}");
    assert_eq!(["checks_answered", "checks_unanswered"].map(|name| counter(&world, name)), [3, 1]);
    // What comes late is no answer to the next round, and no port is left.
    assert_eq!(ctl(&world, "check tunnels").trim(), "2 tunnels are asked: 2 answered");
    assert!(world.agent.runs());
    for bad in ["within=0s", "within=61s", "within", "over=5s", "within=5s twice"] {
        let said = ctl(&world, &format!("check tunnels {bad}"));
        assert!(said.contains("within=TIME, of 1s to 60s"), "{bad}: {said}");
    }
}

//! Random faults to both nodes of a pair under load, for a minute; `cargo xtask chaos pair` is the long form.

use lb_tests::{
    failover::chaos::{self, Blow},
    require,
    skip::Need,
};

#[test]
fn a_minute_of_faults() {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("bridge"), Need::Tool("faketime"));
    let options = chaos::Options {
        what: "pair".to_owned(),
        minutes: 1.2,
        seed: 5,
        interval_ms: 100,
        every: 3,
        connections: 100,
        blows: Blow::ALL.to_vec(),
        no_sync: false,
    };
    let story =
        chaos::play(&options, &mut |line| eprintln!("{line}")).expect("every fault is recovered from");
    eprintln!("{}", story.table());
    assert!(story.chapters.len() >= 5, "{} faults", story.chapters.len());
    assert!(story.connections.bytes > 0);
    assert!(story.broken_rules.is_empty(), "{:#?}", story.broken_rules);
}

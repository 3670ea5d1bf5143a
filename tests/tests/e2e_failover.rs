//! What a takeover costs, in short; `cargo xtask bench failover` is the long form.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    echo,
    failover::{
        Bars, bench,
        nodes::{self, Fault, INSTANCE, PORT, PRIORITIES, VIP},
        prober::{Prober, Way},
    },
    lab::wait_until,
    require,
    skip::Need,
};

/// A busy machine of two cores may be late by so much; what is asked is whether a takeover works at all as promised.
const SLACK_MS: f64 = 150.0;

fn outages(interval: Duration, faults: &[Fault]) {
    let options = bench::Options {
        intervals: vec![interval],
        runs: 2,
        json: None,
        only: None,
        faults: faults.to_vec(),
        no_sync: false,
        assert: false,
    };
    let rows = bench::measure(&options, &mut |line| eprintln!("{line}")).expect("figures");
    assert_eq!(rows.iter().filter(|row| row.product == "lbd").count(), 2 * faults.len());
    for row in &rows {
        eprintln!("{} {} {}: {:?} ms", row.product, row.fault.name(), row.probe, row.outages_ms);
        // Whatever happened, the pair came back, and something was measured in every run.
        assert_eq!(row.outages_ms.len(), 2, "{row:?}");
    }
    let bars = Bars { slack_ms: SLACK_MS, ..Bars::default() };
    let missed = bars.missed(&rows);
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn a_takeover_at_ten_milliseconds() {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("keepalived"));
    outages(
        Duration::from_millis(10),
        &[Fault::Gone, Fault::Silent, Fault::Term, Fault::Failover, Fault::Preempt],
    );
}

#[test]
fn a_takeover_at_a_hundred_milliseconds() {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("keepalived"));
    outages(Duration::from_millis(100), &[Fault::Link, Fault::Term]);
}

/// The better node takes its address back only once it knows its way to the backends again and holds none for dead that its
/// peer uses.
#[test]
fn a_cable_that_is_plugged_in_again_costs_nothing() {
    require!(Need::Root, Need::Tool("ip"));
    let interval = Duration::from_millis(10);
    for health in
        ["type = \"none\"", "type = \"icmp\"\ninterval = \"200ms\"\ntimeout = \"150ms\"\nrise = 2\nfall = 2"]
    {
        let topology = nodes::network().expect("a network");
        let server = |node: &lb_tests::lab::Node| echo::udp_echo(&node.ns, &node.name, VIP.into(), PORT);
        let _servers: Vec<_> = topology.backends.iter().map(|node| server(node).expect("a server")).collect();
        let balancers: Vec<Balancer<'_>> = (0..2)
            .map(|on| {
                let echo = Service::www([VIP.into()]).name("echo").udp().port(PORT).health(health);
                let vrrp = nodes::vrrp(INSTANCE, 51, PRIORITIES[on], interval, &[&format!("{VIP}/24")]);
                let rest = vrrp + &nodes::sync(&topology, on).expect("a key");
                let settings = Settings { on, rest, ..Settings::of([echo.nodes(&topology.backends)]) };
                let settings = Settings { interfaces: vec!["eth0".to_owned()], ..settings };
                Balancer::start(&topology, settings).expect("a balancer")
            })
            .collect();
        let is = |on: usize, state: &str| {
            nodes::state(&balancers[on], INSTANCE).is_some_and(|view| view.state == state)
        };
        let patience = Duration::from_secs(20);
        let first = || is(0, "master") && is(1, "backup");
        wait_until("lb1 is master", patience, first).expect("a pair");
        topology.switch.ip("link set lb1 down\n").expect("the cable is out");
        wait_until("lb2 is master", patience, || is(1, "master")).expect("a takeover");
        // Long enough for the checks to fail and for neighbours to be forgotten.
        sleep(Duration::from_secs(1));
        let prober = Prober::start(
            &topology.client.ns,
            Way::Udp(SocketAddr::new(VIP.into(), PORT)),
            Duration::from_millis(1),
        )
        .expect("a prober");
        wait_until("answers by lb2", patience, || prober.answers() >= 200).expect("answers");
        topology.switch.ip("link set lb1 up\n").expect("the cable is in");
        wait_until("lb1 is master again", patience, first).expect("its return");
        sleep(Duration::from_secs(1));
        let outage = prober.stop().outage(Duration::from_millis(1));
        eprintln!("{health:?}: {outage:?}");
        assert!(outage.length < Duration::from_millis(100) + outage.late, "{health}: {outage:?}");
    }
}

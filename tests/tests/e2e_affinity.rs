//! Ten thousand established connections of a real kernel, while backends change at random, strangers send SYNs, and the daemon
//! is killed and comes back: no connection to a living backend breaks, and no byte of one is lost.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings},
    crowd::{Crowd, Visitors},
    lab::{Process, Result, Shape, Sniffer, Topology, wait_until},
    packets::{Packet, Rng, SYN, checksum},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(30);
const CONNECTIONS: usize = 10_000;
const CHANGES: usize = 50;
const SYNS: u32 = 300_000;
/// Short, so that slots settle while the test runs.
const IDLE: Duration = Duration::from_secs(8);
/// Backends that are there from the beginning; two more come and go.
const STAYING: usize = 6;
/// Where the SYNs come from; nobody answers there.
const STRANGERS: &str = "100.64.0.0/10";

fn echo_servers(topology: &Topology, targets: &[SocketAddr]) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    for node in &topology.backends {
        node.ns.ip(&format!("route add blackhole {STRANGERS}\n"))?;
        let mut command = node.ns.command(env!("CARGO_BIN_EXE_echo"));
        command.arg(&node.name).args(targets.iter().map(SocketAddr::to_string));
        let server = topology.lab.spawn(&format!("echo-{}", node.name), command)?;
        server.wait_for_log("ready", PATIENCE)?;
        servers.push(server);
    }
    Ok(servers)
}

/// SYNs of strangers, from the router towards the balancer, at a pace that leaves others some time.
fn flood(topology: &Topology, target: IpAddr) -> Result<()> {
    let leg = &topology.router.interfaces[0];
    let link = Sniffer::open(&topology.router.ns, &leg.name)?;
    let mut rng = Rng::new(5);
    let packet = Packet::tcp(([100, 64, 0, 0], 1).into(), (target, 80).into()).with(|p| {
        p.tcp_mut().flags = SYN;
        (p.dst_mac, p.src_mac) = (topology.lb[0].interfaces[0].mac, leg.mac);
    });
    let mut frame = packet.build();
    for number in 0..SYNS {
        let random = rng.bits();
        // 22 bits of the source, its port, the sequence number. The TCP checksum goes wrong: the balancer does not look at
        // it, and the backends drop what passes.
        frame[27..30].copy_from_slice(&(0x40_0000 | random as u32 & 0x003f_ffff).to_be_bytes()[1..]);
        frame[34..36].copy_from_slice(&((random >> 32) as u16 | 1024).to_be_bytes());
        frame[38..42].copy_from_slice(&((random >> 16) as u32).to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        link.send_frame(&frame)?;
        if number % 512 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

/// Random changes that leave at least two of the staying backends to new connections.
struct Changes {
    rng: Rng,
    enabled: [bool; STAYING],
    /// The backends that come and go: not there, taking connections, or draining.
    guests: [u8; 2],
    made: usize,
}

impl Changes {
    fn next(&mut self, topology: &Topology, balancer: &Balancer<'_>) {
        self.made += 1;
        if self.rng.percent(30) {
            let guest = self.rng.below(2);
            let node = &topology.backends[STAYING + guest];
            let next = match self.guests[guest] {
                0 => vec!["backend", "add", "www", &node.name, "ADDRESS"],
                1 => vec!["backend", "drain", "www", &node.name],
                _ => vec!["backend", "remove", "www", &node.name],
            };
            let address = node.v4.to_string();
            let next: Vec<&str> =
                next.into_iter().map(|word| if word == "ADDRESS" { &address } else { word }).collect();
            balancer.lbctl(&next);
            self.guests[guest] = (self.guests[guest] + 1) % 3;
            return;
        }
        let at = self.rng.below(STAYING);
        let name = &topology.backends[at].name;
        let others = self.enabled.iter().filter(|on| **on).count() - usize::from(self.enabled[at]);
        match self.rng.below(3) {
            0 if others >= 2 => {
                self.enabled[at] = false;
                balancer.lbctl(&["backend", "drain", "www", name]);
            }
            1 => {
                let weight = ["10", "50", "100", "300"][self.rng.below(4)];
                balancer.lbctl(&["backend", "weight", "www", name, weight]);
            }
            _ => {
                self.enabled[at] = true;
                balancer.lbctl(&["backend", "enable", "www", name]);
            }
        }
    }
}

#[test]
fn ten_thousand_connections_survive_fifty_changes_a_flood_and_a_killed_daemon() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let begun = Instant::now();
    let topology = Topology::new(&Shape { backends: STAYING + 2, ..Shape::default() })?;
    let targets = [topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, 80));
    let _servers = echo_servers(&topology, &targets)?;
    let idle = format!("idle_timeout = \"{}s\"", IDLE.as_secs());
    let www = Service::www(targets.map(|t| t.ip())).extra(&idle).nodes(&topology.backends[..STAYING]);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    eprintln!("{:5.1?}: the daemon is ready", begun.elapsed());

    let crowd = Crowd::gather(&topology.client.ns, &targets, CONNECTIONS, 4, PATIENCE).expect("connections");
    let visitors = Visitors::come(&topology.client.ns, targets.to_vec(), Duration::from_millis(5), PATIENCE);
    eprintln!("{:5.1?}: {CONNECTIONS} connections: {:?}", begun.elapsed(), crowd.report().backends);
    assert_eq!(crowd.report().backends.len(), STAYING);

    let mut changes = Changes { rng: Rng::new(11), enabled: [true; STAYING], guests: [0; 2], made: 0 };
    let (mut most_moving, mut most_tracked) = (0, 0);
    for burst in 0..3 {
        std::thread::scope(|scope| {
            let flooding = (burst == 1).then(|| scope.spawn(|| flood(&topology, targets[0].ip())));
            while changes.made < CHANGES * (burst + 1) / 3 {
                changes.next(&topology, &balancer);
                std::thread::sleep(Duration::from_millis(100));
                if changes.made == CHANGES / 2 {
                    assert!(balancer.service("www").slots.moving > 0, "in the middle of a transition");
                    balancer.kill();
                    eprintln!("{:5.1?}: the daemon is killed", begun.elapsed());
                    std::thread::sleep(Duration::from_millis(500));
                    balancer.restart()?;
                    eprintln!("{:5.1?}: and is back", begun.elapsed());
                }
                let slots = balancer.service("www").slots;
                most_moving = most_moving.max(slots.moving);
                most_tracked = most_tracked.max(slots.tracked);
            }
            flooding.map_or(Ok(()), |flood| flood.join().expect("the flood's thread"))
        })?;
        let report = crowd.report();
        eprintln!(
            "{:5.1?}: {} changes; {} rounds, {} blocks, {} connections broken",
            begun.elapsed(),
            changes.made,
            crowd.rounds(),
            report.blocks,
            report.broken.len()
        );
        if burst < 2 {
            wait_until("slots to settle", IDLE + PATIENCE, || balancer.service("www").slots.moving == 0)?;
            most_tracked = most_tracked.max(balancer.service("www").slots.tracked);
            eprintln!("{:5.1?}: settled", begun.elapsed());
        }
    }
    let (rounds, before) = (crowd.rounds(), begun.elapsed());
    wait_until("everyone to speak once more", PATIENCE, || crowd.rounds() > rounds + 8)?;
    let (visits, report) = (visitors.leave(), crowd.leave());
    eprintln!(
        "{before:5.1?}: {} blocks of 64 bytes, longest silence {:.1?}, slots at most {most_moving} moving and \
         {most_tracked} tracked; {} visitors of {:?}",
        report.blocks,
        report.silence,
        visits.blocks / 3,
        visits.backends
    );
    assert!(report.silence < IDLE, "the machine was too busy for what is promised: {:?}", report.silence);
    assert_eq!(report.broken, [""; 0], "established connections broke");
    assert_eq!(visits.broken, [""; 0], "new connections failed");
    assert!(report.blocks > 3 * CONNECTIONS as u64 && visits.blocks > 300);
    assert!(most_moving > 0 && most_tracked > 0, "{most_moving} moving, {most_tracked} tracked");
    assert_eq!(changes.made, CHANGES);
    Ok(())
}

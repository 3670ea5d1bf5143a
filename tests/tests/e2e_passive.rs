//! Passive health checks: backends that no active check finds, found by what their clients meet.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::{self, Connection, Load, Requests},
    lab::{Gateway, Node, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
    web::WebServer,
};
use lb_userspace::control::{api::BackendView, passive::PassiveView};

const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(2);
const WINDOWS: u32 = 2;
const EJECTION: Duration = Duration::from_secs(15);
/// The window in which the trouble begins, those that must be bad, the daemon's round, and a busy machine.
const FOUND: Duration = Duration::from_secs(2 + 2 * 2 + 1 + 23);
/// A client repeats its SYN twice, then gives up.
const CLIENT: Duration = Duration::from_secs(4);

const VIP: &str = "192.0.2.10";
const POOL: &str = "10.0.0.250";

/// Three web servers behind one of the modes, unchecked.
struct Place {
    topology: Topology,
    servers: Vec<WebServer>,
    forward: &'static str,
}

impl Place {
    fn new(forward: &'static str) -> Result<Self> {
        let rewrites = forward != "dsr";
        let vips = if rewrites { Vec::new() } else { Shape::default().vips };
        let topology = Topology::new(&Shape { vips, lb_forwarding: rewrites, ..Shape::default() })?;
        match forward {
            "nat" => (0..3).try_for_each(|i| topology.set_gateway(i, Gateway::Balancer(0)))?,
            "snat" => topology.lab.plan().addr(&topology.lb[0].ns, "eth0", &format!("{POOL}/16")).apply()?,
            _ => {}
        }
        let servers = web_servers(&topology, 0)?;
        Ok(Self { topology, servers, forward })
    }

    fn service(&self, more: &str) -> Service {
        let vip: IpAddr = VIP.parse().expect("an address");
        let service = Service::www([vip]).forward(self.forward).nodes(&self.topology.backends);
        let service = match self.forward {
            "snat" => service.extra(&format!("[service.snat]\naddresses = [\"{POOL}\"]")),
            _ => service,
        };
        service.extra(&format!(
            "[service.passive]\ninterval = \"{}s\"\nwindows = {WINDOWS}\nmin_connections = 5\n\
             ejection_time = \"{}s\"\n{more}",
            INTERVAL.as_secs(),
            EJECTION.as_secs()
        ))
    }

    fn balancer(&self, more: &str) -> Result<Balancer<'_>> {
        Balancer::start(&self.topology, Settings::of([self.service(more)]))
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(VIP.parse().expect("an address"), 80)
    }

    fn load(&self) -> Load {
        Requests::to(self.target())
            .concurrency(24)
            .timeout(CLIENT)
            .pause(Duration::from_millis(40))
            .start(&self.topology.client.ns)
    }

    /// A connection that stays open on this backend.
    fn connection_to(&self, backend: &str) -> Connection {
        for _ in 0..200 {
            let ns = &self.topology.client.ns;
            let mut connection = Connection::open(ns, self.target(), PATIENCE).expect("connected");
            if connection.get("/").expect("an answer").backend() == backend {
                return connection;
            }
        }
        panic!("{backend} does not answer");
    }
}

/// The host drops what begins a connection, and nothing else.
fn deaf(node: &Node) -> Result<()> {
    let rule = "table inet deaf { chain input { type filter hook input priority 0; \
                tcp flags & (syn | ack) == syn drop; }; }";
    node.ns.exec("nft", &[rule]).map(drop)
}

fn hears(node: &Node) -> Result<()> {
    node.ns.exec("nft", &["delete table inet deaf"]).map(drop)
}

fn passive(backend: &BackendView) -> &PassiveView {
    backend.passive.as_ref().expect("the service has passive checks")
}

fn view(balancer: &Balancer<'_>, name: &str) -> BackendView {
    let service = balancer.service("www");
    service.backends.into_iter().find(|backend| backend.name == name).expect("a backend of this name")
}

fn metric(balancer: &Balancer<'_>, name: &str, labels: &[&str]) -> f64 {
    let target = SocketAddr::from(([127, 0, 0, 1], 9750));
    let answer = client::get(&balancer.node.ns, target, "/metrics", PATIENCE).expect("metrics");
    let text = String::from_utf8(answer.body).expect("text");
    let line = text.lines().find(|line| line.starts_with(name) && labels.iter().all(|l| line.contains(l)));
    let line = line.unwrap_or_else(|| panic!("no {name} with {labels:?}:\n{text}"));
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

fn wait_for_ejection(balancer: &Balancer<'_>, backend: &str) -> Result<()> {
    let what = format!("{backend} to be ejected");
    balancer.wait_for_backend(&what, "www", backend, FOUND, |b| passive(b).ejected.is_some())
}

/// From the first request it does not answer until it is back.
fn a_deaf_backend_is_ejected_and_comes_back(forward: &'static str) -> Result<()> {
    let place = Place::new(forward)?;
    let balancer = place.balancer("")?;
    let mut kept = place.connection_to("web2");
    let load = place.load();
    wait_until("requests", PATIENCE, || load.report().ok() > 300)?;
    load.report().assert_all_answered();
    for name in ["web1", "web2", "web3"] {
        let seen = view(&balancer, name);
        assert!(passive(&seen).ejected.is_none() && passive(&seen).suspect.is_none(), "{seen:?}");
    }

    let web2 = &place.topology.backends[1];
    deaf(web2)?;
    wait_for_ejection(&balancer, "web2")?;
    let (ejected, at) = (Instant::now(), load.elapsed());
    let seen = view(&balancer, "web2");
    let ejection = passive(&seen).ejected.as_ref().expect("ejected");
    assert!(ejection.reason.contains("SYNs came again without an answer"), "{ejection:?}");
    assert!((1..=EJECTION.as_secs()).contains(&ejection.seconds_left), "{ejection:?}");
    assert_eq!(seen.slots, 0, "it takes no new connections");
    let text = balancer.lbctl(&["service", "show", "www"]);
    assert!(text.contains("ejected for "), "{text}");
    assert_eq!(metric(&balancer, "lbd_backend_ejected", &["web2"]), 1.0);
    assert_eq!(metric(&balancer, "lbd_backend_ejected", &["web1"]), 0.0);
    assert!(metric(&balancer, "lbd_backend_syn_repeats_total", &["web2"]) >= 5.0);
    assert!(balancer.process().log().contains("backend ejected: no new connections"));

    // Nobody meets it any more, the others have half each, and what is established goes on.
    let before = load.report();
    let mut answers = 0;
    while ejected.elapsed() < EJECTION / 3 {
        let answer = kept.get("/").expect("an established connection goes on");
        assert_eq!(answer.backend(), "web2");
        answers += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(answers > 10);
    let report = load.report();
    let late = report.failures.iter().filter(|failure| failure.begun > at + Duration::from_millis(500));
    assert_eq!(late.count(), 0, "{report}");
    assert_eq!(report.count("web2"), before.count("web2"), "{report}");
    for name in ["web1", "web3"] {
        assert!(report.count(name) > before.count(name) + 50, "{name}: {report}");
    }

    hears(web2)?;
    let count = load.report().count("web2");
    wait_until("web2 to be back", PATIENCE, || load.report().count("web2") > count + 20)?;
    let away = ejected.elapsed();
    assert!(away + Duration::from_secs(2) >= EJECTION, "back after {away:?}");
    assert!(passive(&view(&balancer, "web2")).ejected.is_none());
    assert!(balancer.process().log().contains("on probation"));
    assert_eq!(kept.get("/").expect("an answer").backend(), "web2");
    let (healed, failed) = (load.elapsed(), load.report().failed_count());
    std::thread::sleep(2 * INTERVAL);
    let report = load.stop();
    assert_eq!(report.failed_count(), failed, "since {healed:?}: {report}");
    assert!(passive(&view(&balancer, "web2")).ejected.is_none(), "it is good again");
    Ok(())
}

#[test]
fn a_deaf_backend_of_dsr_is_ejected_and_comes_back() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nft"));
    a_deaf_backend_is_ejected_and_comes_back("dsr")
}

#[test]
fn a_deaf_backend_of_nat_is_ejected_and_comes_back() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nft"));
    a_deaf_backend_is_ejected_and_comes_back("nat")
}

#[test]
fn a_deaf_backend_of_snat_is_ejected_and_comes_back() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nft"));
    a_deaf_backend_is_ejected_and_comes_back("snat")
}

/// Its listener is gone: every SYN is answered by an RST, which passes the balancer on its way back.
#[test]
fn a_backend_that_refuses_is_ejected_until_it_is_enabled() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    for forward in ["nat", "snat"] {
        let mut place = Place::new(forward)?;
        // Longer than the test: only an operator ends it.
        let more = "max_ejection_time = \"10m\"";
        place.servers[1].kill();
        let mut balancer = Balancer::start(
            &place.topology,
            Settings::of([{
                let mut service = place.service(more);
                service.extra = service.extra.replace("ejection_time = \"15s\"", "ejection_time = \"5m\"");
                service
            }]),
        )?;
        let load = place.load();
        wait_for_ejection(&balancer, "web2")?;
        let at = load.elapsed();
        let seen = view(&balancer, "web2");
        let reason = &passive(&seen).ejected.as_ref().expect("ejected").reason;
        assert!(reason.contains("SYNs were refused by a reset"), "{reason}");
        assert!(metric(&balancer, "lbd_backend_resets_total", &["web2", "handshake"]) >= 5.0);
        assert_eq!(metric(&balancer, "lbd_backend_resets_total", &["web1", "handshake"]), 0.0);
        std::thread::sleep(Duration::from_secs(2));
        let report = load.report();
        let late = report.failures.iter().filter(|failure| failure.begun > at + Duration::from_millis(500));
        let late: Vec<_> = late.map(|failure| failure.begun - at).collect();
        // The client takes ports of refused connections again, one in seventeen (800 of 14,000): they are others now.
        assert!(late.is_empty(), "{forward}: {late:?} after the ejection: {report}");

        // The next daemon goes on with it, however this one ended.
        balancer.kill();
        std::thread::sleep(Duration::from_secs(1));
        balancer.restart()?;
        let again = view(&balancer, "web2");
        let (before, after) = (passive(&seen).ejected.as_ref(), passive(&again).ejected.as_ref());
        let (before, after) = (before.expect("ejected"), after.expect("ejected after a restart"));
        assert_eq!((&after.reason, again.slots), (&before.reason, 0));
        assert!(
            after.until.abs_diff(before.until) <= 1 && after.seconds_left < before.seconds_left,
            "{after:?}"
        );
        std::thread::sleep(2 * INTERVAL);
        let failures = load.report().failures;
        let late = failures.iter().filter(|failure| failure.begun > at + Duration::from_millis(500));
        assert_eq!(late.count(), 0, "{forward}: after the restart");

        place.servers[1].start(&place.topology.lab)?;
        let text = balancer.lbctl(&["backend", "enable", "www", "web2"]);
        assert!(text.contains("its ejection is over"), "{text}");
        wait_until("web2 to have requests", PATIENCE, || load.report().count("web2") > 20)?;
        assert!(passive(&view(&balancer, "web2")).ejected.is_none());
        drop(load);
    }
    Ok(())
}

/// No backend answers: as if the network between were gone. Nobody is to blame, and lbd says so.
#[test]
fn with_all_of_them_deaf_nobody_is_ejected() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nft"));
    let place = Place::new("dsr")?;
    let balancer = place.balancer("max_ejected = 100")?;
    let load = place.load();
    wait_until("requests", PATIENCE, || load.report().ok() > 300)?;
    place.topology.backends.iter().try_for_each(deaf)?;
    let said = "most backends fare alike, nobody of them is ejected";
    for name in ["web1", "web2", "web3"] {
        balancer.wait_for_backend("it to be said", "www", name, FOUND, |b| {
            passive(b).suspect.as_ref().is_some_and(|text| text.contains(said))
        })?;
    }
    assert!(balancer.process().log().contains(said));
    std::thread::sleep(3 * INTERVAL);
    for backend in balancer.service("www").backends {
        assert!(passive(&backend).ejected.is_none() && backend.slots > 0, "{backend:?}");
    }
    assert!(!balancer.process().log().contains("backend ejected"));
    place.topology.backends.iter().try_for_each(hears)?;
    let answered = load.report().ok();
    wait_until("answers again", PATIENCE, || load.report().ok() > answered + 100)?;
    Ok(())
}

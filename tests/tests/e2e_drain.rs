//! Changes that take their time: drains that are watched, with and without an end; slow start; plans that say what then
//! happens; a budget that refuses too much at once.

use std::{
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, program, text, web_servers},
    client::Requests,
    crowd::{Crowd, Visitors},
    lab::{Gateway, Process, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::{
    control::{
        api::{BackendView, ChangeView, ServiceView},
        gradual::{DrainView, PlanView, ServicePlan},
    },
    model::{Admin, Health},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Short, so that slots settle while a test runs.
const IDLE: Duration = Duration::from_secs(8);

/// A network with echo servers behind a service of this mode, and where the clients connect to.
fn echoing(forward: &'static str, backends: usize) -> Result<(Topology, Vec<Process>, SocketAddr)> {
    let nat = forward == "nat";
    let shape = if nat {
        Shape { backends, vips: Vec::new(), lb_forwarding: true, ..Shape::default() }
    } else {
        Shape { backends, ..Shape::default() }
    };
    let topology = Topology::new(&shape)?;
    let vip: IpAddr = if nat { [192, 0, 2, 10].into() } else { topology.vip4() };
    let mut servers = Vec::new();
    for (i, node) in topology.backends.iter().enumerate() {
        if nat {
            topology.set_gateway(i, Gateway::Balancer(0))?;
        }
        let address = SocketAddr::new(if nat { node.v4.into() } else { vip }, 80);
        let mut command = node.ns.command(env!("CARGO_BIN_EXE_echo"));
        command.arg(&node.name).arg(address.to_string());
        let server = topology.lab.spawn(&format!("echo-{}", node.name), command)?;
        server.wait_for_log("ready", PATIENCE)?;
        servers.push(server);
    }
    Ok((topology, servers, SocketAddr::new(vip, 80)))
}

fn www(topology: &Topology, forward: &'static str, target: SocketAddr, extra: &str) -> Service {
    Service::www([target.ip()]).forward(forward).extra(extra).nodes(&topology.backends)
}

/// `lbctl -o json backend drain ... --wait`, in the background.
struct Drain {
    child: Child,
    views: Arc<Mutex<Vec<DrainView>>>,
    reader: JoinHandle<()>,
}

impl Drain {
    fn begin(balancer: &Balancer<'_>, arguments: &[&str]) -> Self {
        let mut command = Command::new(program("lbctl"));
        command
            .arg("--socket")
            .arg(balancer.socket())
            .args(["-o", "json", "backend", "drain", "www", "web1"]);
        command.arg("--wait").args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().expect("lbctl can be started");
        let views = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let for_thread = Arc::clone(&views);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(std::result::Result::ok) {
                let view: DrainView = serde_json::from_str(&line).expect("a view in each line");
                for_thread.lock().unwrap_or_else(PoisonError::into_inner).push(view);
            }
        });
        Self { child, views, reader }
    }

    fn views(&self) -> Vec<DrainView> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wait_for(&self, what: &str, wanted: impl Fn(&DrainView) -> bool) -> Result<()> {
        wait_until(what, PATIENCE, || self.views().last().is_some_and(&wanted))
    }

    fn end(mut self) -> (ExitStatus, Vec<DrainView>) {
        let status = self.child.wait().expect("lbctl ends");
        self.reader.join().expect("the reader ends");
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (status, views)
    }
}

fn backend<'v>(service: &'v ServiceView, name: &str) -> &'v BackendView {
    service.backends.iter().find(|b| b.name == name).expect("the backend")
}

/// Three thousand connections that speak all the time, a third of them on the backend that is drained, while new ones come.
fn a_drain_ends_at_zero(forward: &'static str) -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let (topology, _servers, target) = echoing(forward, 3)?;
    let idle = format!("idle_timeout = \"{}s\"", IDLE.as_secs());
    let balancer = Balancer::start(&topology, Settings::of([www(&topology, forward, target, &idle)]))?;
    let gather =
        |count| Crowd::gather(&topology.client.ns, &[target], count, 2, PATIENCE).expect("connections");
    let crowds = [gather(1_200), gather(1_200), gather(1_200)];
    let on_web1: Vec<u64> = crowds.iter().map(|c| c.report().backends["web1"] as u64).collect();
    let all: u64 = on_web1.iter().sum();
    assert!(all >= 1_000, "{all} connections on web1");
    let visitors = Visitors::come(&topology.client.ns, vec![target], Duration::from_millis(10), PATIENCE);
    wait_until("a visitor at web1", PATIENCE, || visitors.report().backends.contains_key("web1"))?;

    let begun = Instant::now();
    let drain = Drain::begin(&balancer, &["--timeout", "5m"]);
    drain.wait_for("the drain", |v| v.admin == Admin::Draining && v.owned_slots == 0)?;
    // The visitor that is just being received may have been placed before.
    std::thread::sleep(Duration::from_secs(1));
    let visits = visitors.report().backends["web1"];
    drain.wait_for("slots to settle", |v| v.moving_slots == 0)?;
    eprintln!("{:5.1?}: settled", begun.elapsed());
    // Every connection has spoken meanwhile: each is counted, and nobody else.
    drain.wait_for("all to be counted", |v| v.tracked_flows == all && v.half_open_flows == 0)?;
    let view = balancer.service("www");
    assert_eq!((backend(&view, "web1").slots, backend(&view, "web1").gradual.moving_slots), (0, 0));
    assert_eq!((backend(&view, "web1").admin, backend(&view, "web1").weight), (Admin::Draining, 100));

    let mut left = all;
    for (crowd, number) in crowds.into_iter().zip(on_web1) {
        let report = crowd.leave();
        assert_eq!(report.broken, [""; 0], "established connections broke");
        assert!(report.silence < IDLE, "the machine was too busy for what is promised: {:?}", report.silence);
        left -= number;
        drain.wait_for("the count to go down", |v| v.tracked_flows == left)?;
        eprintln!("{:5.1?}: {left} left", begun.elapsed());
    }
    let (status, views) = drain.end();
    eprintln!("{:5.1?}: {status}, {} looks", begun.elapsed(), views.len());
    assert!(status.success(), "{status}");
    let last = views.last().expect("a view");
    assert!(last.done && last.left() == 0 && last.moving_slots == 0, "{last:?}");
    let visited = visitors.leave();
    assert_eq!(visited.broken, [""; 0], "new connections failed");
    assert_eq!(visited.backends["web1"], visits, "new connections arrived at the drained backend");
    assert!(visited.backends["web2"] > 50 && visited.backends["web3"] > 50, "{:?}", visited.backends);
    // Nothing that names it is in the tables.
    let flows: lb_userspace::control::observe::FlowsView = balancer.json(&["flows", "--backend", "web1"]);
    assert_eq!(flows.total, 0);
    Ok(())
}

#[test]
fn a_drain_of_a_thousand_connections_ends_at_zero_dsr() -> Result<()> {
    a_drain_ends_at_zero("dsr")
}

#[test]
fn a_drain_of_a_thousand_connections_ends_at_zero_nat() -> Result<()> {
    a_drain_ends_at_zero("nat")
}

/// Sessions of `snat` are counted from the first moment, and each of them.
#[test]
fn a_drain_counts_the_sessions_of_snat() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let (topology, _servers, target) = echoing("nat", 2)?;
    let mut own = topology.lab.plan();
    own.addr(&topology.lb[0].ns, "eth0", "10.0.0.250/16").apply()?;
    let idle =
        format!("idle_timeout = \"{}s\"\n[service.snat]\naddresses = [\"10.0.0.250\"]", IDLE.as_secs());
    let balancer = Balancer::start(&topology, Settings::of([www(&topology, "snat", target, &idle)]))?;
    let crowd = Crowd::gather(&topology.client.ns, &[target], 300, 2, PATIENCE).expect("connections");
    let on_web1 = crowd.report().backends["web1"] as u64;
    let drain = Drain::begin(&balancer, &[]);
    drain.wait_for("all to be counted", |v| v.owned_slots == 0 && v.sessions == on_web1)?;
    let plan: ChangeView = balancer.json(&["backend", "disable", "www", "web1", "--plan"]);
    let plan = one(plan.plan.as_ref());
    assert_eq!((plan.sessions_ended, plan.other_flows_ended_estimate), (on_web1, Some(0)), "{plan:?}");
    drain.wait_for("slots to settle", |v| v.moving_slots == 0 && v.sessions == on_web1)?;
    assert_eq!(crowd.leave().broken, [""; 0]);
    let (status, views) = drain.end();
    assert!(status.success(), "{status}: {:?}", views.last());
    assert_eq!(views.last().map(DrainView::left), Some(0));
    Ok(())
}

/// What is left after the deadline ends, exactly that, and as many as the plan said; also over a restart of the daemon.
fn a_deadline_ends_what_is_left(forward: &'static str) -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let (topology, _servers, target) = echoing(forward, 2)?;
    let mut balancer = Balancer::start(&topology, Settings::of([www(&topology, forward, target, "")]))?;
    let crowd = Crowd::gather(&topology.client.ns, &[target], 300, 2, PATIENCE).expect("connections");
    let on_web1 = crowd.report().backends["web1"];
    assert!(on_web1 > 100, "{on_web1}");
    // One that is too short: the drain goes on, and the exit status says so.
    let output = balancer.lbctl_output(&["backend", "drain", "www", "web1", "--wait", "--timeout", "2s"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not over after 2s; it goes on: web1 of www, draining:"), "{said}");
    wait_until("everyone to be recorded", PATIENCE, || {
        backend(&balancer.service("www"), "web1").gradual.tracked_flows == on_web1 as u64
    })?;
    let planned: ChangeView = balancer.json(&["backend", "disable", "www", "web1", "--plan"]);
    let plan = one(planned.plan.as_ref());
    assert_eq!((plan.tracked_flows_ended, plan.sessions_ended), (on_web1 as u64, 0), "{plan:?}");
    assert_eq!(plan.other_flows_ended_estimate, Some(0), "every slot of it is recorded: {plan:?}");
    assert_eq!(crowd.report().broken, [""; 0], "planning ends nothing");

    // The daemon's own to keep: it is killed meanwhile.
    let drain = Drain::begin(&balancer, &["--deadline", "8s"]);
    drain.wait_for("the deadline", |v| v.ends_in_seconds.is_some())?;
    balancer.kill();
    balancer.restart()?;
    let (status, views) = drain.end();
    assert!(status.success(), "{status}: {:?}", views.last());
    let last = views.last().expect("a view");
    assert_eq!((last.admin, last.left()), (Admin::Disabled, 0), "{last:?}");
    assert!(views.iter().any(|v| v.tracked_flows == on_web1 as u64), "nothing ended before");
    wait_until("their ends to be noticed", PATIENCE, || crowd.report().broken.len() == on_web1)?;
    let report = crowd.leave();
    assert_eq!(report.broken.iter().filter(|line| line.contains("to web1,")).count(), on_web1, "{report:?}");
    assert_eq!(report.broken.len(), on_web1);
    Ok(())
}

#[test]
fn a_deadline_ends_what_is_left_dsr() -> Result<()> {
    a_deadline_ends_what_is_left("dsr")
}

#[test]
fn a_deadline_ends_what_is_left_nat() -> Result<()> {
    a_deadline_ends_what_is_left("nat")
}

/// Requests until enough are answered, and the weight of a backend meanwhile: before and after.
fn share_of(balancer: &Balancer<'_>, topology: &Topology, name: &str) -> (f64, [f64; 2]) {
    let weight = || f64::from(backend(&balancer.service("www"), name).gradual.effective_weight);
    let before = weight();
    let target = SocketAddr::new(topology.vip4(), 80);
    let report = Requests::to(target).concurrency(20).timeout(PATIENCE).run(&topology.client.ns, 600);
    report.assert_all_answered();
    (report.share(name), [before, weight()])
}

#[test]
fn a_recovered_backend_starts_slowly() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 3, ..Shape::default() })?;
    let mut servers = web_servers(&topology, 0)?;
    let www =
        Service::www([topology.vip4()]).checked().extra("slow_start = \"20s\"").nodes(&topology.backends);
    let balancer = Balancer::start(&topology, Settings::of([www]))?;
    let look = || balancer.service("www");
    let up = |health| move |b: &BackendView| b.health == health;
    for node in &topology.backends {
        balancer.wait_for_backend("all to be up", "www", &node.name, PATIENCE, up(Health::Up))?;
    }
    let whole = backend(&look(), "web1").slots;
    assert!(look().backends.iter().all(|b| b.gradual.ramp.is_none() && b.gradual.effective_weight == 100));

    servers[0].kill();
    balancer.wait_for_backend("web1 to be down", "www", "web1", PATIENCE, up(Health::Down))?;
    let down = look();
    let web1 = backend(&down, "web1");
    assert_eq!((web1.slots, web1.weight, web1.gradual.effective_weight), (0, 100, 0));
    servers[0].start(&topology.lab)?;
    balancer.wait_for_backend("web1 to be up", "www", "web1", PATIENCE, up(Health::Up))?;
    let begun = Instant::now();

    let (mut slots, mut points) = (0, Vec::new());
    let mut measured = Vec::new();
    while begun.elapsed() < Duration::from_secs(60) {
        let view = look();
        let web1 = backend(&view, "web1").clone();
        assert!(web1.slots >= slots, "{} after {slots}", web1.slots);
        slots = web1.slots;
        points.push(slots);
        let Some(ramp) = &web1.gradual.ramp else { break };
        assert_eq!(ramp.cause, "slow-start");
        // At about a quarter, a half and three quarters of the way.
        if u64::from(ramp.percent) >= 25 * (measured.len() as u64 + 1) && measured.len() < 3 {
            measured.push(share_of(&balancer, &topology, "web1"));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    eprintln!("slots {points:?}, shares {measured:?} after {:.1?}", begun.elapsed());
    assert!(points[0] < whole / 4, "{} of {whole} slots at once", points[0]);
    wait_until("what it had, in the end", PATIENCE, || {
        backend(&balancer.service("www"), "web1").slots == whole
    })?;
    assert!(begun.elapsed() > Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(measured.len(), 3, "the machine was too busy: {measured:?}");
    for (share, weights) in &measured {
        let due = weights.map(|weight| weight / (200.0 + weight));
        // Five standard deviations of a fair draw of 600, and two steps.
        let margin = 5.0 * (due[1] * (1.0 - due[1]) / 600.0).sqrt() + 0.02;
        assert!(due[0] - margin <= *share && *share <= due[1] + margin, "{share}, due {due:?}");
    }
    assert!(measured.windows(2).all(|w| w[0].1[0] < w[1].1[0]));
    let (share, _) = share_of(&balancer, &topology, "web1");
    assert!((share - 1.0 / 3.0).abs() < 0.1, "{share}");
    Ok(())
}

/// The only service of a plan.
fn one(plan: Option<&PlanView>) -> &ServicePlan {
    let plan = plan.expect("a plan");
    assert_eq!(plan.services.len(), 1, "{plan:?}");
    &plan.services[0]
}

/// By name: slots owned.
fn slots(view: &ServiceView) -> Vec<(String, u32)> {
    let mut slots: Vec<_> = view.backends.iter().map(|b| (b.name.clone(), b.slots)).collect();
    slots.sort();
    slots
}

fn planned(
    plan: &ServicePlan,
    which: impl Fn(&lb_userspace::control::gradual::BackendPlan) -> u32,
) -> Vec<(String, u32)> {
    plan.backends.iter().map(|b| (b.name.clone(), which(b))).collect()
}

#[test]
fn a_plan_says_what_then_happens() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 4, ..Shape::default() })?;
    let nodes = &topology.backends;
    let three = Service::www([topology.vip4()]).nodes(&nodes[..3]);
    let mut balancer = Balancer::start(&topology, Settings::of([three]))?;
    let before = balancer.service("www");
    assert_eq!(before.slots.plain, before.slots.total);

    // A drain: new flows move, none end.
    let plan: ChangeView = balancer.json(&["backend", "drain", "www", "web1", "--plan"]);
    assert!(plan.planned_only);
    let plan = one(plan.plan.as_ref()).clone();
    assert_eq!(balancer.service("www"), before, "nothing was touched");
    let done: ChangeView = balancer.json(&["backend", "drain", "www", "web1"]);
    assert!(!done.planned_only && done.plan.is_none());
    let after = balancer.service("www");
    assert_eq!((plan.slots_moved, plan.slots_ended), (after.slots.moving, 0));
    assert_eq!(plan.slots_moved_later, 0);
    assert_eq!(planned(&plan, |b| b.slots_before), slots(&before));
    assert_eq!(planned(&plan, |b| b.slots_after), slots(&after));

    // A disabled backend: its slots of before the drain lose their flows.
    let plan: ChangeView = balancer.json(&["backend", "disable", "www", "web1", "--plan"]);
    let plan = one(plan.plan.as_ref()).clone();
    assert_eq!((plan.slots_moved, plan.slots_ended), (0, backend(&before, "web1").slots));
    balancer.lbctl(&["backend", "disable", "www", "web1"]);
    assert_eq!(balancer.service("www").slots.moving, after.slots.moving - plan.slots_ended);

    // Undone, by `reset` too.
    let plan: ChangeView = balancer.json(&["reset", "--plan"]);
    assert_eq!(planned(one(plan.plan.as_ref()), |b| b.slots_after), slots(&before));
    balancer.lbctl(&["reset"]);
    assert_eq!(slots(&balancer.service("www")), slots(&before));

    // What moves no slot has a plan as well.
    let deny: ChangeView = balancer.json(&["deny", "add", "203.0.113.0/24", "--plan"]);
    assert!(deny.planned_only && deny.plan.is_some_and(|p| p.services.is_empty() && p.map_changes > 0));
    assert_eq!(balancer.lbctl(&["deny", "list"]), "no prefix is on the deny list\n");

    // The file.
    balancer.configure(|settings| {
        let www = settings.services.remove(0);
        settings.services.push(www.nodes(&nodes[3..]));
    })?;
    let plan: ChangeView = balancer.json(&["reload", "--plan"]);
    assert!(plan.changes.iter().any(|line| line.contains("backend.web4.address")), "{:?}", plan.changes);
    let plan = one(plan.plan.as_ref()).clone();
    assert_eq!(slots(&balancer.service("www")), slots(&before));
    balancer.lbctl(&["reload"]);
    wait_until("web4's next hop", PATIENCE, || backend(&balancer.service("www"), "web4").reachable)?;
    let four = balancer.service("www");
    assert_eq!(planned(&plan, |b| b.slots_after), slots(&four));
    assert!(backend(&four, "web4").slots > 200, "{four:?}");

    // A weight that changes gradually ends where the plan says, and only grows.
    let plan: ChangeView =
        balancer.json(&["backend", "weight", "www", "web4", "300", "--over", "12s", "--plan"]);
    let plan = one(plan.plan.as_ref()).clone();
    assert!(plan.slots_moved_later > 4 * plan.slots_moved && plan.slots_ended == 0, "{plan:?}");
    balancer.lbctl(&["backend", "weight", "www", "web4", "300", "--over", "12s"]);
    let begun = Instant::now();
    wait_until("a part of the way", PATIENCE, || {
        backend(&balancer.service("www"), "web4").gradual.ramp.as_ref().is_none_or(|ramp| ramp.percent > 20)
    })?;
    // It goes on after a restart, where the clock says.
    let mut last = backend(&balancer.service("www"), "web4").slots;
    balancer.kill();
    balancer.restart()?;
    wait_until("the weight to arrive", PATIENCE, || {
        let view = balancer.service("www");
        let web4 = backend(&view, "web4");
        assert!(web4.slots >= last && web4.weight == 300, "{web4:?}");
        last = web4.slots;
        web4.gradual.ramp.is_none()
    })?;
    assert!(begun.elapsed() > Duration::from_secs(8), "{:?}", begun.elapsed());
    wait_until("the last step", PATIENCE, || {
        slots(&balancer.service("www")) == planned(&plan, |b| b.slots_later)
    })?;
    Ok(())
}

#[test]
fn a_budget_refuses_too_much_at_once() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 3, ..Shape::default() })?;
    let www = Service::www([topology.vip4()]).extra("max_disruption = \"10%\"").nodes(&topology.backends);
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let before = balancer.service("www");
    for change in [
        ["backend", "drain", "www", "web1"],
        ["backend", "disable", "www", "web1"],
        ["backend", "remove", "www", "web1"],
    ] {
        let output = balancer.lbctl_output(&change);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in ["service 'www': ", " of 1009 slots would move", "max_disruption = \"10%\"", "--force"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    let plan: ChangeView = balancer.json(&["backend", "drain", "www", "web1", "--plan"]);
    let plan = one(plan.plan.as_ref());
    assert!(plan.over_budget && plan.max_disruption == Some(10) && plan.disruption_percent > 30, "{plan:?}");
    assert_eq!(balancer.service("www"), before, "nothing was touched");
    // Small steps, and gradual ones, are within it.
    balancer.lbctl(&["backend", "weight", "www", "web1", "90"]);
    balancer.lbctl(&["backend", "weight", "www", "web1", "100"]);
    balancer.lbctl(&["backend", "weight", "www", "web2", "10", "--over", "10m"]);
    // The file is held to it as well, by what runs: it cannot loosen the budget in the same breath.
    balancer.configure(|settings| {
        settings.services[0].backends.remove(0);
        settings.services[0].extra.clear();
    })?;
    let output = balancer.lbctl_output(&["reload"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(balancer.service("www").backends.len(), 3);
    balancer.lbctl(&["reload", "--force"]);
    assert_eq!(balancer.service("www").backends.len(), 2);
    balancer.lbctl(&["backend", "disable", "www", "web2"]);
    Ok(())
}

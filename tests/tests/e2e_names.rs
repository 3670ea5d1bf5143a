//! Backends by name, with a real DNS server: records change and traffic follows, the server dies and nothing happens.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, assert_shares, web_servers},
    client::Requests,
    lab::{Process, Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 5353;

/// dnsmasq in the balancer's namespace.
struct Dns<'t> {
    topology: &'t Topology,
    hosts: PathBuf,
    process: Option<Process>,
}

impl<'t> Dns<'t> {
    fn start(topology: &'t Topology, directory: &std::path::Path, addresses: &[IpAddr]) -> Result<Self> {
        let mut dns = Self { topology, hosts: directory.join("hosts"), process: None };
        dns.says(addresses)?;
        Ok(dns)
    }

    /// Answers with these addresses from now on.
    fn says(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.process = None;
        let lines: String = addresses.iter().map(|address| format!("{address} web.example.net\n")).collect();
        fs::write(&self.hosts, lines).expect("the file of hosts");
        let mut command = self.topology.lb[0].ns.command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--user=root",
        ]);
        command.args(["--conf-file=/dev/null", "--pid-file=", "--local-ttl=1", "--local=/example.net/"]);
        command.args(["--listen-address=127.0.0.1", "--srv-host=_http._tcp.example.net,web.example.net,80"]);
        command.arg(format!("--port={PORT}")).arg(format!("--addn-hosts={}", self.hosts.display()));
        self.process = Some(self.topology.lab.spawn("dnsmasq", command)?);
        Ok(())
    }
}

#[test]
fn traffic_follows_the_records_and_outlives_the_server() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("dnsmasq"));
    let topology = Topology::new(&Shape { backends: 3, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let at = |index: usize| IpAddr::from(topology.backends[index].v4);
    let mut balancer = Balancer::prepare(&topology, Settings::of([Service::www([topology.vip4()])]))?;
    let mut dns = Dns::start(&topology, balancer.dir(), &[at(0), at(1)])?;
    balancer.configure(|settings| {
        settings.rest = format!(
            "\n[[service.backend]]\nname = \"web\"\naddress = \"web.example.net\"\n\
             [resolver]\nservers = [\"127.0.0.1:{PORT}\"]\nmin_ttl = \"1s\"\nmax_ttl = \"2s\"\ndrain = \"5s\"\n"
        );
    })?;
    balancer.restart()?;
    let names = |balancer: &Balancer<'_>| {
        let backends = balancer.service("www").backends.into_iter();
        backends.filter(|b| b.weight > 0 && b.reachable).map(|b| b.name).collect::<Vec<_>>()
    };
    let of = |indexes: &[usize]| indexes.iter().map(|i| format!("web-{}", at(*i))).collect::<Vec<_>>();
    let shares = |expected: &[(&str, u32)]| {
        let report = Requests::to_all([SocketAddr::new(topology.vip4(), 80)])
            .timeout(PATIENCE)
            .run(&topology.client.ns, 600);
        report.assert_all_answered();
        assert_shares(&report, expected);
    };
    wait_until("both addresses to be backends", PATIENCE, || names(&balancer) == of(&[0, 1]))?;
    shares(&[("web1", 1), ("web2", 1)]);

    // web2 leaves, web3 comes.
    dns.says(&[at(0), at(2)])?;
    wait_until("web3 to take web2's place", PATIENCE, || names(&balancer) == of(&[0, 2]))?;
    wait_until("web2 to be gone", PATIENCE, || balancer.service("www").backends.len() == 2)?;
    shares(&[("web1", 1), ("web3", 1)]);

    // Nobody answers any more.
    dns.process = None;
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(names(&balancer), of(&[0, 2]));
    shares(&[("web1", 1), ("web3", 1)]);
    balancer.kill();
    balancer.restart()?;
    wait_until("the last answer to be in force", PATIENCE, || names(&balancer) == of(&[0, 2]))?;
    shares(&[("web1", 1), ("web3", 1)]);

    // It is back, with news; by SRV records now.
    let text = fs::read_to_string(balancer.config_file()).expect("text");
    let srv = text.replace("address = \"web.example.net\"", "srv = \"_http._tcp.example.net\"");
    assert_ne!(srv, text);
    balancer.write_text(&srv)?;
    dns.says(&[at(1)])?;
    balancer.reload();
    wait_until("the addresses of the SRV record", PATIENCE, || names(&balancer) == of(&[1]))?;
    shares(&[("web2", 1)]);
    Ok(())
}

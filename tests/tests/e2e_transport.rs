//! What a stream or a datagram needs beside arriving: whole downloads, uploads of full segments where the tunnel leaves
//! less room, no stall, both families, one arm and two.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client,
    echo::{self, tcp_sink, udp_echo},
    lab::{Arms, Mtu, Result, Shape, Topology},
    require,
    skip::Need,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the daemon, with decapsulators where the mode needs them.
fn start<'t>(topology: &'t Topology, services: Vec<Service>) -> Result<Balancer<'t>> {
    let tunnelled = services.iter().any(|s| s.forward != "dsr");
    let start = if tunnelled { Balancer::start_tunnelled } else { Balancer::start };
    start(topology, Settings::of(services))
}

fn download_whole(
    forward: &'static str,
    arms: Arms,
    vips: &[fn(&Topology) -> IpAddr],
    bytes: u64,
) -> Result<()> {
    let topology = Topology::new(&Shape { backends: 2, arms, ..Shape::default() })?;
    let _servers = web_servers(&topology, bytes)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).forward(forward).nodes(&topology.backends);
    let _balancer = start(&topology, vec![www])?;
    for vip in vips {
        let target = SocketAddr::new(vip(&topology), 80);
        let download = client::download(&topology.client.ns, target, bytes, PATIENCE);
        let download = download.unwrap_or_else(|e| panic!("{forward} {target}: {e}"));
        assert_eq!(download.bytes, bytes);
        assert!(download.longest_gap < Duration::from_secs(5), "{forward} {target}: {download:?}");
    }
    Ok(())
}

#[test]
fn two_hundred_megabytes_arrive_whole_by_dsr() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    download_whole("dsr", Arms::One, &[Topology::vip4, Topology::vip6], 200_000_000)
}

#[test]
fn two_hundred_megabytes_arrive_whole_by_ipip() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    download_whole("ipip", Arms::One, &[Topology::vip4], 200_000_000)
}

#[test]
fn two_hundred_megabytes_arrive_whole_by_gue_through_two_arms() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    download_whole("gue", Arms::Two, &[Topology::vip6], 200_000_000)
}

/// All links take 1500 bytes, so that a full segment and the outer header do not fit: the client has to be told,
/// or its upload stalls for ever.
fn upload_whole(forward: &'static str, arms: Arms, mtu: Mtu, expected: [Option<u32>; 2]) -> Result<()> {
    let topology = Topology::new(&Shape { backends: 1, arms, mtu, ..Shape::default() })?;
    let node = &topology.backends[0];
    let vips = [topology.vip4(), topology.vip6()];
    let _sinks: Vec<_> =
        vips.iter().map(|vip| tcp_sink(&node.ns, "web1", *vip, 9000)).collect::<Result<_>>()?;
    let services = [
        Service::www([vips[0]]).port(9000).forward(forward).nodes([node]),
        Service::www([vips[1]]).name("www6").port(9000).forward(forward).nodes6([node]),
    ];
    let balancer = start(&topology, services.into())?;
    for (vip, expected) in vips.into_iter().zip(expected) {
        let told = balancer.dropped("too_big");
        let target = SocketAddr::new(vip, 9000);
        let line = echo::upload(&topology.client.ns, target, 20_000_000, PATIENCE);
        let line =
            line.unwrap_or_else(|e| panic!("{forward} {target}: {e}; drops: {}", balancer.lbctl(&["drops"])));
        assert_eq!(line, "web1 20000000 ok", "{forward} {target}");
        assert_eq!(balancer.dropped("too_big_unanswered"), 0);
        let route = topology.client.ns.exec("ip", &["route", "get", &vip.to_string()])?;
        match expected {
            Some(mtu) => {
                assert!(balancer.dropped("too_big") > told, "{forward} {target}: nobody was told of the MTU");
                assert!(route.contains(&format!("mtu {mtu}")), "expected mtu {mtu}: {route}");
            }
            None => {
                assert_eq!(balancer.dropped("too_big"), told);
                assert!(!route.contains("mtu"), "{route}");
            }
        }
    }
    Ok(())
}

#[test]
fn uploads_of_full_segments_learn_the_mtu_of_ipip() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    upload_whole("ipip", Arms::One, Mtu::all(1500), [Some(1480), Some(1460)])
}

#[test]
fn uploads_of_full_segments_learn_the_mtu_of_gue_through_two_arms() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    upload_whole("gue", Arms::Two, Mtu::all(1500), [Some(1472), Some(1452)])
}

#[test]
fn uploads_need_no_other_mtu_where_the_backends_links_have_room() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    upload_whole("ipip", Arms::Two, Mtu { back: 1600, ..Mtu::all(1500) }, [None, None])
}

#[test]
fn uploads_by_dsr_keep_the_mtu() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    upload_whole("dsr", Arms::One, Mtu::all(1500), [None, None])
}

/// iperf3 has a control connection beside the data, so that its service has one backend only.
fn iperf(forward: &'static str, arms: Arms, vip: fn(&Topology) -> IpAddr, seconds: usize) -> Result<()> {
    let topology = Topology::new(&Shape { backends: 1, arms, ..Shape::default() })?;
    let (node, vip) = (&topology.backends[0], vip(&topology));
    let mut command = node.ns.command("iperf3");
    command.args(["--server", "--bind", &vip.to_string(), "--port", "5201", "--forceflush"]);
    let server = topology.lab.spawn("iperf3", command)?;
    server.wait_for_log("Server listening", PATIENCE)?;
    let service = Service::www([vip]).port(5201).forward(forward).nodes([node]);
    let balancer = start(&topology, vec![service])?;
    let seconds = seconds.to_string();
    let json = topology.client.ns.exec(
        "iperf3",
        &[
            "--client",
            &vip.to_string(),
            "--port",
            "5201",
            "--time",
            &seconds,
            "--json",
            "--connect-timeout",
            "5000",
        ],
    )?;
    let report: serde_json::Value = serde_json::from_str(&json).expect("JSON of iperf3");
    let intervals = report["intervals"].as_array().expect("intervals");
    assert!(intervals.len().to_string() >= seconds, "{json}");
    for interval in intervals {
        let (bytes, length) =
            (&interval["sum"]["bytes"], interval["sum"]["seconds"].as_f64().unwrap_or_default());
        // The last one may be a sliver.
        assert!(bytes.as_u64().unwrap_or(0) > 0 || length < 0.5, "a stall: {interval}");
    }
    let sent = report["end"]["sum_sent"]["bytes"].as_u64().unwrap_or(0);
    let counted = balancer.service("www").bytes;
    assert!(counted >= sent, "{sent} bytes were sent, {counted} counted");
    Ok(())
}

#[test]
fn iperf3_runs_ten_seconds_without_a_stall_by_dsr() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("iperf3"));
    iperf("dsr", Arms::One, Topology::vip4, 10)
}

#[test]
fn iperf3_runs_without_a_stall_by_ipip_through_two_arms() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("iperf3"));
    iperf("ipip", Arms::Two, Topology::vip6, 5)
}

#[test]
fn iperf3_runs_without_a_stall_by_gue() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("iperf3"));
    iperf("gue", Arms::One, Topology::vip4, 5)
}

/// Who answers a datagram from a port of its own.
fn ask(topology: &Topology, target: SocketAddr, payload: &[u8]) -> String {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = topology.client.ns.run(|| UdpSocket::bind(any)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // Connected, so that only answers from the virtual address count.
    socket.connect(target).expect("connected");
    socket.send(payload).expect("sent");
    let mut answer = vec![0; 65_536];
    let length = socket.recv(&mut answer).unwrap_or_else(|e| panic!("no answer from {target}: {e}"));
    let (name, rest) = answer[..length].split_at(4);
    assert_eq!(&rest[1..], payload);
    String::from_utf8_lossy(name).into_owned()
}

#[test]
fn datagrams_reach_all_backends_in_every_mode() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape::default())?;
    let vips = [topology.vip4(), topology.vip6()];
    let modes = [("dsr", 5300), ("ipip", 5301), ("gue", 5302)];
    let mut servers = Vec::new();
    for node in &topology.backends {
        for vip in vips {
            for (_, port) in modes {
                servers.push(udp_echo(&node.ns, &node.name, vip, port)?);
            }
        }
    }
    let service = |(forward, port)| Service::www(vips).name(forward).udp().port(port).forward(forward);
    let services = modes.into_iter().map(|mode| service(mode).nodes(&topology.backends)).collect();
    let balancer = start(&topology, services)?;
    for (forward, port) in modes {
        for vip in vips {
            let target = SocketAddr::new(vip, port);
            let mut answers = BTreeMap::new();
            for i in 0..120 {
                *answers.entry(ask(&topology, target, &vec![i; usize::from(i) * 10])).or_insert(0) += 1;
            }
            // 40 each; fewer than 10 would be six standard deviations off.
            assert!(answers.len() == 3 && answers.values().all(|n| *n >= 10), "{forward} {vip}: {answers:?}");
        }
        assert_eq!(balancer.service(forward).packets, 240);
    }
    Ok(())
}

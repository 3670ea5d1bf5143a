//! `dns` and `udp` against dnsmasq.

use crate::{Host, LONG, PATIENCE};
use lb_tests::{
    lab::{End, Process, Result, wait_for_port},
    require,
    skip::Need,
};
use lb_userspace::model::{DnsCheck, HealthCheck, UdpCheck};
use nix::sys::signal::Signal;

pub(crate) const PORT: u16 = 53;

/// Knows `www.example.com` to be 192.0.2.7, nothing else of that domain, and nothing of others.
pub(crate) fn dnsmasq(host: &Host) -> Result<Process> {
    let mut command = host.ns.command("dnsmasq");
    command
        .args(["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file="])
        .args(["--user=root", "--listen-address=127.0.0.1", "--bind-interfaces", "--log-facility=-"])
        .args(["--host-record=www.example.com,192.0.2.7", "--local=/example.com/"]);
    let process = host.lab.spawn("dnsmasq", command)?;
    wait_for_port(&host.ns, Host::at(PORT), PATIENCE)?;
    Ok(process)
}

pub(crate) fn dns(name: &str, record: &str) -> HealthCheck {
    HealthCheck::Dns(DnsCheck { name: name.into(), record: record.into() })
}

/// The same question as bytes.
pub(crate) fn udp(expect: Option<&[u8]>) -> HealthCheck {
    let send =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03com\x00\x00\x01\x00\x01";
    HealthCheck::Udp(UdpCheck { send: send.to_vec(), expect: expect.map(<[u8]>::to_vec) })
}

#[test]
fn dns_asks_and_judges_as_configured() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("dnsmasq"));
    let host = Host::new()?;
    let server = dnsmasq(&host)?;
    let good = dns("www.example.com", "A");
    assert_eq!(host.check(&good, PORT, LONG), Ok(()));
    let none = host.fails(&dns("www.example.com", "AAAA"), PORT);
    assert_eq!(none, "DNS answer without a record of the type asked for");
    for (name, code) in [("nobody.example.com", "Non-Existent Domain"), ("www.example.org", "Query Refused")]
    {
        assert_eq!(host.fails(&dns(name, "A"), PORT), format!("DNS answer: {code}"));
    }
    assert_eq!(host.stops(&server, &good, PORT), "connected, but no answer within 300ms");
    host.leaks_nothing(&good, PORT, true);
    server.kill();
    assert_eq!(host.fails(&good, PORT), "connection refused");
    Ok(())
}

#[test]
fn udp_looks_for_bytes_in_the_answer() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("dnsmasq"));
    let host = Host::new()?;
    let server = dnsmasq(&host)?;
    let (expecting, open) = (udp(Some(&[192, 0, 2, 7])), udp(None));
    assert_eq!(host.check(&open, PORT, LONG), Ok(()));
    let wrong = host.fails(&udp(Some(b"192.0.2.7")), PORT);
    assert!(
        wrong.starts_with("answer '\\x124") && wrong.ends_with("does not hold what is expected"),
        "{wrong}"
    );
    assert_eq!(host.stops(&server, &expecting, PORT), "connected, but no answer within 300ms");
    server.signal(Signal::SIGSTOP);
    assert_eq!(host.check(&open, PORT, crate::SHORT), Ok(()), "silence passes");
    server.signal(Signal::SIGCONT);
    host.leaks_nothing(&expecting, PORT, true);
    server.kill();
    for check in [expecting, open] {
        assert_eq!(host.fails(&check, PORT), "connection refused");
    }
    Ok(())
}

/// A router that knows no way to the backend says so, and that is no silence.
#[test]
fn udp_hears_routers_that_know_no_way() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let host = Host::new()?;
    let router = host.lab.netns("router")?;
    let mut plan = host.lab.plan();
    plan.veth(&End::new(&host.ns, "eth0"), &End::new(&router, "eth0"));
    plan.addr(&host.ns, "eth0", "10.8.0.1/24").addr(&router, "eth0", "10.8.0.2/24");
    plan.addr(&host.ns, "eth0", "2001:db8:8::1/64 nodad").addr(&router, "eth0", "2001:db8:8::2/64 nodad");
    plan.route(&host.ns, "10.7.0.0/16 via 10.8.0.2").route(&host.ns, "2001:db8:7::/48 via 2001:db8:8::2");
    plan.route(&router, "unreachable 10.7.1.0/24").route(&router, "unreachable 2001:db8:7:1::/64");
    plan.apply()?;
    router.sysctl("net.ipv4.ip_forward", "1")?;
    router.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    for address in ["10.7.1.9:53", "[2001:db8:7:1::9]:53"] {
        let result = host.check_at(&udp(None), address.parse().expect("an address"), LONG);
        let failure = result.expect_err("nobody is there");
        assert!(
            !failure.is_local() && failure.to_string().contains("cannot be reached"),
            "{address}: {failure}"
        );
    }
    Ok(())
}

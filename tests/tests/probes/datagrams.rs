//! `dns` and `udp` against dnsmasq.

use crate::{Host, LONG, PATIENCE};
use lb_tests::{
    lab::{Process, Result, wait_for_port},
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

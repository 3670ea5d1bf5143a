//! `tcp` against nginx, `icmp` against the kernel, `exec` with curl.

use crate::{
    Host, LONG, SHORT,
    certificates::Authority,
    https::{PLAIN, nginx},
};
use lb_tests::{lab::Result, require, skip::Need};
use lb_userspace::model::{ExecCheck, HealthCheck};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

pub(crate) fn exec(command: &[&str]) -> HealthCheck {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    HealthCheck::Exec(ExecCheck { command, user: "nobody".to_owned() })
}

/// Nobody is there: no answer to ARP.
fn nobody(host: &Host, port: u16) -> SocketAddr {
    let lines = "link add nobody type veth peer name peer\nlink set nobody up\nlink set peer up\n\
                 addr add 192.0.2.1/24 dev nobody\n";
    host.ns.ip(lines).expect("a link");
    (Ipv4Addr::new(192, 0, 2, 9), port).into()
}

#[test]
fn tcp_connects() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nginx"));
    let host = Host::new()?;
    let server = nginx(&host, &Authority::new(&host)?)?;
    assert_eq!(host.check(&HealthCheck::Tcp, PLAIN, LONG), Ok(()));
    let nowhere = host.check_at(&HealthCheck::Tcp, (Ipv4Addr::new(192, 0, 2, 9), PLAIN).into(), LONG);
    assert_eq!(
        nowhere.expect_err("no route").to_string(),
        "backend cannot be reached: Network is unreachable"
    );
    let silent = nobody(&host, PLAIN);
    let started = Instant::now();
    let failure = host.check_at(&HealthCheck::Tcp, silent, SHORT).expect_err("nobody is there");
    assert_eq!(failure.to_string(), "no connection within 300ms");
    assert!(started.elapsed() < SHORT + Duration::from_secs(5));
    host.leaks_nothing(&HealthCheck::Tcp, PLAIN, true);
    server.kill();
    assert_eq!(host.fails(&HealthCheck::Tcp, PLAIN), "connection refused");
    Ok(())
}

#[test]
fn icmp_hears_the_echo() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let host = Host::new()?;
    assert_eq!(host.check(&HealthCheck::Icmp, 0, LONG), Ok(()));
    host.leaks_nothing(&HealthCheck::Icmp, 0, true);
    host.ns.sysctl("net.ipv4.icmp_echo_ignore_all", "1")?;
    host.times_out(&HealthCheck::Icmp, 0);
    let nowhere = host.check_at(&HealthCheck::Icmp, (Ipv4Addr::new(192, 0, 2, 9), 0).into(), LONG);
    let nowhere = nowhere.expect_err("no route").to_string();
    assert_eq!(nowhere, "backend cannot be reached: Network is unreachable");
    Ok(())
}

#[test]
fn exec_asks_by_curl() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nginx"), Need::Tool("curl"));
    let host = Host::new()?;
    let server = nginx(&host, &Authority::new(&host)?)?;
    let curl = |path: &str| {
        exec(&[
            "/bin/sh",
            "-c",
            &format!("exec curl -sf -o /dev/null \"http://$LBD_ADDRESS:$LBD_PORT{path}\""),
        ])
    };
    assert_eq!(host.check(&curl("/"), PLAIN, LONG), Ok(()));
    // curl's status for an HTTP error, and for a connection that is refused.
    assert_eq!(host.fails(&curl("/"), crate::https::GOOD), "command ended with status 22");
    let hung = host.check(&exec(&["/bin/sleep", "60"]), PLAIN, SHORT).expect_err("it sleeps");
    assert_eq!(hung.to_string(), "command did not end within 300ms");
    server.kill();
    assert_eq!(host.fails(&curl("/"), PLAIN), "command ended with status 7");
    Ok(())
}

//! The checks by datagrams, echo requests and commands against real peers on loopback.

use super::*;
use crate::{
    health::testing::{V4, V6},
    model::{DnsCheck, ExecCheck, UdpCheck},
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{Name, RData, Record},
};
use std::net::{IpAddr, Ipv4Addr};
use tokio::net::UdpSocket;

/// Long enough that a loaded machine does not reach it.
const LONG: Duration = Duration::from_secs(30);
/// For checks that are to reach it.
const SHORT: Duration = Duration::from_millis(300);

/// A server that answers every datagram with what `answer` makes of it; it says how many it got.
async fn server(ip: IpAddr, answer: impl Fn(usize, &[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        for number in 0.. {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            if let Some(answer) = answer(number, &buffer[..length]) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    address
}

/// An address where nothing listens.
async fn nobody(ip: IpAddr) -> SocketAddr {
    UdpSocket::bind((ip, 0)).await.unwrap().local_addr().unwrap()
}

fn udp_check(expect: Option<&str>) -> UdpCheck {
    UdpCheck { send: b"ping".to_vec(), expect: expect.map(|text| text.as_bytes().to_vec()) }
}

async fn udp_of(address: SocketAddr, expect: Option<&str>, timeout: Duration) -> Result<(), ProbeFailure> {
    udp::probe(address, &udp_check(expect), Deadline::after(timeout)).await
}

#[tokio::test]
async fn udp_passes_by_the_expected_answer() {
    for ip in [V4, V6] {
        let echo = server(ip, |_, datagram| Some(datagram.to_vec())).await;
        assert_eq!(udp_of(echo, Some("ing"), LONG).await, Ok(()));
        assert_eq!(udp_of(echo, None, LONG).await, Ok(()));
        let wrong = udp_of(echo, Some("pong"), LONG).await;
        assert_eq!(wrong, Err(ProbeFailure::Unexpected { found: "'ping'".to_owned() }));
    }
}

#[tokio::test]
async fn udp_fails_where_nothing_listens() {
    for ip in [V4, V6] {
        for expect in [None, Some("pong")] {
            assert_eq!(udp_of(nobody(ip).await, expect, LONG).await, Err(ProbeFailure::Refused));
        }
    }
}

#[tokio::test]
async fn udp_silence_passes_only_where_nothing_is_expected() {
    let silent = server(V4, |_, _| None).await;
    assert_eq!(udp_of(silent, None, SHORT).await, Ok(()));
    let timeout = Err(ProbeFailure::Timeout { stage: Stage::Answer, timeout: SHORT });
    assert_eq!(udp_of(silent, Some("pong"), SHORT).await, timeout);
}

#[tokio::test]
async fn udp_forgives_a_lost_datagram() {
    let deaf_once = server(V4, |number, datagram| (number > 0).then(|| datagram.to_vec())).await;
    assert_eq!(udp_of(deaf_once, Some("ping"), Duration::from_secs(6)).await, Ok(()));
}

#[tokio::test]
async fn icmp_passes_where_the_host_answers() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: echo requests need a raw socket, and this is not root");
        return;
    }
    for ip in [V4, V6] {
        assert_eq!(icmp::probe(SocketAddr::from((ip, 0)), Deadline::after(LONG)).await, Ok(()));
    }
    // The kernel refuses to send this: not a packet leaves.
    let nowhere = icmp::probe(SocketAddr::from((Ipv4Addr::BROADCAST, 0)), Deadline::after(SHORT)).await;
    assert!(matches!(nowhere, Err(ProbeFailure::Unreachable(_))), "{nowhere:?}");
}

fn dns_probe() -> dns::DnsProbe {
    dns::DnsProbe::new(&DnsCheck { name: "www.example.com".to_owned(), record: "A".to_owned() }).unwrap()
}

/// A name server that has an address for every name, and answers with this code.
async fn name_server(code: ResponseCode, records: usize) -> SocketAddr {
    server(V4, move |_, query| {
        let query = Message::from_vec(query).unwrap();
        let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.response_code = code;
        for _ in 0..records {
            let name: Name = query.queries[0].name().clone();
            answer.add_answer(Record::from_rdata(name, 60, RData::A(Ipv4Addr::LOCALHOST.into())));
        }
        Some(answer.to_vec().unwrap())
    })
    .await
}

#[tokio::test]
async fn dns_passes_by_a_record() {
    let ask = async |address| dns::probe(address, &dns_probe(), Deadline::after(LONG)).await;
    assert_eq!(ask(name_server(ResponseCode::NoError, 1).await).await, Ok(()));
    assert_eq!(ask(name_server(ResponseCode::NoError, 0).await).await, Err(ProbeFailure::NoRecord));
    let failed = ask(name_server(ResponseCode::ServFail, 0).await).await;
    assert!(matches!(failed, Err(ProbeFailure::DnsError { .. })), "{failed:?}");
    assert_eq!(ask(server(V4, |_, _| Some(b"no".to_vec())).await).await, Err(ProbeFailure::NotDns));
    assert_eq!(ask(nobody(V4).await).await, Err(ProbeFailure::Refused));
}

#[tokio::test]
async fn dns_passes_over_answers_to_other_queries() {
    // An echo is a query with the same number, not an answer.
    let echo = server(V4, |_, query| Some(query.to_vec())).await;
    let result = dns::probe(echo, &dns_probe(), Deadline::after(SHORT)).await;
    assert_eq!(result, Err(ProbeFailure::Timeout { stage: Stage::Answer, timeout: SHORT }));
}

async fn exec_of(command: &[&str], timeout: Duration) -> Result<(), ProbeFailure> {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let check = ExecCheck { command, user: "nobody".to_owned() };
    exec::probe("192.0.2.7:8080".parse().unwrap(), &check, Deadline::after(timeout)).await
}

#[tokio::test]
async fn exec_passes_by_status_0() {
    assert_eq!(exec_of(&["/bin/true"], LONG).await, Ok(()));
    assert_eq!(exec_of(&["/bin/sh", "-c", "exit 7"], LONG).await, Err(ProbeFailure::Exit { code: 7 }));
    assert_eq!(
        exec_of(&["/bin/sh", "-c", "kill -9 $$"], LONG).await,
        Err(ProbeFailure::Killed { signal: 9 })
    );
    let about = "[ $LBD_ADDRESS = 192.0.2.7 ] && [ $LBD_PORT = 8080 ] && [ -z \"$HOME\" ] && [ $PWD = / ]";
    assert_eq!(exec_of(&["/bin/sh", "-c", about], LONG).await, Ok(()));
    // No shell: the argument is one word.
    assert_eq!(exec_of(&["/usr/bin/test", "a b; c", "=", "a b; c"], LONG).await, Ok(()));
}

#[tokio::test]
async fn exec_runs_without_privileges() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: this is not root, so there are no privileges to lose");
        return;
    }
    let unprivileged = "[ $(id -u) != 0 ] && [ $(id -G) = $(id -g nobody) ]";
    assert_eq!(exec_of(&["/bin/sh", "-c", unprivileged], LONG).await, Ok(()));
    let check = ExecCheck { command: vec!["/bin/true".to_owned()], user: "nosuchuser".to_owned() };
    let result = exec::probe("192.0.2.7:8080".parse().unwrap(), &check, Deadline::after(LONG)).await;
    assert!(result.as_ref().is_err_and(ProbeFailure::is_local), "{result:?}");
}

#[tokio::test]
async fn a_command_that_cannot_run_takes_no_backend_down() {
    let missing = exec_of(&["/nonexistent/check"], LONG).await;
    assert!(missing.as_ref().is_err_and(ProbeFailure::is_local), "{missing:?}");
}

#[tokio::test]
async fn a_command_and_its_children_end_at_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    // Anybody may write there: the command runs as nobody.
    std::fs::write(&mark, "").unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65_534), Some(65_534)).ok();
    std::os::unix::fs::chown(&mark, Some(65_534), Some(65_534)).ok();
    let script = format!("(sleep 1; echo late > {0}) & sleep 60", mark.display());
    let started = Instant::now();
    let result = exec_of(&["/bin/sh", "-c", &script], SHORT).await;
    assert_eq!(result, Err(ProbeFailure::CommandTimeout { timeout: SHORT }));
    assert!(started.elapsed() < Duration::from_secs(20));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "", "a child outlived its check");
}

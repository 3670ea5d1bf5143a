//! The client against daemons that are not there, not allowed, not lbd.

use super::engine::Daemon;
use lb_userspace::control::client::{Client, ClientError};
use lb_userspace::control::request::{NewBackend, Reset};
use lb_userspace::model::{Admin, Protocol};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn every_call() {
    let daemon = Daemon::start();
    let client = Client::new(&daemon.socket);
    let (www, web4) = ("www".parse().unwrap(), "web4".parse().unwrap());
    let address = "2001:db8::14".parse().unwrap();
    let new =
        NewBackend { name: "web4".parse().unwrap(), address, port: None, weight: Some(3), backup: false };
    wait(async {
        assert_eq!(client.status().await.unwrap().node, "lb1");
        client.backend_add(&www, &new).await.unwrap();
        client.backend_weight(&www, &web4, 9).await.unwrap();
        client.backend_admin(&www, &web4, Admin::Disabled).await.unwrap();
        let service = client.service(&www).await.unwrap();
        let added = &service.backends[3];
        assert_eq!((added.address, added.weight, added.admin), (address, 9, Admin::Disabled));
        client.backend_remove(&www, &web4).await.unwrap();
        assert_eq!(client.services().await.unwrap()[0].backends.len(), 3);
        assert_eq!(client.drops().await.unwrap().len(), 3);
        assert_eq!(client.config().await.unwrap().settings.len(), 4);
        let (from, to) = ("[2001:db8::7]:1".parse().unwrap(), "[2001:db8::10]:2".parse().unwrap());
        let explained = client.explain(Protocol::Udp, from, to, None, None).await.unwrap();
        assert_eq!(explained.reason, "2001:db8::10 is no virtual address");
        assert!(client.reload(true).await.unwrap().planned_only);
        assert!(client.reload(false).await.unwrap_err().is_usage());
        assert!(!client.reset(&Reset::default()).await.unwrap_err().is_usage());
        client.detach().await.unwrap();
    });
}

#[test]
fn nobody_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lbd.sock");
    let error = wait(Client::new(&path).status()).unwrap_err();
    assert!(matches!(error, ClientError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("is lbd running?"));
    drop(UnixListener::bind(&path).unwrap());
    let error = wait(Client::new(&path).status()).unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
}

#[test]
fn not_allowed() {
    let daemon = Daemon::start();
    let closed = |mode| {
        std::fs::set_permissions(daemon.directory(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    closed(0o000);
    let error = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            // Root reads everything; this thread shall not.
            nix::unistd::setfsuid(65_534.into());
            wait(Client::new(&daemon.socket).status()).unwrap_err()
        });
        asking.join().unwrap()
    });
    closed(0o700);
    assert!(matches!(error, ClientError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("run this as root"));
}

/// Takes one connection on a new socket, reads a little and answers with these bytes.
fn impostor(answer: &'static [u8]) -> ClientError {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lbd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
        });
        wait(Client::new(&path).status()).unwrap_err()
    })
}

#[test]
fn not_lbd() {
    for answer in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\xfe\xfd",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops",
    ] {
        let error = impostor(answer);
        assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    }
    for answer in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}"] {
        let error = impostor(answer);
        assert!(matches!(error, ClientError::Broken { .. }), "{error}");
        assert!(error.to_string().contains("before it answered"));
    }
}

#[test]
fn no_answer_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lbd.sock");
    let _never_accepts = UnixListener::bind(&path).unwrap();
    let client = Client::new(&path).with_times(Duration::from_secs(5), Duration::from_millis(100));
    let error = wait(client.status()).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { what: "answer", .. }), "{error}");
}

#[test]
fn a_full_queue_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lbd.sock");
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    socket::listen(&socket, Backlog::new(0).unwrap()).unwrap();
    let _fills_the_queue = UnixStream::connect(&path).unwrap();
    let client = Client::new(&path).with_times(Duration::from_millis(100), Duration::from_secs(30));
    let error = wait(client.status()).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { what: "accept the connection", .. }), "{error}");

    let listener = UnixListener::from(socket);
    let client = Client::new(&path).with_times(Duration::from_secs(30), Duration::from_secs(30));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]");
        });
        assert_eq!(wait(client.drops()).unwrap(), Vec::new());
    });
}

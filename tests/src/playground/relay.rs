//! TCP from a port of the host's loopback to an address inside a namespace: a thread that accepts, two per
//! connection.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket;

use crate::lab::Netns;

/// Further connections are closed at once.
const MAX_CONNECTIONS: usize = 256;
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A browser may open a connection before it knows what to ask.
const HEAD_TIME: Duration = Duration::from_secs(60);
const MAX_HEAD: usize = 16 * 1024;
const STACK: usize = 256 * 1024;

/// What is done with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Treatment {
    Untouched,
    /// HTTP of one request: the connection is not kept, so that a browser's next request is another flow.
    OneRequest,
}

/// Which port to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Port {
    /// This one or none.
    pub wanted: Option<u16>,
    /// Else this one if it is free ...
    pub usual: u16,
    // ... else any.
}

/// A port of the loopback that leads elsewhere; dropping it closes it.
pub(super) struct Relay {
    address: SocketAddr,
    listener: Arc<TcpListener>,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Relay {
    pub(super) fn start(port: Port, ns: &Netns, target: SocketAddr, treatment: Treatment) -> Result<Self> {
        let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = match port.wanted {
            Some(wanted) => listen(wanted).with_context(|| format!("cannot listen on 127.0.0.1:{wanted}"))?,
            None => listen(port.usual).or_else(|_| listen(0)).context("cannot listen on 127.0.0.1")?,
        };
        let address = listener.local_addr().context("cannot read the address of a socket")?;
        let (listener, stopping) = (Arc::new(listener), Arc::new(AtomicBool::new(false)));
        let acceptor = {
            let (listener, stopping, ns) = (Arc::clone(&listener), Arc::clone(&stopping), ns.clone());
            thread::spawn(move || accept_all(&listener, &stopping, &ns, target, treatment))
        };
        Ok(Self { address, listener, stopping, acceptor: Some(acceptor) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread in accept.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept_all(
    listener: &TcpListener,
    stopping: &AtomicBool,
    ns: &Netns,
    target: SocketAddr,
    treatment: Treatment,
) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = listener.accept();
        if stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok((client, _)) = accepted else {
            // Out of descriptors, or the client has gone: neither is the end of the relay.
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        if open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (ns, counted) = (ns.clone(), Counted(Arc::clone(&open)));
        // Where no thread can be had the connection is closed.
        let _ = thread::Builder::new().stack_size(STACK).spawn(move || {
            let _counted = counted;
            // An error is one of the two ends', which sees it.
            let _ = serve(client, &ns, target, treatment);
        });
    }
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(mut client: TcpStream, ns: &Netns, target: SocketAddr, treatment: Treatment) -> io::Result<()> {
    let head = match treatment {
        Treatment::Untouched => Vec::new(),
        Treatment::OneRequest => one_request(read_head(&mut client)?),
    };
    let mut server = match ns.run(|| TcpStream::connect_timeout(&target, CONNECT_TIME)) {
        Ok(server) => server,
        Err(error) => return refuse(&mut client, target, &error),
    };
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    server.write_all(&head)?;
    let (mut upstream, mut from_client) = (server.try_clone()?, client.try_clone()?);
    let sender = thread::Builder::new().stack_size(STACK).spawn(move || {
        let _ = io::copy(&mut from_client, &mut upstream);
        let _ = upstream.shutdown(Shutdown::Write);
    })?;
    let copied = io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    let _ = sender.join();
    copied.map(|_| ())
}

/// All bytes up to the end of the head, and what came with them; less when the client ended or sends no HTTP.
fn read_head(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    client.set_read_timeout(Some(HEAD_TIME))?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    while bytes.len() < MAX_HEAD && head_length(&bytes).is_none() {
        match client.read(&mut piece)? {
            0 => break,
            length => bytes.extend_from_slice(&piece[..length]),
        }
    }
    client.set_read_timeout(None)?;
    Ok(bytes)
}

/// The length of the head without the empty line that ends it.
fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n")
}

/// The same request with `Connection: close` (RFC 9112 section 9.6); what is no HTTP stays as it is.
fn one_request(bytes: Vec<u8>) -> Vec<u8> {
    let Some(end) = head_length(&bytes) else { return bytes };
    let mut changed = Vec::with_capacity(bytes.len() + 24);
    for line in bytes[..end].split(|byte| *byte == b'\n') {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if !name.eq_ignore_ascii_case(b"connection") && !name.eq_ignore_ascii_case(b"keep-alive") {
            changed.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
            changed.extend_from_slice(b"\r\n");
        }
    }
    changed.extend_from_slice(b"Connection: close");
    changed.extend_from_slice(&bytes[end..]);
    changed
}

fn refuse(client: &mut TcpStream, target: SocketAddr, error: &io::Error) -> io::Result<()> {
    let body = format!("nobody answers on {target} inside the playground: {error}\n");
    write!(
        client,
        "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    client.shutdown(Shutdown::Write)?;
    // Closing with unread bytes would reset the connection and take the answer away.
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut rest = [0; 4096];
    while client.read(&mut rest)? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http;

    #[test]
    fn a_request_asks_for_the_end_of_its_connection_once() {
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nconnection: keep-alive\r\nA: b\r\n\r\nbody".to_vec();
        let expected = b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nConnection: close\r\n\r\nbody";
        assert_eq!(one_request(request), expected);
        assert_eq!(one_request(b"SSH-2.0\r\n".to_vec()), b"SSH-2.0\r\n");
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), end: bool) {
            let mut bytes = bytes;
            if end {
                bytes.extend_from_slice(b"\r\n\r\n");
            }
            let before = head_length(&bytes).map(|end| bytes.len() - end);
            let changed = one_request(bytes.clone());
            match before {
                // The body is never touched.
                Some(tail) => prop_assert!(changed.ends_with(&bytes[bytes.len() - tail..])),
                None => prop_assert_eq!(changed, bytes),
            }
        }

        #[test]
        fn a_good_request_stays_one(path in "/[a-z]{0,9}", body in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = format!("POST {path} HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").into_bytes();
            bytes.extend_from_slice(&body);
            let changed = one_request(bytes);
            let (request, length) = http::parse_request(&changed).unwrap().unwrap();
            prop_assert_eq!(request.path, path);
            prop_assert!(!request.keep_alive);
            prop_assert_eq!(&changed[length..], &body[..]);
        }
    }
}

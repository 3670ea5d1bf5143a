//! Small servers for what HTTP does not show: datagrams, and uploads that are checked.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    http,
    lab::{Error, Netns, Result},
};

/// How often a server looks whether it is to end.
const TICK: Duration = Duration::from_millis(50);

/// A server's thread; dropping it ends the server.
#[must_use = "the server ends when this is dropped"]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn spawn(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let for_thread = Arc::clone(&stop);
        Self { stop, thread: Some(std::thread::spawn(move || work(&for_thread))) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen_error(ns: &Netns, address: SocketAddr) -> impl FnOnce(io::Error) -> Error {
    let ns = ns.name().to_owned();
    move |source| Error::Listen { ns, address, source }
}

/// Answers every datagram with `NAME:` and what it holds.
pub fn udp_echo(ns: &Netns, name: &str, address: IpAddr, port: u16) -> Result<Server> {
    udp_echo_after(ns, name, address, port, || ())
}

/// As [`udp_echo`], by a thread that prepares itself first.
pub fn udp_echo_after(ns: &Netns, name: &str, address: IpAddr, port: u16, prepare: fn()) -> Result<Server> {
    // Bound to the address, so that answers come from it.
    let address = SocketAddr::new(address, port);
    let socket = ns
        .run(|| UdpSocket::bind(address).and_then(|s| s.set_read_timeout(Some(TICK)).map(|()| s)))
        .map_err(listen_error(ns, address))?;
    let prefix = format!("{name}:").into_bytes();
    Ok(Server::spawn(move |stop| {
        prepare();
        let mut buffer = vec![0; 65_536];
        while !stop.load(Ordering::SeqCst) {
            if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                let answer = [&prefix, &buffer[..length]].concat();
                let _ = socket.send_to(&answer, client);
            }
        }
    }))
}

/// Takes uploads of the test pattern: reads to the end of the stream, then answers with a line, `NAME BYTES ok` or
/// `NAME BYTES corrupt at OFFSET`.
pub fn tcp_sink(ns: &Netns, name: &str, address: IpAddr, port: u16) -> Result<Server> {
    let address = SocketAddr::new(address, port);
    let listener = ns
        .run(|| TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l)))
        .map_err(listen_error(ns, address))?;
    let name = name.to_owned();
    Ok(Server::spawn(move |stop| {
        while !stop.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let name = name.clone();
                    // Ends when the client does, or a while after it fell silent.
                    std::thread::spawn(move || take_upload(stream, &name));
                }
                Err(_) => std::thread::sleep(TICK / 10),
            }
        }
        // A child that another thread has just forked may hold a copy for a moment.
        let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }))
}

fn take_upload(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut received, mut wrong, mut buffer) = (0, None, vec![0; 256 * 1024]);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        wrong = wrong.or_else(|| http::pattern_mismatch(received, &buffer[..length]));
        received += length as u64;
    }
    let verdict = wrong.map_or_else(|| "ok".to_owned(), |at| format!("corrupt at {at}"));
    writeln!(stream, "{name} {received} {verdict}")
}

/// Sends so many bytes of the test pattern to a [`tcp_sink`] from inside a namespace; returns its line.
pub fn upload(ns: &Netns, target: SocketAddr, bytes: u64, timeout: Duration) -> io::Result<String> {
    let mut stream = ns.run(|| TcpStream::connect_timeout(&target, timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_read_timeout(Some(timeout))?;
    let mut at = 0;
    while at < bytes {
        let piece = http::pattern(at);
        let length = usize::try_from(bytes - at).map_or(piece.len(), |left| left.min(piece.len()));
        stream.write_all(&piece[..length])?;
        at += length as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut line = String::new();
    stream.read_to_string(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// A DNS server that answers every question with one A record of this address (RFC 1035 section 4.1).
pub fn dns_server(ns: &Netns, address: IpAddr, port: u16, record: [u8; 4]) -> Result<Server> {
    let address = SocketAddr::new(address, port);
    let socket = ns
        .run(|| UdpSocket::bind(address).and_then(|s| s.set_read_timeout(Some(TICK)).map(|()| s)))
        .map_err(listen_error(ns, address))?;
    Ok(Server::spawn(move |stop| {
        let mut buffer = vec![0; 512];
        while !stop.load(Ordering::SeqCst) {
            let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
            if length < 12 {
                continue;
            }
            let mut answer = buffer[..length].to_vec();
            // A response without error, one answer.
            (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
            // The name as at byte 12; type A, class IN, 60 s, four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(record);
            let _ = socket.send_to(&answer, client);
        }
    }))
}

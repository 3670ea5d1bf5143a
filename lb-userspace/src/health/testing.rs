//! Servers that behave and servers that do not, on loopback, for the tests of this module. They end
//! with the test's runtime.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

pub(super) const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(super) const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// What a server does with every connection after the request's head was read.
#[derive(Debug, Clone)]
pub(super) enum Conduct {
    /// Sends this and closes.
    Send(Vec<u8>),
    /// Sends this and keeps the connection open.
    SendAndHang(Vec<u8>),
    /// Sends the first, then the second again and again, that long apart, until the peer is gone.
    Forever(Vec<u8>, Vec<u8>, Duration),
}

impl Conduct {
    pub(super) fn send(text: impl AsRef<[u8]>) -> Self {
        Self::Send(text.as_ref().to_vec())
    }

    pub(super) fn hang(text: impl AsRef<[u8]>) -> Self {
        Self::SendAndHang(text.as_ref().to_vec())
    }

    pub(super) fn forever(first: &str, again: &str, apart_ms: u64) -> Self {
        Self::Forever(first.into(), again.into(), Duration::from_millis(apart_ms))
    }
}

/// A listening server.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    conduct: tokio::sync::watch::Sender<Conduct>,
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    most_open: Arc<AtomicUsize>,
    requests: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Server {
    pub(super) async fn start(ip: IpAddr, conduct: Conduct) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (conduct, present) = tokio::sync::watch::channel(conduct);
        let (log, requests) = tokio::sync::mpsc::unbounded_channel();
        let (accepted, open, most_open) = <(Arc<AtomicUsize>, Arc<_>, Arc<AtomicUsize>)>::default();
        let server = Self { address, conduct, accepted, open, most_open, requests };
        let (accepted, open, most_open) =
            (server.accepted.clone(), server.open.clone(), server.most_open.clone());
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                accepted.fetch_add(1, Ordering::Relaxed);
                let now_open = open.fetch_add(1, Ordering::Relaxed) + 1;
                most_open.fetch_max(now_open, Ordering::Relaxed);
                let (conduct, log, open) = (present.borrow().clone(), log.clone(), open.clone());
                tokio::spawn(async move {
                    // An error is the peer's having gone, which ends the conversation.
                    let _ = converse(stream, conduct, &log).await;
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        server
    }

    pub(super) fn change(&self, conduct: Conduct) {
        self.conduct.send_replace(conduct);
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn most_open(&self) -> usize {
        self.most_open.load(Ordering::Relaxed)
    }

    /// The head of the next request.
    pub(super) async fn request(&mut self) -> String {
        self.requests.recv().await.unwrap()
    }
}

async fn converse(
    mut stream: TcpStream,
    conduct: Conduct,
    log: &tokio::sync::mpsc::UnboundedSender<String>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let _ = log.send(String::from_utf8_lossy(&head).into_owned());
    match conduct {
        Conduct::Send(bytes) => stream.write_all(&bytes).await,
        Conduct::SendAndHang(bytes) => {
            stream.write_all(&bytes).await?;
            stream.read_u8().await.map(drop)
        }
        Conduct::Forever(first, again, apart) => {
            stream.write_all(&first).await?;
            loop {
                stream.write_all(&again).await?;
                tokio::time::sleep(apart).await;
            }
        }
    }
}

/// A port that is bound and does not listen: connections are refused as long as this lives, and nobody
/// else gets the port.
pub(super) struct Refusing(TcpSocket);

impl Refusing {
    pub(super) fn bind(address: SocketAddr) -> Self {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        Self(socket)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Listens from now on; the kernel completes the handshakes up to the backlog, nobody accepts.
    pub(super) fn listen(self, backlog: u32) -> TcpListener {
        self.0.listen(backlog).unwrap()
    }
}

/// States (in hexadecimal, as in `/proc/net/tcp`) of this host's sockets whose peer is `port`.
pub(super) fn sockets_to(port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|f| f[2].ends_with(&suffix)).map(|f| f[3].to_owned()).collect()
}

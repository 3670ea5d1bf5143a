//! Web servers for the backends: nginx where it is installed, a built-in one otherwise. Both answer alike:
//!
//! - `/` with the server's name and a line feed;
//! - `/healthz` with 200, or 503 after [`WebServer::set_healthy`]`(false)`;
//! - `/big?bytes=N` with N bytes of the test pattern (nginx: with the whole file of `big_bytes`, unless a range is asked for, as
//!   [`crate::client::download`] does);
//! - always with `X-Backend: NAME` and `X-Client:` the client's address as the server saw it.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket,
};

use crate::{
    http::{self, Request},
    lab::{Error, Lab, Netns, Process, Result},
    skip::find_tool,
};

/// What a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebOptions {
    /// Listened on with both address families.
    pub ports: Vec<u16>,
    /// The size of `/big` where the request names none; nginx has a file of it.
    pub big_bytes: u64,
}

impl Default for WebOptions {
    fn default() -> Self {
        Self { ports: vec![80], big_bytes: 1 << 20 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    Builtin,
}

/// A web server in a namespace; dropping it ends it.
pub struct WebServer {
    name: String,
    ns: Netns,
    options: WebOptions,
    kind: Kind,
    /// nginx looks whether this file exists.
    health: PathBuf,
    running: Option<Running>,
}

enum Running {
    Nginx(Process),
    Builtin(Builtin),
}

impl WebServer {
    /// Starts nginx where it is installed, else the built-in server; returns when it answers.
    pub fn nginx_or_builtin(lab: &Lab, ns: &Netns, name: &str, options: &WebOptions) -> Result<Self> {
        let kind = if find_tool("nginx").is_some() { Kind::Nginx } else { Kind::Builtin };
        Self::of_kind(kind, lab, ns, name, options)
    }

    /// Starts this kind of server; returns when it answers.
    pub fn of_kind(kind: Kind, lab: &Lab, ns: &Netns, name: &str, options: &WebOptions) -> Result<Self> {
        let mut server = Self {
            name: name.to_owned(),
            ns: ns.clone(),
            options: options.clone(),
            kind,
            health: lab.dir().join(format!("{name}.healthy")),
            running: None,
        };
        server.set_healthy(true)?;
        server.start(lab)?;
        Ok(server)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What `/healthz` answers from now on; survives [`WebServer::kill`] and [`WebServer::start`].
    pub fn set_healthy(&self, healthy: bool) -> Result<()> {
        let done = if healthy {
            std::fs::write(&self.health, "")
        } else {
            match std::fs::remove_file(&self.health) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            }
        };
        done.map_err(|source| Error::File { path: self.health.clone(), what: "switching the health", source })
    }

    /// Ends the server as SIGKILL does: its port refuses connections, those it had are cut.
    pub fn kill(&mut self) {
        match self.running.take() {
            Some(Running::Nginx(process)) => drop(process.kill()),
            Some(Running::Builtin(server)) => drop(server),
            None => {}
        }
    }

    /// Starts the server again after [`WebServer::kill`]; does nothing while it runs.
    pub fn start(&mut self, lab: &Lab) -> Result<()> {
        if self.running.is_none() {
            self.running = Some(match self.kind {
                Kind::Nginx => Running::Nginx(self.start_nginx(lab)?),
                Kind::Builtin => Running::Builtin(Builtin::start(
                    &self.ns,
                    &self.name,
                    &self.options,
                    self.health.clone(),
                )?),
            });
        }
        Ok(())
    }

    /// The pid of nginx while it runs.
    pub fn pid(&self) -> Option<u32> {
        match &self.running {
            Some(Running::Nginx(process)) => Some(process.pid()),
            Some(Running::Builtin(_)) | None => None,
        }
    }

    /// Requests the built-in server has answered since its start.
    pub fn requests(&self) -> Option<u64> {
        match &self.running {
            Some(Running::Builtin(server)) => Some(server.shared.requests.load(Ordering::Relaxed)),
            Some(Running::Nginx(_)) | None => None,
        }
    }

    fn start_nginx(&self, lab: &Lab) -> Result<Process> {
        let nginx = find_tool("nginx").ok_or(Error::NoTool("nginx"))?;
        let big = lab.pattern_file(self.options.big_bytes)?;
        let dir = lab.dir().join(format!("{}.nginx", self.name));
        let path = dir.join("nginx.conf");
        let text = nginx_config(&self.name, &self.options.ports, &dir, &big, &self.health);
        std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&path, text)).map_err(|source| {
            Error::File { path: path.clone(), what: "writing nginx's configuration", source }
        })?;
        let mut command = self.ns.command(nginx);
        command.arg("-p").arg(&dir).arg("-c").arg(&path).args(["-e", "stderr"]);
        let process = lab.spawn(&format!("nginx-{}", self.name), command)?;
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        process.wait_for("all ports", Duration::from_secs(20), || {
            self.ns.run(|| {
                let mut each = self.options.ports.iter().flat_map(|port| loopback.map(|ip| (ip, *port)));
                each.all(|address| TcpStream::connect(address).is_ok())
            })
        })?;
        Ok(process)
    }
}

/// One process, in the foreground, whose every file is in the lab's directory.
fn nginx_config(name: &str, ports: &[u16], dir: &Path, big: &Path, health: &Path) -> String {
    let listen: String = ports
        .iter()
        .map(|port| format!("listen {port} backlog=4096; listen [::]:{port} ipv6only=on backlog=4096;\n    "))
        .collect();
    let (dir, big, health) = (dir.display(), big.display(), health.display());
    format!(
        r#"daemon off;
master_process off;
pid {dir}/pid;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  default_type text/plain;
  keepalive_requests 1000000;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  server {{
    {listen}
    add_header X-Backend {name} always;
    add_header X-Client $remote_addr always;
    location = / {{ return 200 "{name}\n"; }}
    location = /healthz {{
      if (-f {health}) {{ return 200 "ok\n"; }}
      return 503 "failing\n";
    }}
    location = /big {{ alias {big}; }}
    location / {{ return 404 "no such page\n"; }}
  }}
}}
"#
    )
}

/// The built-in server: a thread that accepts, a thread per connection.
struct Builtin {
    shared: Arc<Shared>,
    /// Dropped to wake the accepting thread for its end.
    wake: Option<UnixStream>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    big_bytes: u64,
    health: PathBuf,
    stopping: AtomicBool,
    requests: AtomicU64,
    connections: Mutex<HashMap<u64, TcpStream>>,
}

impl Builtin {
    fn start(ns: &Netns, name: &str, options: &WebOptions, health: PathBuf) -> Result<Self> {
        let listeners = ns.run(|| {
            let listen = |port: &u16| {
                // Listens for IPv4 too, unless the namespace was told otherwise (net.ipv6.bindv6only).
                let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
                let listener = TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
                listener.map_err(|source| Error::Listen { ns: ns.name().to_owned(), address, source })
            };
            options.ports.iter().map(listen).collect::<Result<Vec<_>>>()
        })?;
        let pipe_error =
            |source| Error::Namespace { name: ns.name().to_owned(), step: "making a socket pair", source };
        let (wake, sleeper) = UnixStream::pair().map_err(pipe_error)?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            big_bytes: options.big_bytes,
            health,
            stopping: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let for_thread = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || accept_all(&listeners, &sleeper, &for_thread));
        Ok(Self { shared, wake: Some(wake), acceptor: Some(acceptor) })
    }
}

impl Drop for Builtin {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        drop(self.wake.take());
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in lock(&self.shared.connections).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept_all(listeners: &[TcpListener], sleeper: &UnixStream, shared: &Arc<Shared>) {
    let mut number = 0;
    while !shared.stopping.load(Ordering::SeqCst) {
        let mut fds: Vec<PollFd<'_>> = listeners
            .iter()
            .map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN))
            .chain([PollFd::new(sleeper.as_fd(), PollFlags::POLLIN)])
            .collect();
        let _ = poll(&mut fds, PollTimeout::NONE);
        for listener in listeners {
            loop {
                match listener.accept() {
                    Ok((stream, client)) => {
                        number += 1;
                        serve_on_thread(number, stream, client.ip().to_canonical(), shared);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // Out of descriptors, or the client has gone: neither is the end of the server.
                    Err(_) => {
                        std::thread::sleep(Duration::from_millis(5));
                        break;
                    }
                }
            }
        }
    }
    stop_listening(listeners);
}

/// Closing alone would leave the port open for as long as a child that another thread has just forked holds a copy.
fn stop_listening(listeners: &[TcpListener]) {
    for listener in listeners {
        let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
    }
}

fn serve_on_thread(number: u64, stream: TcpStream, client: IpAddr, shared: &Arc<Shared>) {
    let Ok(for_the_end) = stream.try_clone() else { return };
    lock(&shared.connections).insert(number, for_the_end);
    let for_thread = Arc::clone(shared);
    let spawned = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
        // An error here is the client's or the network's, and the client reports it.
        let _ = serve(stream, client, &for_thread);
        lock(&for_thread.connections).remove(&number);
    });
    if spawned.is_err() {
        lock(&shared.connections).remove(&number);
    }
}

fn serve(mut stream: TcpStream, client: IpAddr, shared: &Shared) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        let request = loop {
            match http::parse_request(&buffer) {
                Ok(Some((request, length))) => {
                    buffer.drain(..length);
                    break request;
                }
                Ok(None) => {}
                Err(error) => {
                    let body = format!("{error}\n");
                    return stream
                        .write_all(head(shared, client, 400, body.len() as u64, false).as_bytes())
                        .and_then(|()| stream.write_all(body.as_bytes()));
                }
            }
            if !read_more(&mut stream, &mut buffer)? {
                return Ok(());
            }
        };
        skip_body(&mut stream, &mut buffer, &request)?;
        answer(&mut stream, client, shared, &request)?;
        shared.requests.fetch_add(1, Ordering::Relaxed);
        if !request.keep_alive {
            return Ok(());
        }
    }
}

fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; 4096];
    let length = stream.read(&mut piece)?;
    buffer.extend_from_slice(&piece[..length]);
    Ok(length > 0)
}

fn skip_body(stream: &mut TcpStream, buffer: &mut Vec<u8>, request: &Request) -> io::Result<()> {
    let mut left = request.headers.content_length().unwrap_or(0);
    loop {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        buffer.drain(..here);
        left -= here as u64;
        if left == 0 {
            return Ok(());
        }
        if !read_more(stream, buffer)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn answer(stream: &mut TcpStream, client: IpAddr, shared: &Shared, request: &Request) -> io::Result<()> {
    let name_line = format!("{}\n", shared.name);
    let (status, body) = match request.path.as_str() {
        "/" => (200, name_line.as_str()),
        "/healthz" if shared.health.exists() => (200, "ok\n"),
        "/healthz" => (503, "failing\n"),
        "/big" => {
            let bytes = request.number("bytes").unwrap_or(shared.big_bytes);
            stream.write_all(head(shared, client, 200, bytes, request.keep_alive).as_bytes())?;
            return if request.method == "HEAD" { Ok(()) } else { write_pattern(stream, bytes) };
        }
        _ => (404, "no such page\n"),
    };
    // Head and body in one segment.
    let mut text = head(shared, client, status, body.len() as u64, request.keep_alive);
    if request.method != "HEAD" {
        text.push_str(body);
    }
    stream.write_all(text.as_bytes())
}

fn head(shared: &Shared, client: IpAddr, status: u16, length: u64, keep_alive: bool) -> String {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        _ => "Service Unavailable",
    };
    let connection = if keep_alive { "" } else { "Connection: close\r\n" };
    let name = &shared.name;
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         X-Backend: {name}\r\nX-Client: {client}\r\n{connection}\r\n"
    )
}

fn write_pattern(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let piece = http::pattern(at);
        let length = usize::try_from(bytes - at).map_or(piece.len(), |left| left.min(piece.len()));
        stream.write_all(&piece[..length])?;
        at += length as u64;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Browser-like sessions, from the client: log in, look, write, read back; keep-alive and new connections.
//!
//! Each request is a line of JSON in a file as soon as it is over, so that whoever breaks something can look on.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::pem::PemObject as _};
use serde::{Deserialize, Serialize};

const SITE: &str = "www.foobar.com";
/// As long as a patient person waits.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Args)]
pub struct Options {
    /// How many at once
    #[arg(long, default_value_t = 4)]
    browsers: u32,
    /// How many more that log in once and then only read
    #[arg(long, default_value_t = 0)]
    readers: u32,
    /// How long
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Pause between two requests
    #[arg(long, default_value_t = 50)]
    think_ms: u64,
    /// Where the requests are told
    #[arg(long)]
    out: PathBuf,
    /// Ends early when this file appears
    #[arg(long)]
    stop: Option<PathBuf>,
    /// Only look at a page that the web servers answer themselves, each time on a new connection
    #[arg(long)]
    simple: bool,
}

/// One request, from the first packet (of the connection, where it is a new one) to the last byte.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since 1970.
    pub began: u64,
    pub millis: u64,
    pub browser: u32,
    pub what: String,
    /// The address that the connection went to.
    pub address: String,
    /// When that connection was begun, in milliseconds since 1970; 0 without one.
    #[serde(default)]
    pub connected: u64,
    /// How often it was begun again because a connection was lost, or did not come about: what a user may not see, but
    /// would have been a failure with one address, or of a request that must not be repeated.
    #[serde(default)]
    pub retried: u32,
    /// When the first connection that was lost so had been begun, in milliseconds since 1970; 0 without one.
    #[serde(default)]
    pub given_up: u64,
    /// How often a connection was made anew because the server had ended the kept one in an orderly way before any byte of
    /// an answer, as every server does some day.
    #[serde(default)]
    pub reopened: u32,
    /// The web server, as its answer says; without an answer, the one that answered last on this connection.
    pub server: String,
    /// The application server, likewise.
    pub application: String,
    /// What failed; empty for an answer of the status that was expected.
    pub error: String,
    /// A note that the site says is written.
    pub written: Option<String>,
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0))
}

/// The records in a file so far; a line that is being written is left out.
pub fn records(file: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

pub fn run(options: &Options) -> Result<()> {
    let mut roots = RootCertStore::empty();
    let ca = rustls::pki_types::CertificateDer::from_pem_file("/etc/foobar/ca.pem").context("no CA")?;
    roots.add(ca).context("the CA's certificate")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let out = OpenOptions::new().create(true).append(true).open(&options.out)?;
    let out = Mutex::new(out);
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    thread::scope(|scope| {
        for number in 0..options.browsers + options.readers {
            let (config, out) = (Arc::clone(&config), &out);
            scope.spawn(move || {
                let mut browser = Browser {
                    number,
                    config,
                    out,
                    connection: None,
                    cookies: Vec::new(),
                    seen: 0,
                    trouble: Trouble::default(),
                };
                while Instant::now() < end && !options.stop.as_ref().is_some_and(|file| file.exists()) {
                    if options.simple {
                        browser.connection = None;
                        browser.request("look", "GET", "/whoami", "");
                        thread::sleep(Duration::from_millis(options.think_ms));
                    } else if number >= options.browsers {
                        browser.read_on(options.think_ms);
                    } else {
                        browser.visit(options.think_ms);
                    }
                }
            });
        }
    });
    Ok(())
}

struct Browser<'a> {
    number: u32,
    config: Arc<ClientConfig>,
    out: &'a Mutex<File>,
    connection: Option<Connection>,
    cookies: Vec<(String, String)>,
    seen: u64,
    /// Of the request that is under way.
    trouble: Trouble,
}

/// What it took to get an answer, or none.
#[derive(Debug, Default)]
struct Trouble {
    retried: u32,
    given_up: u64,
    reopened: u32,
}

impl Trouble {
    /// A connection begun then (ms since 1970) is lost, and the request begins again.
    fn lost(&mut self, begun: u64) {
        self.retried += 1;
        if self.given_up == 0 {
            self.given_up = begun;
        }
    }
}

/// The server has ended a connection in an orderly way (FIN) before any byte of an answer.
#[derive(Debug)]
struct Ended;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed without an answer")
    }
}

impl std::error::Error for Ended {}

/// A kept connection on which nothing is expected.
enum Kept {
    Open,
    /// By the server, in an orderly way.
    Ended,
    /// By a reset or any other error.
    Lost,
}

struct Connection {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    address: SocketAddr,
    /// Milliseconds since 1970.
    begun: u64,
    /// Who answered last.
    server: String,
}

#[derive(Default)]
struct Answer {
    status: u16,
    server: String,
    application: String,
    cookies: Vec<(String, String)>,
    body: String,
    close: bool,
}

impl Browser<'_> {
    /// What one does on a site: a page with its script, log in, read, write, read that, look again.
    fn visit(&mut self, think_ms: u64) {
        let think = || thread::sleep(Duration::from_millis(think_ms));
        self.connection = None;
        self.request("page", "GET", "/", "");
        self.request("script", "GET", "/site.js", "");
        think();
        let logged_in = self.log_in();
        for round in 0..4 {
            think();
            // Without a new session the old one still does for reading, as long as there is one.
            if !logged_in && !self.has_session() {
                return;
            }
            // A browser gives up its connections now and then.
            if round == 2 {
                self.connection = None;
            }
            // Whoever cannot write still reads.
            self.request("read", "GET", "/app/notes", "");
            think();
            self.seen += 1;
            let note = format!("{}-{}-{}", std::process::id(), self.number, self.seen);
            if self.request("write", "POST", "/app/notes", &format!("body={note}")).is_some() {
                think();
                let read = self.request("read", "GET", "/app/notes", "");
                // Others write too, and only the latest twenty are shown.
                if let Some(answer) = read
                    && !answer.body.contains("\"notes\": [{")
                {
                    self.tell("read", now_ms(), 0, &answer, "nothing is there of what was written", None);
                }
            }
            think();
            self.request("look", "GET", "/whoami", "");
        }
    }

    /// A new session in the place of an old one; whether that came about.
    fn log_in(&mut self) -> bool {
        self.request("login", "POST", "/app/login", "user=alice&password=secret").is_some()
    }

    fn has_session(&self) -> bool {
        self.cookies.iter().any(|(name, _)| name == "session")
    }

    /// Reads, now and then on a new connection.
    fn read_on(&mut self, think_ms: u64) {
        let think = || thread::sleep(Duration::from_millis(think_ms));
        if !self.has_session() && !self.log_in() {
            return think();
        }
        for _ in 0..10 {
            think();
            self.request("read", "GET", "/app/notes", "");
        }
        self.connection = None;
    }

    /// One request; the answer, if it is a good one.
    fn request(&mut self, what: &str, method: &str, path: &str, body: &str) -> Option<Answer> {
        let (began, clock) = (now_ms(), Instant::now());
        self.trouble = Trouble::default();
        let reused = self.connection.is_some();
        let mut outcome = self.attempt(method, path, body);
        // As browsers do: a connection that was kept may have ended meanwhile, and asking again does no harm.
        if let Err(error) = &outcome
            && reused
            && method == "GET"
        {
            if error.downcast_ref::<Ended>().is_some() {
                self.trouble.reopened += 1;
            } else {
                self.trouble.lost(self.connection.as_ref().map_or(began, |c| c.begun));
            }
            self.connection = None;
            outcome = self.attempt(method, path, body);
        }
        let millis = u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        match outcome {
            Ok(answer) if answer.status == 200 => {
                for (name, value) in &answer.cookies {
                    self.cookies.retain(|(known, _)| known != name);
                    self.cookies.push((name.clone(), value.clone()));
                }
                if let Some(connection) = &mut self.connection {
                    connection.server.clone_from(&answer.server);
                }
                let written = body.strip_prefix("body=").map(str::to_owned);
                self.tell(what, began, millis, &answer, "", written);
                if answer.close {
                    self.connection = None;
                }
                Some(answer)
            }
            Ok(answer) => {
                let error = format!("status {}: {}", answer.status, answer.body.trim());
                self.tell(what, began, millis, &answer, &error, None);
                self.connection = None;
                None
            }
            Err(error) => {
                let server = self.connection.as_ref().map_or_else(String::new, |c| c.server.clone());
                let answer = Answer { server, ..Answer::default() };
                self.tell(what, began, millis, &answer, &format!("{error:#}"), None);
                self.connection = None;
                None
            }
        }
    }

    fn tell(
        &self,
        what: &str,
        began: u64,
        millis: u64,
        answer: &Answer,
        error: &str,
        written: Option<String>,
    ) {
        let record = Record {
            began,
            millis,
            browser: self.number,
            what: what.to_owned(),
            address: self.connection.as_ref().map_or_else(String::new, |c| c.address.ip().to_string()),
            connected: self.connection.as_ref().map_or(0, |c| c.begun),
            retried: self.trouble.retried,
            given_up: self.trouble.given_up,
            reopened: self.trouble.reopened,
            server: answer.server.clone(),
            application: answer.application.clone(),
            error: error.to_owned(),
            written,
        };
        let Ok(line) = serde_json::to_string(&record) else { return };
        if let Ok(mut out) = self.out.lock() {
            let _ = out.write_all(format!("{line}\n").as_bytes());
        }
    }

    fn attempt(&mut self, method: &str, path: &str, body: &str) -> Result<Answer> {
        // A connection that has ended meanwhile is no connection.
        let reused = match self.connection.as_ref().map(|connection| (connection.kept(), connection.begun)) {
            Some((Kept::Open, _)) => true,
            Some((Kept::Ended, _)) => {
                self.trouble.reopened += 1;
                false
            }
            Some((Kept::Lost, begun)) => {
                self.trouble.lost(begun);
                false
            }
            None => false,
        };
        if !reused {
            self.connection = None;
            self.connection = Some(Connection::open(&self.config, self.number, &mut self.trouble)?);
        }
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies =
            if cookies.is_empty() { String::new() } else { format!("Cookie: {}\r\n", cookies.join("; ")) };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {SITE}\r\n{cookies}Content-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let Some(connection) = &mut self.connection else { bail!("no connection") };
        connection.exchange(&request).with_context(|| {
            format!(
                "{} by {}",
                if reused { "on a kept connection" } else { "on a new connection" },
                connection.address
            )
        })
    }
}

impl Connection {
    /// Tries the site's addresses in the order in which the name server gives them, beginning with another one each time.
    fn open(config: &Arc<ClientConfig>, number: u32, trouble: &mut Trouble) -> Result<Self> {
        let mut addresses: Vec<SocketAddr> = (SITE, 443).to_socket_addrs().context("the name")?.collect();
        if addresses.is_empty() {
            bail!("the name has no address");
        }
        let first = usize::try_from(now_ms() / 7 + u64::from(number)).unwrap_or(0) % addresses.len();
        addresses.rotate_left(first);
        let mut refused = None;
        for address in addresses {
            let begun = now_ms();
            match TcpStream::connect_timeout(&address, PATIENCE / 2) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    stream.set_nodelay(true)?;
                    let name = rustls::pki_types::ServerName::try_from(SITE)?;
                    let session = ClientConnection::new(Arc::clone(config), name)?;
                    return Ok(Self {
                        stream: BufReader::new(StreamOwned::new(session, stream)),
                        address,
                        begun,
                        server: String::new(),
                    });
                }
                Err(error) => {
                    trouble.lost(begun);
                    refused = Some(anyhow::Error::new(error).context(format!("connecting to {address}")));
                }
            }
        }
        Err(refused.context("no address")?)
    }

    /// What became of it: nothing is expected now, so whatever is there to be read is an end.
    fn kept(&self) -> Kept {
        let stream = &self.stream.get_ref().sock;
        let mut byte = [0];
        if stream.set_nonblocking(true).is_err() {
            return Kept::Lost;
        }
        let peeked = stream.peek(&mut byte);
        let _ = stream.set_nonblocking(false);
        // Session tickets come without being asked for; an alert is as short.
        match peeked {
            Ok(0) => Kept::Ended,
            Ok(_) if byte[0] == 0x15 || byte[0] == 0x17 && self.closing() => Kept::Ended,
            Ok(_) => Kept::Open,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Kept::Open,
            Err(_) => Kept::Lost,
        }
    }

    /// In TLS 1.3 an alert looks like data, and is the shortest of all: 19 bytes.
    fn closing(&self) -> bool {
        let mut head = [0; 5];
        let stream = &self.stream.get_ref().sock;
        matches!(stream.peek(&mut head), Ok(5)) && u16::from_be_bytes([head[3], head[4]]) == 19
    }

    fn exchange(&mut self, request: &str) -> Result<Answer> {
        self.stream.get_mut().write_all(request.as_bytes()).context("sending")?;
        self.stream.get_mut().flush().context("sending")?;
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => return Err(Ended.into()),
            // So rustls calls the end of a connection without the TLS word for it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && line.is_empty() => {
                return Err(Ended.into());
            }
            got => got.context("waiting for the answer")?,
        };
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status line")?;
        let mut answer = Answer { status, ..Answer::default() };
        let mut length = None;
        loop {
            line.clear();
            if self.stream.read_line(&mut line).context("reading the head")? == 0 {
                bail!("closed inside the head");
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse::<usize>().ok(),
                "connection" => answer.close = value.eq_ignore_ascii_case("close"),
                "x-server" => value.clone_into(&mut answer.server),
                "x-application" => value.clone_into(&mut answer.application),
                "set-cookie" => {
                    let pair = value.split(';').next().and_then(|pair| pair.split_once('='));
                    answer.cookies.extend(pair.map(|(n, v)| (n.to_owned(), v.to_owned())));
                }
                _ => {}
            }
        }
        let mut body = vec![0; length.context("an answer without a length")?];
        self.stream.read_exact(&mut body).context("reading the body")?;
        answer.body = String::from_utf8_lossy(&body).into_owned();
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    /// A kept connection, and the server's end of it.
    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from(SITE).unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        let stream = BufReader::new(StreamOwned::new(session, stream));
        (Connection { stream, address, begun: 7, server: String::new() }, server)
    }

    fn becomes(connection: &Connection, wanted: impl Fn(&Kept) -> bool) -> bool {
        (0..100).any(|_| {
            thread::sleep(Duration::from_millis(10));
            wanted(&connection.kept())
        })
    }

    #[test]
    fn an_orderly_end_is_told_from_a_lost_connection() {
        let (connection, server) = pair();
        assert!(matches!(connection.kept(), Kept::Open));
        drop(server);
        assert!(becomes(&connection, |kept| matches!(kept, Kept::Ended)));
        let (connection, server) = pair();
        // Closing then sends a RST.
        setsockopt(&server, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        drop(server);
        assert!(becomes(&connection, |kept| matches!(kept, Kept::Lost)));
    }

    #[test]
    fn a_request_tells_when_the_first_lost_connection_was_begun() {
        let mut trouble = Trouble::default();
        trouble.lost(7);
        trouble.lost(9);
        assert_eq!((trouble.retried, trouble.given_up, trouble.reopened), (2, 7, 0));
    }
}

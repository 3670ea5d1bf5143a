//! Browser-like sessions, from the client: log in, look, write, read back; keep-alive and new connections.
//!
//! Each request is a line of JSON in a file as soon as it is over, so that whoever breaks something can look on.

use std::{
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
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// The web server, as its answer says.
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
        for number in 0..options.browsers {
            let (config, out) = (Arc::clone(&config), &out);
            scope.spawn(move || {
                let mut browser =
                    Browser { number, config, out, connection: None, cookies: Vec::new(), seen: 0 };
                while Instant::now() < end && !options.stop.as_ref().is_some_and(|file| file.exists()) {
                    if options.simple {
                        browser.connection = None;
                        browser.request("look", "GET", "/whoami", "");
                        thread::sleep(Duration::from_millis(options.think_ms));
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
}

struct Connection {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
    address: SocketAddr,
    /// Milliseconds since 1970.
    begun: u64,
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
    /// What one does on a site: a page with its script, log in, write, read, look again.
    fn visit(&mut self, think_ms: u64) {
        let think = || thread::sleep(Duration::from_millis(think_ms));
        self.connection = None;
        self.cookies.clear();
        self.request("page", "GET", "/", "");
        self.request("script", "GET", "/site.js", "");
        think();
        let logged_in = self.request("login", "POST", "/app/login", "user=alice&password=secret").is_some();
        for round in 0..4 {
            think();
            if !logged_in {
                return;
            }
            // A browser gives up its connections now and then.
            if round == 2 {
                self.connection = None;
            }
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

    /// One request; the answer, if it is a good one.
    fn request(&mut self, what: &str, method: &str, path: &str, body: &str) -> Option<Answer> {
        let (began, clock) = (now_ms(), Instant::now());
        let reused = self.connection.is_some();
        let mut outcome = self.attempt(method, path, body);
        // As browsers do: a connection that was kept may have ended meanwhile, and asking again does no harm.
        if outcome.is_err() && reused && method == "GET" {
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
                self.tell(what, began, millis, &Answer::default(), &format!("{error:#}"), None);
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
        let reused = match &mut self.connection {
            // A connection that the server has closed meanwhile is no connection.
            Some(connection) if connection.ended() => false,
            Some(_) => true,
            None => false,
        };
        if !reused {
            self.connection = None;
            self.connection = Some(Connection::open(&self.config, self.number)?);
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
    fn open(config: &Arc<ClientConfig>, number: u32) -> Result<Self> {
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
                    });
                }
                Err(error) => {
                    refused = Some(anyhow::Error::new(error).context(format!("connecting to {address}")));
                }
            }
        }
        Err(refused.context("no address")?)
    }

    /// Whether the server has ended it: nothing is expected now, so whatever is there to be read is an end.
    fn ended(&self) -> bool {
        let stream = &self.stream.get_ref().sock;
        let mut byte = [0];
        if stream.set_nonblocking(true).is_err() {
            return true;
        }
        let peeked = stream.peek(&mut byte);
        let _ = stream.set_nonblocking(false);
        // Session tickets come without being asked for; an alert is as short.
        match peeked {
            Ok(0) => true,
            Ok(_) => byte[0] == 0x15 || byte[0] == 0x17 && self.closing(),
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
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
        if self.stream.read_line(&mut line).context("waiting for the answer")? == 0 {
            bail!("closed without an answer");
        }
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

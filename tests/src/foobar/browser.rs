//! A real browser, a headless Chromium, uses the site as a person does. From the client.

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use clap::Args;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

#[derive(Args)]
pub struct Options {
    /// The picture of the page at the end
    #[arg(long)]
    screenshot: PathBuf,
}

const PORT: u16 = 9222;
const PATIENCE: Duration = Duration::from_secs(90);

/// The browser's process; dropping it ends it.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Page {
    socket: WebSocket<TcpStream>,
    next: u64,
}

/// Opens the page by name, logs in, writes, and reads what was written; prints what was seen as JSON.
pub fn run(options: &Options) -> Result<()> {
    let home = PathBuf::from("/tmp/chromium");
    let store = home.join(".pki/nssdb");
    fs::create_dir_all(&store)?;
    // The browser trusts the scenario's authority, as one trusts a company's own; every check stays in force.
    let database = format!("sql:{}", store.display());
    for words in [
        &["-N", "--empty-password", "-d", &database][..],
        &["-A", "-n", "foobar", "-t", "C,,", "-i", "/etc/foobar/ca.pem", "-d", &database],
    ] {
        let output = Command::new("certutil").args(words).output().context("certutil (libnss3-tools)")?;
        if !output.status.success() {
            bail!("certutil {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
    }
    let log = fs::File::create(home.join("log"))?;
    let child = Command::new("chromium-headless-shell")
        .args([
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-dev-shm-usage",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--window-size=900,600", &format!("--remote-debugging-port={PORT}")])
        .arg(format!("--user-data-dir={}", home.join("profile").display()))
        .arg("about:blank")
        .env("HOME", &home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("chromium-headless-shell")?;
    let browser = Browser(child);
    let mut page = Page::open()?;
    for domain in ["Page", "Runtime", "Network", "Security"] {
        page.call(&format!("{domain}.enable"), &json!({}))?;
    }
    let note = format!("written by a browser at {}", super::load::now_ms());
    let went = page.call("Page.navigate", &json!({"url": "https://www.foobar.com/"}))?;
    if let Some(error) = went["errorText"].as_str() {
        bail!("https://www.foobar.com/: {error}");
    }
    page.wait("the page", "document.readyState == 'complete' && document.title == 'www.foobar.com'")?;
    let secure = page.eval("isSecureContext && location.protocol == 'https:'")?;
    page.eval(
        "document.getElementById('user').value = 'alice'; document.getElementById('password').value = 'secret'; \
         document.getElementById('login').requestSubmit()",
    )?;
    page.wait("the login", "document.getElementById('state').textContent == 'logged in as alice'")?;
    page.eval(&format!(
        "document.getElementById('body').value = '{note}'; document.getElementById('write').requestSubmit()"
    ))?;
    page.wait("the note", &format!("document.getElementById('notes').textContent.includes('{note}')"))?;
    let picture = page.call("Page.captureScreenshot", &json!({"format": "png"}))?;
    let picture = picture["data"].as_str().context("no picture")?;
    fs::write(&options.screenshot, base64::engine::general_purpose::STANDARD.decode(picture)?)?;
    let who = page.eval("document.getElementById('who').textContent")?;
    drop(browser);
    println!("{}", json!({"secure": secure, "note": note, "who": who}));
    Ok(())
}

impl Page {
    fn open() -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        let url = loop {
            let answer = Command::new("curl")
                .args(["-sS", &format!("http://127.0.0.1:{PORT}/json/list")])
                .output()?
                .stdout;
            let pages: Value = serde_json::from_slice(&answer).unwrap_or_default();
            if let Some(url) = pages[0]["webSocketDebuggerUrl"].as_str() {
                break url.to_owned();
            }
            if Instant::now() > end {
                bail!("Chromium does not answer; its log:\n{}", fs::read_to_string("/tmp/chromium/log")?);
            }
            thread::sleep(Duration::from_millis(200));
        };
        let stream = TcpStream::connect(("127.0.0.1", PORT))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (socket, _) =
            tungstenite::client(url, stream).map_err(|e| anyhow::anyhow!("Chromium's WebSocket: {e}"))?;
        Ok(Self { socket, next: 0 })
    }

    fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        self.socket.send(Message::text(json!({"id": id, "method": method, "params": params}).to_string()))?;
        loop {
            let Message::Text(text) = self.socket.read().with_context(|| method.to_owned())? else {
                continue;
            };
            let mut message: Value = serde_json::from_str(&text)?;
            if message["id"] == id {
                if !message["error"].is_null() {
                    bail!("{method}: {message}");
                }
                return Ok(message["result"].take());
            }
        }
    }

    fn eval(&mut self, expression: &str) -> Result<Value> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", &params)?;
        if !answer["exceptionDetails"].is_null() {
            bail!("{expression}: {answer}");
        }
        Ok(answer["result"]["value"].take())
    }

    fn wait(&mut self, what: &str, expression: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.eval(expression)? != true {
            if Instant::now() > end {
                bail!("{what} does not come; the page: {}", self.eval("document.body.innerText")?);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

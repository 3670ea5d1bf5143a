//! A headless Chromium in a namespace, asked over its DevTools protocol (JSON over a WebSocket).

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use lb_tests::lab::{Lab, Netns, Process, Result, wait_until};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

const PORT: u16 = 9222;
const PATIENCE: Duration = Duration::from_secs(60);

/// One page. Dropping it ends the browser.
pub struct Page {
    socket: WebSocket<TcpStream>,
    next: u64,
    /// Exceptions of scripts, and what the browser calls an error.
    pub errors: Vec<String>,
    /// Whatever was asked for over the network.
    pub requests: Vec<String>,
    _process: Process,
}

impl Page {
    /// Starts with an empty page, an empty profile and no network but the namespace's.
    pub fn start(lab: &Lab, ns: &Netns) -> Result<Self> {
        let profile = lab.dir().join("chromium");
        fs::create_dir_all(&profile).expect("a directory");
        let mut command = ns.command("chromium-headless-shell");
        command
            .args([
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-dev-shm-usage",
            ])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--remote-debugging-port={PORT}"))
            .arg(format!("--user-data-dir={}", profile.display()))
            .env("HOME", &profile)
            .arg("about:blank");
        let process = lab.spawn("chromium", command)?;
        process.wait_for_log("DevTools listening on", PATIENCE)?;
        let address = SocketAddr::from(([127, 0, 0, 1], PORT));
        let mut url = None;
        wait_until("Chromium's empty page", PATIENCE, || {
            let Ok(answer) = ns.exec("curl", &["-sS", &format!("http://{address}/json/list")]) else {
                return false;
            };
            let pages: Value = serde_json::from_str(&answer).unwrap_or_default();
            url = pages[0]["webSocketDebuggerUrl"].as_str().map(str::to_owned);
            url.is_some()
        })?;
        let stream = ns.run(|| TcpStream::connect(address)).expect("Chromium takes connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let (socket, _) = tungstenite::client(url.expect("an address"), stream).expect("a WebSocket");
        let (errors, requests) = (Vec::new(), Vec::new());
        let mut page = Self { socket, next: 0, errors, requests, _process: process };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.call(&format!("{domain}.enable"), &json!({}));
        }
        Ok(page)
    }

    /// Calls a method of the protocol.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        self.next += 1;
        let id = self.next;
        let text = json!({"id": id, "method": method, "params": params}).to_string();
        self.socket.send(Message::text(text)).expect("Chromium listens");
        loop {
            let message = self.socket.read().unwrap_or_else(|e| panic!("{method}: {e}"));
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).expect("JSON");
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.errors.push(params["exceptionDetails"].to_string()),
            Some("Runtime.consoleAPICalled") if params["type"] == "error" => {
                self.errors.push(params["args"].to_string());
            }
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.errors.push(params["entry"].to_string());
            }
            Some("Network.requestWillBeSent") => {
                self.requests.push(params["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
            _ => {}
        }
    }

    /// What an expression of JavaScript gives.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", &params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn wait(&mut self, what: &str, expression: &str) {
        if let Err(error) = wait_until(what, PATIENCE, || self.eval(expression) == true) {
            panic!("{error}; the page:\n{}\n{:?}", self.eval("document.body.innerText"), self.errors);
        }
    }

    /// A window of this size; `phone`: with two pixels to each, and fingers.
    pub fn resize(&mut self, width: u32, height: u32, phone: bool) {
        let scale = if phone { 2 } else { 1 };
        let size = json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    pub fn dark(&mut self, dark: bool) {
        let scheme = json!({"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }});
        self.call("Emulation.setEmulatedMedia", &json!({"features": [scheme]}));
    }

    /// Writes the picture to `$LBD_SCREENSHOTS`, where that is set.
    pub fn screenshot(&mut self, name: &str) {
        let Some(dir) = std::env::var_os("LBD_SCREENSHOTS") else { return };
        let answer =
            self.call("Page.captureScreenshot", &json!({"format": "png", "captureBeyondViewport": true}));
        let text = answer["data"].as_str().expect("a picture");
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).expect("base64");
        fs::write(std::path::Path::new(&dir).join(name), bytes).expect("the picture is written");
    }
}

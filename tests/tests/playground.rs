//! The playground as its users meet it: the program is started, used, and ended in every way; nothing of it stays.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use lb_tests::{
    http,
    lab::wait_until,
    playground::inside,
    require,
    skip::{self, Need},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Far more than a debug build needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
const PLAYGROUND: &str = env!("CARGO_BIN_EXE_playground");
const VIPS: [&str; 2] = ["192.0.2.10", "2001:db8::10"];

/// Where `lbd` and `lbctl` of this build are; `None` when they have not been built, which is said aloud.
fn programs() -> Option<PathBuf> {
    let dir = match std::env::var_os("LBD_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(PLAYGROUND).parent()?.to_owned(),
    };
    let built = dir.join("lbd").is_file() && dir.join("lbctl").is_file();
    if !built {
        skip::announce(&format!(
            "lbd and lbctl are not in {}; `cargo xtask test` builds them",
            dir.display()
        ));
    }
    built.then_some(dir)
}

macro_rules! programs {
    () => {{
        require!(Need::Root, Need::Tool("ip"));
        match programs() {
            Some(dir) => dir,
            None => return,
        }
    }};
}

/// A playground of this test alone; ended when the test ends.
struct Playground {
    name: String,
    child: Child,
    dir: tempfile::TempDir,
}

/// What a playground has made, as it looks from outside.
struct Traces {
    name: String,
    lab_dir: PathBuf,
    /// (pid, field 22 of /proc/PID/stat)
    processes: Vec<(u32, String)>,
}

fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("pg-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

impl Playground {
    fn start(programs: &Path, arguments: &[&str]) -> Self {
        let name = unique_name();
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name| File::create(dir.path().join(name)).expect("a file");
        let child = Command::new(PLAYGROUND)
            .args(["--name", &name])
            .args(arguments)
            .env("LBD_BIN_DIR", programs)
            .env("TMPDIR", dir.path())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .expect("the playground starts");
        Self { name, child, dir }
    }

    fn up(programs: &Path, arguments: &[&str]) -> Self {
        let playground = Self::start(programs, arguments);
        let ready = || playground.text("out").contains("Ctrl-C ends the playground");
        if wait_until("the playground to be up", PATIENCE, ready).is_err() {
            panic!("not up after {PATIENCE:?}:\n{}", playground.text("err"));
        }
        playground
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.dir.path().join(file)).unwrap_or_default()
    }

    /// The port of the host's loopback that leads to the site.
    fn site(&self) -> SocketAddr {
        let out = self.text("out");
        let (_, rest) = out.split_once("curl http://").expect("the site's address is printed");
        rest.split('/').next().and_then(|text| text.parse().ok()).expect("an address")
    }

    /// The dashboards of both balancers.
    fn dashboards(&self) -> Vec<SocketAddr> {
        let out = self.text("out");
        let (_, rest) = out.split_once("for a browser here\n").expect("the dashboards are printed");
        let line = rest.lines().next().expect("a line");
        line.split_whitespace()
            .map(|url| url.trim_start_matches("http://").trim_end_matches('/').parse().expect("an address"))
            .collect()
    }

    /// A command about this playground.
    fn command(&self, words: &[&str]) -> Output {
        let (verb, rest) = words.split_first().expect("a verb");
        let arguments = [*verb, "--name", &self.name];
        Command::new(PLAYGROUND).args(arguments).args(rest).output().expect("the playground's command runs")
    }

    #[track_caller]
    fn tell(&self, words: &[&str]) -> String {
        let output = self.command(words);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{words:?}: {}\n{}", text(&output.stderr), self.text("err"));
        text(&output.stdout)
    }

    /// Waits until `status` has a line that begins with the node's name and contains the text.
    #[track_caller]
    fn wait_for_status(&self, node: &str, text: &str) {
        let mut status = String::new();
        let reached = wait_until(text, PATIENCE, || {
            status = self.tell(&["status"]);
            status.lines().any(|line| line.starts_with(node) && line.contains(text))
        });
        assert!(reached.is_ok(), "{node} never `{text}`; in the end:\n{status}\n{}", self.text("err"));
    }

    fn traces(&self) -> Traces {
        let record = fs::read_to_string(record(&self.name)).expect("the lab's record");
        let values = |key: &str| {
            let lines = record.lines().filter_map(|line| line.strip_prefix(key)).map(str::to_owned);
            lines.collect::<Vec<_>>()
        };
        let processes = values("process ").into_iter().filter_map(|line| {
            let (pid, start) = line.split_once(' ')?;
            Some((pid.parse().ok()?, start.to_owned()))
        });
        Traces {
            name: self.name.clone(),
            lab_dir: values("dir ").first().expect("the lab's directory").into(),
            processes: processes.collect(),
        }
    }

    /// When it has ended before its traces could be looked at.
    #[track_caller]
    fn assert_no_files(&self) {
        let lab_dirs = entries(&self.dir.path().to_string_lossy(), "lbd-lab-");
        let lab_dir = lab_dirs.into_iter().next().unwrap_or_else(|| "/nonexistent".into());
        Traces { name: self.name.clone(), lab_dir, processes: Vec::new() }.assert_none();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it is still there");
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let ended = wait_until("the playground to end", PATIENCE, || {
            status = self.child.try_wait().expect("it is a child of this process");
            status.is_some()
        });
        assert!(ended.is_ok(), "it does not end:\n{}", self.text("err"));
        status.expect("it has ended")
    }

    fn end_by(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("--- {}, what it said:\n{}", self.name, self.text("err"));
        }
    }
}

fn record(name: &str) -> PathBuf {
    Path::new("/run/lbd-lab").join(name)
}

/// Entries of a directory whose names begin so.
fn entries(dir: &str, prefix: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect()
}

impl Traces {
    /// Everything of it that is there now.
    fn left(&self) -> Vec<String> {
        let name = &self.name;
        let mut left: Vec<PathBuf> = [record(name), self.lab_dir.clone(), format!("/run/lbd-{name}").into()]
            .into_iter()
            .filter(|path| path.exists())
            .collect();
        left.extend(entries("/run/netns", &format!("{name}-")));
        left.extend(entries("/sys/fs/bpf", &format!("lbd-{name}-")));
        let mut left: Vec<String> = left.iter().map(|path| path.display().to_string()).collect();
        for (pid, start) in &self.processes {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie is init's to collect.
            let gone = stat.contains(") Z ") || stat.contains(") X ");
            if !gone && stat.split(' ').any(|field| field == start) {
                left.push(format!("process {stat}"));
            }
        }
        left
    }

    #[track_caller]
    fn assert_none(&self) {
        assert_eq!(self.left(), Vec::<String>::new(), "something of {} stayed", self.name);
    }
}

/// One request on an open connection: the backend that answered, and the body.
fn request(stream: &mut TcpStream, path: &str) -> Result<(String, Vec<u8>), String> {
    let fail = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: playground\r\n\r\n").map_err(fail("sending"))?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        if let Some((head, length)) = http::parse_response(&bytes).map_err(|error| error.to_string())? {
            let body = usize::try_from(head.headers.content_length().unwrap_or(0)).unwrap_or(0);
            if bytes.len() >= length + body {
                let backend = head.headers.get("x-backend").unwrap_or_default().to_owned();
                return Ok((backend, bytes[length..length + body].to_vec()));
            }
        }
        match stream.read(&mut piece).map_err(fail("receiving"))? {
            0 => return Err(format!("closed after {} bytes", bytes.len())),
            length => bytes.extend_from_slice(&piece[..length]),
        }
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Connects as the playground's client.
fn connect_as_client(playground: &Playground, vip: &str) -> TcpStream {
    let vip: IpAddr = vip.parse().expect("an address");
    inside(&playground.name, "client", || connect((vip, 80).into())).expect("the client's namespace")
}

fn checks_itself(forward: &str) {
    let programs = programs!();
    let mut playground = Playground::start(&programs, &["--once", "--forward", forward]);
    let status = playground.wait();
    let (out, err) = (playground.text("out"), playground.text("err"));
    assert!(status.success(), "{status}\n{out}\n{err}");
    for vip in VIPS {
        assert!(out.contains(&format!("{vip}: 100 answered, 0 failed")), "{out}");
    }
    for web in ["web1", "web2", "web3"] {
        assert_eq!(out.matches(&format!("{web}: ")).count(), 2, "each answers over both families:\n{out}");
    }
    playground.assert_no_files();
}

#[test]
fn the_self_check_passes_with_dsr() {
    checks_itself("dsr");
}

#[test]
fn the_self_check_passes_with_ipip() {
    checks_itself("ipip");
}

#[test]
fn the_self_check_passes_with_gue() {
    checks_itself("gue");
}

#[test]
fn it_answers_within_five_seconds_and_ctrl_c_removes_every_trace() {
    let programs = programs!();
    let mut playground = Playground::up(&programs, &[]);
    let begun = Instant::now();
    let (backend, body) = request(&mut connect(playground.site()), "/").expect("an answer");
    assert!(begun.elapsed() < Duration::from_secs(5), "answered after {:?}", begun.elapsed());
    assert_eq!(body, format!("{backend}\n").as_bytes());
    assert!(backend.starts_with("web"), "{backend}");

    // Each request of a browser is a connection of its own: the relay ends them, and all web servers get some.
    let mut seen: Vec<String> = (0..60)
        .map(|_| {
            let mut stream = connect(playground.site());
            let (backend, _) = request(&mut stream, "/").expect("an answer");
            assert_eq!(stream.read(&mut [0; 16]).expect("the end of the connection"), 0);
            backend
        })
        .collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ["web1", "web2", "web3"]);

    for vip in VIPS {
        request(&mut connect_as_client(&playground, vip), "/").expect("an answer");
    }
    for (index, dashboard) in playground.dashboards().into_iter().enumerate() {
        let (_, body) = request(&mut connect(dashboard), "/metrics").expect("metrics");
        let text = String::from_utf8(body).expect("text");
        assert!(text.contains("lbd_backend_up"), "dashboard {index}:\n{text}");
    }
    let socket = format!("/run/lbd-{}/lb1.sock", playground.name);
    let lbctl = Command::new(programs.join("lbctl"))
        .args(["--socket", &socket, "service", "show", "www", "-o", "json"])
        .output()
        .expect("lbctl runs");
    assert!(lbctl.status.success(), "{}", String::from_utf8_lossy(&lbctl.stderr));
    let service: serde_json::Value = serde_json::from_slice(&lbctl.stdout).expect("JSON");
    assert!(service["packets"].as_u64().is_some_and(|packets| packets > 60), "{service}");

    let traces = playground.traces();
    assert!(traces.processes.len() >= 2, "two daemons at least");
    assert!(traces.left().len() > 10, "while it runs there is much to see: {:?}", traces.left());
    assert!(playground.end_by(Signal::SIGINT).success());
    traces.assert_none();
}

#[test]
fn connections_survive_the_change_of_the_balancer() {
    let programs = programs!();
    let mut playground = Playground::up(&programs, &[]);
    let mut connections: Vec<(TcpStream, String)> = (0..20)
        .map(|i| {
            let mut stream = connect_as_client(&playground, VIPS[i % 2]);
            let (backend, _) = request(&mut stream, "/").expect("an answer");
            (stream, backend)
        })
        .collect();
    let mut check = |when: &str| {
        for (stream, backend) in &mut connections {
            let (now, _) = request(stream, "/").unwrap_or_else(|error| panic!("{when}: {error}"));
            assert_eq!(now, *backend, "{when}");
        }
    };
    check("before");
    playground.tell(&["fail", "lb1"]);
    playground.wait_for_status("lb2", "has the virtual addresses");
    check("lb1 is unplugged");
    playground.tell(&["heal", "lb1"]);
    playground.wait_for_status("lb1", "has the virtual addresses");
    check("lb1 is back");
    playground.tell(&["fail", "lb1", "--daemon"]);
    playground.wait_for_status("lb1", "its lbd does not run");
    check("the daemon of lb1 is dead");
    playground.tell(&["heal", "lb1"]);
    playground.wait_for_status("lb1", "forwards to 3 web servers, has the virtual addresses");
    check("the daemon of lb1 is back");
    let traces = playground.traces();
    assert!(playground.end_by(Signal::SIGHUP).success());
    traces.assert_none();
}

#[test]
fn a_web_server_fails_and_heals_and_commands_say_what_is_wrong() {
    let programs = programs!();
    let mut playground = Playground::up(&programs, &["--backends", "2"]);
    playground.tell(&["fail", "web2"]);
    playground.wait_for_status("web2", "down");
    for _ in 0..20 {
        let (backend, _) = request(&mut connect(playground.site()), "/").expect("an answer");
        assert_eq!(backend, "web1");
    }
    playground.tell(&["heal", "web2"]);
    playground.wait_for_status("web2", "up");
    assert_eq!(playground.tell(&["exec", "web2", "cat", "/proc/sys/net/ipv4/conf/all/arp_ignore"]), "1\n");

    let stderr = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let nowhere = playground.command(&["exec", "web9", "true"]);
    assert!(
        !nowhere.status.success() && stderr(&nowhere).contains("client, lb1, lb2"),
        "{}",
        stderr(&nowhere)
    );
    assert_eq!(playground.command(&["exec", "client", "sh", "-c", "exit 7"]).status.code(), Some(7));
    let nobody = playground.command(&["fail", "router"]);
    assert!(!nobody.status.success() && stderr(&nobody).contains("lb1, lb2"), "{}", stderr(&nobody));

    let second = Command::new(PLAYGROUND)
        .args(["--name", &playground.name])
        .env("LBD_BIN_DIR", &programs)
        .output()
        .expect("it runs");
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("up already"), "{}", stderr(&second));

    let traces = playground.traces();
    playground.tell(&["down"]);
    traces.assert_none();
    assert!(playground.wait().success());
    let gone = playground.command(&["status"]);
    assert!(!gone.status.success() && stderr(&gone).contains("no playground named"), "{}", stderr(&gone));
}

#[test]
fn nothing_stays_when_a_daemon_cannot_start() {
    let programs = programs!();
    // The daemon of lb2 is told to serve its metrics at an address that it does not have.
    let dir = tempfile::tempdir().expect("a directory");
    let lbd = programs.join("lbd");
    let script = format!(
        "#!/bin/sh\ncase \"$2\" in */lb2.toml)\n  sed s/0.0.0.0:9750/203.0.113.1:9750/ \"$2\" > \"$2.other\"\n  \
         exec {0} --config \"$2.other\";;\nesac\nexec {0} \"$@\"\n",
        lbd.display()
    );
    fs::write(dir.path().join("lbd"), script).expect("a script");
    fs::set_permissions(dir.path().join("lbd"), fs::Permissions::from_mode(0o755)).expect("executable");
    fs::copy(programs.join("lbctl"), dir.path().join("lbctl")).expect("a copy");
    let mut playground = Playground::start(dir.path(), &[]);
    let status = playground.wait();
    let err = playground.text("err");
    assert_eq!(status.code(), Some(1), "{err}");
    assert!(err.contains("lbd-lb2 ended early") && err.contains("203.0.113.1:9750"), "{err}");
    playground.assert_no_files();
}

#[test]
fn a_signal_while_it_comes_up_leaves_nothing() {
    let programs = programs!();
    for moment in [30, 150, 400, 1200] {
        let mut playground = Playground::start(&programs, &[]);
        let begun = |text: &'static str| move |p: &Playground| p.text("err").contains(text);
        // The first two at whatever is being done then, the others certainly while the daemons come up.
        if moment >= 400 {
            let p = &playground;
            wait_until("the web servers", PATIENCE, || begun("web servers")(p)).expect("the web servers run");
        }
        thread::sleep(Duration::from_millis(moment));
        playground.signal(Signal::SIGTERM);
        playground.wait();
        playground.assert_no_files();
    }
}

#[test]
fn what_a_killed_one_leaves_is_removed_by_the_next_one() {
    let programs = programs!();
    let mut killed = Playground::up(&programs, &[]);
    let traces = killed.traces();
    killed.end_by(Signal::SIGKILL);
    assert!(traces.left().len() > 10, "SIGKILL leaves much: {:?}", traces.left());
    assert!(!entries("/sys/fs/bpf", &format!("lbd-{}-", killed.name)).is_empty(), "and pins");
    let mut next = Playground::start(&programs, &["--once", "--quiet"]);
    let status = next.wait();
    assert!(status.success(), "{}", next.text("err"));
    assert_eq!(next.text("out") + &next.text("err"), "", "quiet is quiet");
    traces.assert_none();
}

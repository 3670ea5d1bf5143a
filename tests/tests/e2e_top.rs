//! `lbctl top` in a real terminal (tmux), and without one.

use std::{process::Command, time::Duration};

use lb_tests::{
    balancer::{Balancer, Service, Settings, program, text, web_servers},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal of 80 columns and 24 lines with a shell in it.
struct Terminal {
    server: String,
}

impl Terminal {
    fn open(balancer: &Balancer<'_>) -> Self {
        let terminal =
            Self { server: format!("lbd-test-{}-{}", std::process::id(), balancer.node.ns.name()) };
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "exec env PS1='$ ' HISTFILE= sh"]);
        // It would take a line.
        terminal.tmux(&["set", "-g", "status", "off"]);
        terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
        terminal
    }

    #[track_caller]
    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-u", "-f", "/dev/null", "-L", &self.server]).args(arguments).env_remove("TMUX");
        let output = command.output().expect("tmux starts");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    #[track_caller]
    fn wait(&self, what: &str) {
        let shown = wait_until(&format!("`{what}` on the screen"), PATIENCE, || self.screen().contains(what));
        shown.unwrap_or_else(|e| panic!("{e}:\n{}", self.screen()));
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// The shell is back, and the terminal is as before.
    #[track_caller]
    fn assert_given_back(&self, end: &str) {
        self.wait(end);
        assert_eq!(self.tmux(&["display", "-p", "#{alternate_on} #{cursor_flag}"]).trim(), "0 1");
        self.press(&["clear; stty -a | tr ';' ' '; echo ok-$((40 + 2))", "Enter"]);
        self.wait("ok-42");
        let settings = self.screen();
        for word in ["icanon", "echo", "isig", "opost", "icrnl"] {
            assert!(settings.split_whitespace().any(|w| w == word), "{word} is off:\n{settings}");
        }
        self.press(&["clear", "Enter"]);
    }

    /// The program that runs in the shell.
    fn child(&self) -> i32 {
        let shell = self.tmux(&["display", "-p", "#{pane_pid}"]);
        let file = format!("/proc/{0}/task/{0}/children", shell.trim());
        let children = std::fs::read_to_string(file).expect("the shell's children");
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a child")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.server, "kill-server"]).output();
    }
}

#[test]
fn top_shows_what_happens_and_gives_the_terminal_back() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("tmux"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let mut servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends).checked();
    let mut balancer = Balancer::start(&topology, Settings::of([www]))?;
    let terminal = Terminal::open(&balancer);
    let run = format!(
        "{} --socket {} top --interval 0.3; echo ended=$?",
        program("lbctl").display(),
        balancer.socket().display()
    );
    let start = || {
        terminal.press(&[&run, "Enter"]);
        terminal.wait("q quit  ? help");
    };
    start();
    terminal.wait("2/2");
    assert_eq!(terminal.tmux(&["display", "-p", "#{alternate_on} #{cursor_flag}"]).trim(), "1 0");
    servers[1].kill();
    terminal.wait("- 1/2");
    // A service without a backend, and again with both.
    servers[0].kill();
    terminal.wait("! down");
    terminal.wait("! 0/2");
    servers[0].start(&topology.lab)?;
    terminal.wait("- 1/2");
    terminal.press(&["Enter"]);
    terminal.wait("! down");
    terminal.press(&["j", "Enter"]);
    terminal.wait("enabled, down: ");
    // Larger and very small.
    terminal.tmux(&["resize-window", "-x", "132", "-y", "40"]);
    wait_until("the whole height is used", PATIENCE, || {
        terminal.screen().lines().nth(39).is_some_and(|line| line.contains("q quit"))
    })?;
    terminal.tmux(&["resize-window", "-x", "30", "-y", "6"]);
    wait_until("a small picture", PATIENCE, || {
        terminal.screen().lines().nth(5).is_some_and(|line| line.starts_with("q quit"))
    })?;
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    terminal.press(&["q"]);
    terminal.assert_given_back("ended=0");

    start();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(terminal.child()), nix::sys::signal::Signal::SIGTERM)
        .expect("a signal");
    terminal.assert_given_back("ended=0");

    // The daemon goes and comes; then Ctrl-C.
    start();
    balancer.stop()?;
    terminal.wait("! old picture: ");
    balancer.restart()?;
    wait_until("a new picture", PATIENCE, || !terminal.screen().contains("old picture"))?;
    terminal.press(&["C-c"]);
    terminal.assert_given_back("ended=0");
    Ok(())
}

#[test]
fn without_a_terminal_there_is_one_frame_or_an_error() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let topology = Topology::new(&Shape { backends: 2, ..Shape::default() })?;
    let _servers = web_servers(&topology, 0)?;
    let www = Service::www([topology.vip4()]).nodes(&topology.backends);
    let balancer = Balancer::start(&topology, Settings::of([www]))?;
    for arguments in [&["top"][..], &["-o", "json", "top"]] {
        let output = balancer.lbctl_output(arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains("top --once") && output.stdout.is_empty(), "{output:?}");
    }
    let frame = balancer.lbctl(&["top", "--once", "--interval", "0.2"]);
    assert!(frame.contains("www") && frame.contains("2/2") && !frame.contains('\x1b'), "{frame}");
    let load = lb_tests::client::Requests::to(std::net::SocketAddr::new(topology.vip4(), 80))
        .timeout(PATIENCE)
        .start(&topology.client.ns);
    let json: Value = balancer.json(&["top", "--once"]);
    load.stop();
    assert_eq!(json["services"][0]["name"], "www");
    let rate = json["rates"].as_array().expect("rates").iter().find(|row| row["backend"].is_null());
    assert!(rate.expect("of www")["packets_per_second"].as_f64().is_some_and(|rate| rate > 1.0), "{json}");
    let bad = balancer.lbctl_output(&["top", "--interval", "0"]);
    assert_eq!(bad.status.code(), Some(2));
    Ok(())
}

//! One host: its container, commands inside, its services.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{init, place::Place, wait_for};

/// A host that runs.
#[derive(Debug, Clone)]
pub struct Host {
    place: Place,
    name: String,
    pid: i32,
}

/// Where the files of the hosts come from.
pub fn examples() -> PathBuf {
    std::env::var_os("LBD_EXAMPLES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/foobar"),
        |dir| PathBuf::from(dir).join("foobar"),
    )
}

/// Runs a program to its end; a failure carries what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{stdout}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(stdout)
}

impl Host {
    /// The host of that name, if it runs.
    pub fn find(place: &Place, name: &str) -> Option<Self> {
        let pid = place.init(name)?.as_raw();
        Some(Self { place: place.clone(), name: name.to_owned(), pid })
    }

    /// Lays out the host's files: those of this machine's `/etc`, over them those of `examples/foobar/HOST`.
    pub fn lay_out(place: &Place, name: &str, bin_dir: &Path) -> Result<()> {
        let dir = place.host_dir(name);
        for own in init::OWN {
            fs::create_dir_all(dir.join(own))?;
        }
        run(Command::new("cp").args(["-a", "/etc/."]).arg(dir.join("etc")))?;
        let files = examples().join(name);
        for entry in fs::read_dir(&files).with_context(|| format!("no {}", files.display()))? {
            let entry = entry?;
            let (from, to) = (entry.path().join("."), dir.join(entry.file_name()));
            fs::create_dir_all(&to)?;
            // Links of the examples (a file that two hosts share) become files, and no link of this machine is followed.
            run(Command::new("cp").args(["-rL", "--remove-destination"]).arg(from).arg(to))?;
        }
        for program in ["lbd", "lbctl", "scenario"] {
            let link = dir.join("usr/local/bin").join(program);
            symlink(bin_dir.join(program), &link)
                .with_context(|| format!("cannot make {}", link.display()))?;
        }
        Ok(())
    }

    /// Makes the network namespace and starts the host's first process.
    pub fn start(place: &Place, name: &str) -> Result<Self> {
        let namespace = place.namespace(name);
        run(Command::new("ip").args(["netns", "add", &namespace]))?;
        let dir = place.host_dir(name);
        let _ = fs::remove_file(dir.join("run/ready"));
        let me = std::env::current_exe()?;
        let log = fs::File::create(dir.join("init.log"))?;
        let mut command = Command::new("setsid");
        command
            .args(["-f", "nsenter", &format!("--net=/run/netns/{namespace}")])
            .args(["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork"])
            .arg(me)
            .args(["foobar", "init", "--host", name, "--dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if !command.status().context("cannot start setsid")?.success() {
            bail!("{name} does not start");
        }
        let ready = dir.join("run/ready");
        wait_for(&format!("the start of {name}"), Duration::from_secs(30), || {
            if ready.exists() {
                Ok(())
            } else {
                Err(fs::read_to_string(dir.join("init.log")).unwrap_or_default())
            }
        })?;
        let host = Self::find(place, name).with_context(|| format!("{name} has ended at once"))?;
        host.exec(
            "for user in mysql knot prometheus; do
                if id $user >/dev/null 2>&1; then install -d -o $user -g $user /var/lib/$user /run/$user; fi
            done
            id mysql >/dev/null 2>&1 && install -d -o mysql -g mysql /run/mysqld
            install -d /var/log/nginx /var/lib/nginx /run/foobar /var/log/foobar
            chmod 1777 /tmp; chmod 755 /etc /opt /srv /run /var/log /var/lib
            ip link set lo up",
        )?;
        Ok(host)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace of its processes, as a link below /proc.
    pub fn pid_namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/pid", self.pid))
    }

    /// What is its own of the file system, seen from outside.
    pub fn dir(&self) -> PathBuf {
        self.place.host_dir(&self.name)
    }

    /// A command on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "-m", "-u", "-i", "-p", "-n", "--", program]);
        // What belongs to the session that runs this has no business there.
        command.env("HOME", "/root").env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs lines of shell to their end and returns what they print.
    pub fn exec(&self, script: &str) -> Result<String> {
        run(self.command("sh").args(["-ec", script])).with_context(|| self.name.clone())
    }

    /// As [`Host::exec`], for commands without need of a shell.
    pub fn call(&self, words: &[&str]) -> Result<String> {
        run(self.command(words[0]).args(&words[1..])).with_context(|| self.name.clone())
    }

    /// The services of the host: name and command line, from `/etc/foobar/services`.
    pub fn services(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string(self.dir().join("etc/foobar/services")).unwrap_or_default();
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, command)| (name.to_owned(), command.trim().to_owned()))
            .collect()
    }

    /// Starts a service, which outlives this program.
    pub fn start_service(&self, service: &str) -> Result<()> {
        let services = self.services();
        let Some((_, command)) = services.iter().find(|(name, _)| name == service) else {
            bail!("{} has no service {service}", self.name);
        };
        self.start_program(service, command)
    }

    /// Starts a program that outlives this one, by a name for its pid and log.
    pub fn start_program(&self, name: &str, command: &str) -> Result<()> {
        let script = format!(
            "exec >>/var/log/foobar/{name}.log 2>&1 </dev/null; ulimit -n $(ulimit -Hn); echo $$ >/run/foobar/{name}.pid; \
             exec {command}"
        );
        run(self.command("setsid").args(["-f", "sh", "-c", &script])).map(|_| ())
    }

    pub fn start_services(&self) -> Result<()> {
        for (service, _) in self.services() {
            self.start_service(&service)?;
        }
        Ok(())
    }

    /// Whether the first process of a service lives.
    pub fn runs(&self, service: &str) -> bool {
        self.exec(&format!("kill -0 $(cat /run/foobar/{service}.pid)")).is_ok()
    }

    /// SIGKILL to a service with all its processes.
    pub fn kill_service(&self, service: &str) -> Result<()> {
        // Each service is the leader of a session.
        self.exec(&format!(
            "pid=$(cat /run/foobar/{service}.pid); pkill -KILL -s $pid || true
            for _ in $(seq 100); do pgrep -s $pid >/dev/null || exit 0; sleep 0.05; done; exit 1"
        ))
        .with_context(|| format!("cannot end {service}"))
        .map(|_| ())
    }

    /// The log of a service.
    pub fn log(&self, service: &str) -> String {
        fs::read_to_string(self.dir().join(format!("var/log/foobar/{service}.log"))).unwrap_or_default()
    }
}

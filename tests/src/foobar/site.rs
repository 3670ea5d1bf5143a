//! The site that is up: its hosts, and what one asks of them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    host::Host,
    place::{HOSTS, Place, ROUTER, ROUTER_ADDRESSES},
};

/// The hosts that run.
#[derive(Debug)]
pub struct Site {
    place: Place,
    hosts: BTreeMap<String, Host>,
}

pub const BALANCERS: [&str; 2] = ["lb1", "lb2"];

impl Site {
    /// The site of that name, if it is up. Hosts that are gone are missing.
    pub fn find(place: &Place) -> Result<Self> {
        if !place.is_up() {
            bail!("www.foobar.com is not up: `cargo xtask scenario foobar up`");
        }
        Ok(Self::of(place))
    }

    /// The hosts that run now.
    pub fn of(place: &Place) -> Self {
        let hosts = HOSTS
            .iter()
            .map(|plan| plan.name)
            .chain([ROUTER])
            .filter_map(|name| Some((name.to_owned(), Host::find(place, name)?)))
            .collect();
        Self { place: place.clone(), hosts }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn host(&self, name: &str) -> Result<Host> {
        // A host that was gone and came back has another first process.
        match (self.hosts.get(name), Host::find(&self.place, name)) {
            (_, Some(host)) => Ok(host),
            (Some(_), None) => bail!("{name} is gone"),
            (None, None) => bail!("there is no host {name}; there are {}", self.names().join(", ")),
        }
    }

    fn names(&self) -> Vec<&str> {
        self.hosts.keys().map(String::as_str).collect()
    }

    /// What `lbctl -o json` of a balancer says.
    pub fn lbctl(&self, balancer: &str, words: &[&str]) -> Result<Value> {
        let all = [&["lbctl", "-o", "json"], words].concat();
        let text = self.host(balancer)?.call(&all)?;
        serde_json::from_str(&text)
            .with_context(|| format!("lbctl {} of {balancer} says {text}", words.join(" ")))
    }

    /// A command for people, on both balancers.
    pub fn lbctl_both(&self, words: &[&str]) -> Result<()> {
        for balancer in BALANCERS {
            self.host(balancer)?.call(&[&["lbctl"], words].concat())?;
        }
        Ok(())
    }

    /// Backends of a service as a balancer sees them: name and health.
    pub fn health(&self, balancer: &str, service: &str) -> Result<BTreeMap<String, String>> {
        let shown = self.lbctl(balancer, &["service", "show", service])?;
        let backends = shown["backends"].as_array().context("no backends")?;
        Ok(backends.iter().map(|b| (text(&b["name"]), text(&b["health"]))).collect())
    }

    /// The backends of a service that take new connections.
    pub fn takers(&self, balancer: &str, service: &str) -> Result<Vec<String>> {
        let shown = self.lbctl(balancer, &["service", "show", service])?;
        let backends = shown["backends"].as_array().context("no backends")?;
        Ok(backends.iter().filter(|b| b["slots"].as_u64() > Some(0)).map(|b| text(&b["name"])).collect())
    }

    /// Packets of a service that a balancer has forwarded to each backend since its maps were made.
    pub fn packets(&self, balancer: &str, service: &str) -> Result<BTreeMap<String, u64>> {
        let shown = self.lbctl(balancer, &["service", "show", service])?;
        let backends = shown["backends"].as_array().context("no backends")?;
        backends
            .iter()
            .map(|b| Ok((text(&b["name"]), b["packets"].as_u64().context("a backend without a count")?)))
            .collect()
    }

    /// The instances of VRRP of which a balancer is master.
    pub fn masters(&self, balancer: &str) -> Result<Vec<String>> {
        let pair = self.lbctl(balancer, &["pair"])?;
        let instances = pair["instances"].as_array().or_else(|| pair.as_array()).context("no instances")?;
        Ok(instances.iter().filter(|i| i["state"] == "master").map(|i| text(&i["name"])).collect())
    }

    /// What the client gets of a URL by curl, as curl's `--write-out` has it (`%{http_code}` and so on), with the CA.
    pub fn curl(&self, words: &[&str]) -> Result<String> {
        self.host("client")?
            .call(&[&["curl", "-sS", "--cacert", "/etc/foobar/ca.pem", "--max-time", "20"], words].concat())
    }

    /// Rows of a query on a database server.
    pub fn sql(&self, host: &str, query: &str) -> Result<String> {
        Ok(self.host(host)?.call(&["mariadb", "-N", "-B", "-e", query])?.trim_end().to_owned())
    }

    /// A program of this project on the client, beside what goes on.
    pub fn on_client(&self, words: &[&str]) -> Result<Child> {
        self.on("client", words)
    }

    /// The same on another host.
    pub fn on(&self, host: &str, words: &[&str]) -> Result<Child> {
        let all = [&["scenario", "foobar"], words].concat();
        let mut command = self.host(host)?.command("sh");
        command.args(["-c", "ulimit -n $(ulimit -Hn); exec \"$@\"", "sh"]).args(all);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start on {host}"))
    }

    /// What is asked of Prometheus.
    pub fn prometheus(&self, path: &str) -> Result<Value> {
        let answer = self.host("mon")?.call(&[
            "curl",
            "-sS",
            "--max-time",
            "10",
            &format!("http://127.0.0.1:9090{path}"),
        ])?;
        let mut value: Value =
            serde_json::from_str(&answer).with_context(|| format!("Prometheus says {answer}"))?;
        Ok(value["data"].take())
    }

    pub fn welcome(&self) -> String {
        let name = self.place.name();
        let option = if name == "foobar" { String::new() } else { format!(" --name {name}") };
        let me = format!("cargo xtask scenario foobar{option}");
        format!(
            "www.foobar.com is up.\n\n\
             {me} exec client curl --cacert /etc/foobar/ca.pem https://www.foobar.com/whoami\n\
             {me} exec lb1 lbctl service list       # also: pair, top --once, service show www\n\
             {me} exec db1 mariadb foobar\n\
             {me} status\n\
             {me} test                              # proves what the site promises\n\
             {me} chaos                             # breaks everything once, under load\n\
             {me} down\n\n\
             The hosts' files: {}; where they come from: examples/foobar\n",
            self.place.dir().display()
        )
    }

    /// Who runs, who serves, who is master.
    pub fn status(&self) -> String {
        let mut out = String::new();
        let hosts = HOSTS.iter().map(|plan| (plan.name, plan.addresses));
        for (name, addresses) in hosts.chain([(ROUTER, &ROUTER_ADDRESSES[..])]) {
            let _ = write!(out, "{name:8} {:40}", addresses.join(" "));
            match self.host(name) {
                Err(_) => out.push_str(" gone\n"),
                Ok(host) => {
                    for (service, _) in host.services() {
                        let _ = write!(out, " {service}{}", if host.runs(&service) { "" } else { " (down)" });
                    }
                    out.push('\n');
                }
            }
        }
        for balancer in BALANCERS {
            for words in [&["lbctl", "pair"][..], &["lbctl", "service", "list"]] {
                let said = self.host(balancer).and_then(|host| host.call(words));
                let _ = write!(
                    out,
                    "\n{balancer}: {}\n{}",
                    words.join(" "),
                    said.unwrap_or_else(|e| format!("{e:#}\n"))
                );
            }
        }
        out
    }
}

/// A JSON string without its quotes.
pub fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

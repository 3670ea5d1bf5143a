//! A fleet whose etcd (Debian's) wants certificates, users and passwords.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use lb_tests::{
    authority::Authority,
    balancer::{Balancer, Settings, text, web_servers},
    client::Requests,
    fleet::{Etcd, PREFIX, document, view, write},
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::fleet::PutAnswer;

const PATIENCE: Duration = Duration::from_secs(40);
/// After so many idle seconds etcd forgets a login.
const TOKEN: u64 = 2;

/// `[fleet]` of a node.
fn section(endpoint: &str, lines: &[String]) -> String {
    format!(
        "\n[fleet]\nendpoints = [\"{endpoint}\"]\nprefix = \"{PREFIX}\"\nlease = \"3s\"\n{}\n",
        lines.join("\n")
    )
}

fn connected(balancer: &Balancer<'_>) -> Result<()> {
    wait_until("etcd to answer", PATIENCE, || view(balancer).endpoint.is_some())
        .inspect_err(|_| eprintln!("{:?}", view(balancer).error))
}

#[test]
fn etcd_may_want_certificates_and_passwords() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("etcd"), Need::Tool("etcdctl"));
    let topology = Topology::new(&Shape { backends: 3, ..Shape::default() })?;
    let _web = web_servers(&topology, 0)?;
    let dir = topology.lab.dir().to_owned();
    let [servers, clients, strangers] = ["servers", "clients", "strangers"].map(|n| Authority::new(&dir, n));
    servers.sign("etcd", "etcd", &[&topology.router.v4.to_string()]);
    servers.sign("elsewhere", "elsewhere", &["192.0.2.99"]);
    clients.sign("node", "node", &[]);
    strangers.sign("forged", "forged", &[]);
    let file = |name: &str| dir.join(name).display().to_string();
    let arguments = |server: &str| -> Vec<String> {
        [
            "--client-cert-auth",
            "--bcrypt-cost",
            "4",
            "--auth-token-ttl",
            &TOKEN.to_string(),
            "--trusted-ca-file",
            &file("clients.crt"),
        ]
        .into_iter()
        .chain([
            "--cert-file",
            &file(&format!("{server}.crt")),
            "--key-file",
            &file(&format!("{server}.key")),
        ])
        .map(str::to_owned)
        .collect()
    };
    let shows = ["--cacert", &file("servers.crt"), "--cert", &file("node.crt"), "--key", &file("node.key")];
    let shows: Vec<String> = shows.map(str::to_owned).into();
    let mut etcd = Etcd::start_with(&topology, "https", arguments("etcd"), shows)?;
    for command in [
        "role add root",
        "role add nodes",
        "role add readers",
        &format!("role grant-permission nodes --prefix=true readwrite {PREFIX}/"),
        &format!("role grant-permission readers --prefix=true read {PREFIX}/"),
        "user add root:master",
        "user add lbd:secret",
        "user add guest:guest",
        "user grant-role root root",
        "user grant-role lbd nodes",
        "user grant-role guest readers",
        "auth enable",
    ] {
        etcd.ctl(&command.split(' ').collect::<Vec<_>>());
    }
    etcd.login.extend(["--user".to_owned(), "root:master".to_owned()]);

    // As it shall be.
    for (name, password) in
        [("lbd.password", "secret\n"), ("guest.password", "guest\n"), ("wrong.password", "guess\n")]
    {
        write(&topology, name, password);
    }
    let lines = |ca: &str, shows: Option<&str>, login: Option<(&str, &str)>| -> Vec<String> {
        let mut lines = vec![format!("ca_file = \"{}\"", file(ca))];
        if let Some(name) = shows {
            lines.push(format!("cert_file = \"{}\"", file(&format!("{name}.crt"))));
            lines.push(format!("key_file = \"{}\"", file(&format!("{name}.key"))));
        }
        if let Some((user, password)) = login {
            lines.push(format!("user = \"{user}\"\npassword_file = \"{}\"", file(password)));
        }
        lines
    };
    let right = section(&etcd.url(), &lines("servers.crt", Some("node"), Some(("lbd", "lbd.password"))));
    let mut balancer = Balancer::start(&topology, Settings { rest: right.clone(), ..Settings::default() })?;
    connected(&balancer)?;
    let first = write(&topology, "fleet.toml", &document(&topology, &[0, 1], ""));
    let said: PutAnswer = balancer.json(&["fleet", "put", &first]);
    let taken = |balancer: &Balancer<'_>, generation| {
        wait_until("the generation", PATIENCE, || view(balancer).generation == Some(generation))
    };
    taken(&balancer, said.generation)?;
    wait_until("the word", PATIENCE, || view(&balancer).authority.mine)?;

    // The login has been forgotten by then, and what is wanted is done all the same.
    sleep(Duration::from_secs(TOKEN * 3));
    let second = write(&topology, "second.toml", &document(&topology, &[0, 1, 2], ""));
    let said: PutAnswer = balancer.json(&["fleet", "put", &second]);
    taken(&balancer, said.generation)?;
    assert!(view(&balancer).authority.mine && view(&balancer).nodes.len() == 1);
    balancer.wait_for_backend("next hops", "www", "web3", PATIENCE, |b| b.reachable && b.slots > 0)?;
    let target = SocketAddr::new(topology.vip4(), 80);
    let load = Requests::to(target).pause(Duration::from_millis(20)).start(&topology.client.ns);

    // What is wrong is said, in the log too, and forwarding goes on with what the node has.
    let refused = |balancer: &Balancer<'_>, why: &[&str]| -> Result<()> {
        let mut error = None;
        wait_until(&format!("an error with {why:?}"), PATIENCE, || {
            let view = view(balancer);
            error.clone_from(&view.error);
            view.endpoint.is_none() && why.iter().all(|w| view.error.as_ref().is_some_and(|e| e.contains(w)))
        })
        .inspect_err(|_| eprintln!("{error:?}"))?;
        eprintln!("{}", error.unwrap_or_default());
        let log = balancer.process().log();
        let warned = |line: &str| line.contains("WARN") && why.iter().all(|why| line.contains(why));
        assert!(log.lines().any(warned), "no warning with {why:?}");
        assert_eq!(view(balancer).generation, Some(said.generation));
        assert_eq!(balancer.service("www").backends.len(), 3);
        Ok(())
    };
    let lbd = Some(("lbd", "lbd.password"));
    for (endpoint, lines, why) in [
        (etcd.url(), lines("strangers.crt", Some("node"), lbd), &["UnknownIssuer", "ca_file"][..]),
        (etcd.url(), lines("servers.crt", None, lbd), &["certificate", "cert_file"]),
        (etcd.url(), lines("servers.crt", Some("forged"), lbd), &["certificate", "cert_file"]),
        (
            etcd.url(),
            lines("servers.crt", Some("node"), Some(("lbd", "wrong.password"))),
            &["authentication failed", "password_file"],
        ),
        (
            etcd.url(),
            lines("servers.crt", Some("node"), Some(("guest", "guest.password"))),
            &["permission denied", "'guest'", PREFIX],
        ),
        (etcd.url(), lines("servers.crt", Some("node"), None), &["user"]),
        (etcd.url().replace("https", "http"), vec![], &["https://"]),
    ] {
        balancer.configure(|settings| settings.rest = section(&endpoint, &lines))?;
        balancer.reload();
        refused(&balancer, why)?;
    }

    // A start does not need etcd either; and what is mended in a file is seen without a word to the daemon.
    let wrong = lines("servers.crt", Some("node"), Some(("lbd", "wrong.password")));
    balancer.configure(|settings| settings.rest = section(&etcd.url(), &wrong))?;
    balancer.kill();
    balancer.restart()?;
    assert!(view(&balancer).from_copy);
    refused(&balancer, &["authentication failed", "password_file"])?;
    write(&topology, "wrong.password", "secret\n");
    connected(&balancer)?;

    // Another host's certificate is none of etcd's.
    etcd.kill();
    let mut other = Etcd::start_with(&topology, "https", arguments("elsewhere"), etcd.login.clone())?;
    refused(&balancer, &["not valid for name", "192.0.2.99"])?;
    other.kill();
    etcd.again()?;
    connected(&balancer)?;
    let said: PutAnswer = balancer.json(&["fleet", "put", &first]);
    taken(&balancer, said.generation)?;

    // A file that is none is no configuration at all.
    let broken = lines("node.key", Some("node"), lbd);
    balancer.configure(|settings| settings.rest = section(&etcd.url(), &broken))?;
    let output = balancer.lbctl_output(&["reload"]);
    let said = text(&output.stderr);
    assert!(
        !output.status.success() && said.contains("ca_file = ") && said.contains("holds no certificate"),
        "{said}"
    );
    load.stop().assert_all_answered();
    Ok(())
}

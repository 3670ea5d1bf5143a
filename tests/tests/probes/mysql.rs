//! `mysql` against MariaDB.

use crate::{Host, LONG, PATIENCE};
use lb_tests::{
    lab::{Process, Result, wait_for_port},
    require,
    skip::Need,
};
use lb_userspace::model::{HealthCheck, MysqlCheck, Role};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    time::Duration,
};

pub(crate) const PORT: u16 = 3306;
const PASSWORD: &str = "p&ss w\u{f6}rd";

/// A server with a user `lbd` who has a password, `open` who has none, and room for two connections.
pub(crate) fn mariadb(host: &Host) -> Result<Process> {
    let dir = host.lab.dir().join("mysql");
    std::fs::create_dir_all(&dir).expect("a directory");
    let init = host.file(
        "init.sql",
        format!(
            "CREATE USER lbd@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\nCREATE USER open@'127.0.0.1';\n\
             CREATE USER locked@'127.0.0.1' IDENTIFIED VIA unix_socket;\n"
        ),
    );
    let common =
        ["--no-defaults".to_owned(), "--user=root".to_owned(), format!("--datadir={}", dir.display())];
    let installed = host.ns.command("mariadb-install-db").args(&common).output().expect("mariadb-install-db");
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let mut command = host.ns.command("mariadbd");
    command
        .args(&common)
        .arg(format!("--init-file={}", init.display()))
        .arg(format!("--socket={}/socket", dir.display()))
        .arg(format!("--pid-file={}/pid", dir.display()))
        .args(["--bind-address=127.0.0.1", "--skip-name-resolve", "--max-connections=10", "--log-warnings=9"])
        .args(["--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M", "--key-buffer-size=1M"]);
    let process = host.lab.spawn("mariadbd", command)?;
    process.wait_for_log("ready for connections", PATIENCE)?;
    wait_for_port(&host.ns, Host::at(PORT), PATIENCE)?;
    Ok(process)
}

fn check(user: Option<&str>, password_file: Option<&PathBuf>, role: Role) -> HealthCheck {
    let (user, password_file) = (user.map(str::to_owned), password_file.cloned());
    HealthCheck::Mysql(MysqlCheck { user, password_file, role })
}

/// An operator's command.
fn sql(host: &Host, statement: &str) {
    let socket = format!("--socket={}/mysql/socket", host.lab.dir().display());
    let mut client = host.ns.command("mariadb");
    let output =
        client.args(["--no-defaults", &socket, "--user=root", "-e", statement]).output().expect("mariadb");
    assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn mysql_logs_in_and_tells_a_primary_from_a_replica() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("mariadbd"), Need::Tool("mariadb-install-db"));
    let host = Host::new()?;
    let server = mariadb(&host)?;
    let password = host.file("password", format!("{PASSWORD}\n"));
    let wrong = host.file("wrong", "wrong\n");

    let lost = || server.log().matches("Aborted connection").count();
    let nobody = check(None, None, Role::Any);
    assert_eq!(host.check(&nobody, PORT, LONG), Ok(()));
    let primary = check(Some("lbd"), Some(&password), Role::Primary);
    let replica = check(Some("lbd"), Some(&password), Role::Replica);
    assert_eq!(host.check(&check(Some("lbd"), Some(&password), Role::Any), PORT, LONG), Ok(()));
    assert_eq!(host.check(&check(Some("open"), None, Role::Any), PORT, LONG), Ok(()));
    assert_eq!(host.check(&primary, PORT, LONG), Ok(()));
    assert_eq!(host.fails(&replica, PORT), "server is a primary, expected a replica");
    // A promotion and the way back change what the server is fit for, not whether the check passes.
    let rather_replica = check(Some("lbd"), Some(&password), Role::PreferReplica);
    let stands_in = host.check(&rather_replica, PORT, LONG).expect_err("it takes writes");
    assert!(stands_in.stands_in() && !stands_in.is_local(), "{stands_in}");
    sql(&host, "SET GLOBAL read_only = 1");
    assert_eq!(host.check(&replica, PORT, LONG), Ok(()));
    assert_eq!(host.fails(&primary, PORT), "server is a replica, expected a primary");
    assert_eq!(host.check(&rather_replica, PORT, LONG), Ok(()));

    let denied = host.fails(&check(Some("lbd"), Some(&wrong), Role::Any), PORT);
    assert!(denied.starts_with("MySQL error: 1045: Access denied for user 'lbd'@'127.0.0.1'"), "{denied}");
    assert!(host.fails(&check(Some("lbd"), None, Role::Any), PORT).starts_with("MySQL error: 1045"));
    assert!(
        host.fails(&check(Some("locked"), Some(&password), Role::Any), PORT).starts_with("MySQL error: 1")
    );
    let missing = check(Some("lbd"), Some(&"/nonexistent/password".into()), Role::Any);
    let failure = host.check(&missing, PORT, LONG).expect_err("no password");
    assert!(failure.is_local() && failure.to_string().contains("/nonexistent/password"), "{failure}");

    host.leaks_nothing(&replica, PORT, true);
    host.leaks_nothing(&nobody, PORT, true);
    // A thousand logins of nobody and more: the server does not shut this host out, and no connection counts as lost.
    assert_eq!(host.check(&nobody, PORT, LONG), Ok(()));
    // That the start was waited for counts as a few.
    assert!(lost() < 10, "{}", server.log());
    host.hangs_and_refuses(&nobody);
    assert_eq!(host.stops(&server, &nobody, PORT), "connected, but no answer within 300ms");

    // Every connection is taken, and the one kept for an administrator.
    let mut held = Vec::new();
    let full = loop {
        let mut stream = host.ns.run(|| TcpStream::connect(Host::at(PORT))).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).expect("a greeting");
        held.push(stream);
        if greeting[4] == 0xff {
            break host.fails(&nobody, PORT);
        }
        assert!(held.len() < 30, "there is always room");
    };
    assert_eq!(full, "MySQL error: 1040: Too many connections");
    drop(held);
    server.kill();
    assert_eq!(host.fails(&nobody, PORT), "connection refused");
    Ok(())
}

#[test]
fn mysql_is_not_taken_in_by_others() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let host = Host::new()?;
    let listener = host.listen(PORT);
    let answers: [&[u8]; 5] = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00\x00\x00\x00",
        b"\x05\x00\x00\x00\x0aabcd",
        b"\x05\x00\x00\x01\x0aabcd",
        b"\xff\xff\xff\x00\x0a",
    ];
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = stream.write_all(answer);
            // The check hangs up first.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let _ = stream.read(&mut [0; 64]);
        }
    });
    for answer in answers {
        assert_eq!(host.fails(&check(None, None, Role::Any), PORT), "not a MySQL answer", "{answer:?}");
    }
    Ok(())
}

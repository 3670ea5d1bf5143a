//! `redis` against Redis.

use crate::{Host, LONG, PATIENCE};
use lb_tests::{
    lab::{Process, Result, wait_for_port},
    require,
    skip::Need,
};
use lb_userspace::model::{HealthCheck, RedisCheck, Role};
use std::{
    io::{Read as _, Write as _},
    path::PathBuf,
    time::Duration,
};

pub(crate) const PRIMARY: u16 = 6379;
const REPLICA: u16 = 6380;
const LOCKED: u16 = 6381;

pub(crate) fn redis(host: &Host, port: u16, config: Option<&PathBuf>, more: &[&str]) -> Result<Process> {
    let mut command = host.ns.command("redis-server");
    command.args(config);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]);
    command.arg("--dir").arg(host.lab.dir()).args(more);
    let process = host.lab.spawn(&format!("redis-{port}"), command)?;
    wait_for_port(&host.ns, Host::at(port), PATIENCE)?;
    Ok(process)
}

fn check(user: Option<&str>, password_file: Option<&PathBuf>, role: Role) -> HealthCheck {
    let (user, password_file) = (user.map(str::to_owned), password_file.cloned());
    HealthCheck::Redis(RedisCheck { user, password_file, role })
}

#[test]
fn redis_answers_and_tells_its_role() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("redis-server"));
    let host = Host::new()?;
    let server = redis(&host, PRIMARY, None, &[])?;
    let _replica = redis(&host, REPLICA, None, &["--replicaof", "127.0.0.1 6379"])?;
    let any = check(None, None, Role::Any);
    let primary = check(None, None, Role::Primary);
    let replica = check(None, None, Role::Replica);
    for port in [PRIMARY, REPLICA] {
        assert_eq!(host.check(&any, port, LONG), Ok(()));
    }
    assert_eq!(host.check(&primary, PRIMARY, LONG), Ok(()));
    assert_eq!(host.check(&replica, REPLICA, LONG), Ok(()));
    assert_eq!(host.fails(&replica, PRIMARY), "server is a primary, expected a replica");
    let rather_replica = check(None, None, Role::PreferReplica);
    assert_eq!(host.check(&rather_replica, REPLICA, LONG), Ok(()));
    assert!(host.check(&rather_replica, PRIMARY, LONG).expect_err("it takes writes").stands_in());
    assert_eq!(host.fails(&primary, REPLICA), "server is a replica, expected a primary");
    host.hangs_and_refuses(&any);
    assert_eq!(host.stops(&server, &primary, PRIMARY), "connected, but no answer within 300ms");
    host.leaks_nothing(&primary, PRIMARY, true);
    host.leaks_nothing(&replica, PRIMARY, false);
    Ok(())
}

#[test]
fn redis_logs_in() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("redis-server"));
    let host = Host::new()?;
    let config = host.file(
        "locked.conf",
        "requirepass hunter2\nuser lbd on >probe ~* +ping +role\nuser ping on >probe ~* +ping\n",
    );
    let _locked = redis(&host, LOCKED, Some(&config), &[])?;
    let good = host.file("good", "hunter2\n");
    let probe = host.file("probe", "probe\n");
    assert_eq!(host.check(&check(None, Some(&good), Role::Primary), LOCKED, LONG), Ok(()));
    assert_eq!(host.check(&check(Some("lbd"), Some(&probe), Role::Primary), LOCKED, LONG), Ok(()));
    let outside = host.fails(&check(None, None, Role::Any), LOCKED);
    assert!(outside.starts_with("Redis error:") && outside.contains("NOAUTH"), "{outside}");
    let wrong = host.fails(&check(None, Some(&probe), Role::Any), LOCKED);
    assert_eq!(wrong, "Redis error: the login is refused");
    let forbidden = host.fails(&check(Some("ping"), Some(&probe), Role::Primary), LOCKED);
    assert!(forbidden.contains("no permissions to run the 'role' command"), "{forbidden}");
    host.leaks_nothing(&check(Some("lbd"), Some(&probe), Role::Any), LOCKED, true);
    Ok(())
}

#[test]
fn redis_is_not_taken_in_by_others() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"));
    let host = Host::new()?;
    let listener = host.listen(PRIMARY);
    let answers: [(&[u8], &str); 4] = [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not a Redis answer"),
        (b"+OK\r\n", "not a Redis answer"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "Redis error: "),
        (b"", "connection closed without an answer"),
    ];
    std::thread::spawn(move || {
        for (answer, _) in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(answer);
            if !answer.is_empty() {
                let _ = stream.read(&mut [0; 64]);
            }
        }
    });
    for (answer, said) in answers {
        let failure = host.fails(&check(None, None, Role::Any), PRIMARY);
        assert!(failure.starts_with(said), "{answer:?}: {failure}");
    }
    Ok(())
}

//! Broken configurations, each with the exact lines that are said of it. The cases are in
//! `broken.txt`: a title, the file, and the expected lines behind `=> `. After a change of wording run
//! the test with `BLESS=1` and read the difference.

use super::*;
use std::fmt::Write;

const CASES: &str = include_str!("broken.txt");

/// Title, text and expected lines.
fn cases() -> Vec<(&'static str, String, Vec<&'static str>)> {
    CASES
        .split("## ")
        .skip(1)
        .map(|case| {
            let (title, body) = case.split_once('\n').unwrap();
            let (said, text): (Vec<_>, Vec<_>) = body.trim_end().lines().partition(|l| l.starts_with("=> "));
            (title, text.join("\n"), said.iter().map(|line| &line[3..]).collect())
        })
        .collect()
}

fn lines(text: &str) -> Vec<String> {
    match parse_on("lbd.toml", text, "host1") {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

#[test]
fn every_broken_configuration_is_explained() {
    let mut blessed = String::new();
    let mut wrong = String::new();
    for (title, text, expected) in cases() {
        let said = lines(&text);
        let _ = write!(blessed, "{}## {title}\n{text}\n", if blessed.is_empty() { "" } else { "\n" });
        for line in &said {
            let _ = writeln!(blessed, "=> {line}");
        }
        if said.is_empty() || said != expected {
            let _ = writeln!(wrong, "## {title}\nexpected: {expected:#?}\nsaid: {said:#?}");
        }
    }
    if std::env::var_os("BLESS").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/tests/broken.txt");
        std::fs::write(file, blessed).unwrap();
    } else {
        assert!(wrong.is_empty(), "{wrong}");
    }
}

#[test]
fn the_parts_of_a_problem() {
    let text = "[node]\ninterfaces = ['eth0']\n[[service]]\nname = 'www'\naddresses = ['192.0.2.1']\nport = 80\n\
                [[service.backend]]\nname = 'web1'\naddress = '10.0.0.1'\nweight = 70000\n";
    let error = parse_on("lbd.toml", text, "host1").unwrap_err();
    let problem = Problem {
        file: "lbd.toml".to_owned(),
        line: 10,
        column: 10,
        key: "service.www.backend.web1.weight".to_owned(),
        place: "service 'www', backend 'web1'".to_owned(),
        found: "weight = 70000".to_owned(),
        expected: Some("an integer from 0 to 65535".to_owned()),
        advice: None,
    };
    assert_eq!(error.problems, [problem]);
}

fn many(count: usize, one: impl Fn(usize) -> String) -> String {
    (0..count).map(one).collect()
}

#[test]
fn limits_hold_exactly() {
    let services = |count| {
        let service = |i| {
            let (a, b) = (i / 250, i % 250 + 1);
            format!("[[service]]\nname = 's{i}'\naddresses = ['10.0.{a}.{b}']\nport = 80\n")
        };
        format!("{NODE}{}", many(count, service))
    };
    assert_eq!(lines(&services(4096)), Vec::<String>::new());
    assert_eq!(lines(&services(4097)), ["lbd.toml:16387:1: 4097 services: expected at most 4096"]);

    let backends = |count| {
        let backend = |i| {
            let (a, b) = (i / 250, i % 250 + 1);
            format!("[[service.backend]]\nname = 'b{i}'\naddress = '10.0.{a}.{b}'\n")
        };
        format!(
            "{NODE}[[service]]\nname = 's'\naddresses = ['192.0.2.1']\nport = 80\n{}",
            many(count, backend)
        )
    };
    assert_eq!(lines(&backends(4096)), Vec::<String>::new());
    assert_eq!(
        lines(&backends(4097)),
        ["lbd.toml:12295:1: service 's': 4097 backends: expected at most 4096"]
    );

    let addresses = |count: usize| {
        let list = many(count, |i| format!("'2001:db8::{:x}:{:x}',", i >> 16, (i & 0xffff) + 1));
        format!("{NODE}[[service]]\nname = 's'\naddresses = [{list}]\nport = 80\n")
    };
    assert_eq!(lines(&addresses(16_384)), Vec::<String>::new());
    let said = lines(&addresses(16_385));
    assert_eq!(said.len(), 1);
    assert!(
        said[0].ends_with("which makes 16385 of IPv6: expected at most 16384 in all services"),
        "{said:?}"
    );
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let said = |name: &str| {
        let error = load(&path(name)).unwrap_err().to_string();
        error.replace(&*dir.path().to_string_lossy(), "DIR")
    };
    assert_eq!(
        said("none.toml"),
        "DIR/none.toml: cannot be read (No such file or directory (os error 2)): expected a configuration file; \
         check the path and its permissions"
    );
    std::fs::create_dir(path("dir")).unwrap();
    assert_eq!(said("dir"), "DIR/dir: is a directory: expected a configuration file; name the file in it");
    std::fs::write(path("latin1.toml"), b"[node]\n# caf\xe9\n").unwrap();
    assert_eq!(
        said("latin1.toml"),
        "DIR/latin1.toml:2:6: byte 0xe9: expected text in UTF-8; save the file in that encoding"
    );
    std::fs::write(path("empty.toml"), b"").unwrap();
    assert_eq!(
        said("empty.toml"),
        "DIR/empty.toml: section [node] is missing: expected [node] with interfaces = [...]; \
         name the interfaces that packets come in on"
    );
    // A device never ends.
    let endless = load(Path::new("/dev/zero")).unwrap_err().to_string();
    assert_eq!(endless, "/dev/zero: is too large: expected at most 64 MiB; check that it is the right file");
    std::fs::write(path("good.toml"), NODE).unwrap();
    let config = load(&path("good.toml")).unwrap();
    assert_eq!(config.file, path("good.toml").to_string_lossy());
}

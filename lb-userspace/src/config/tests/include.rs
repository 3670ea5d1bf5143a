//! A configuration in several files.

use super::{super::include::SourceFile, *};
use std::fs;

const MAIN: &str = "include = 'conf.d/*.toml'\n[node]\ninterfaces = ['eth0']\n";

fn service(name: &str, port: u16) -> String {
    format!("[[service]]\nname = '{name}'\naddresses = ['192.0.2.1']\nport = {port}\n")
}

/// A directory with those files.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let files_of = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            files_of.write(name, text);
        }
        files_of
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The configuration, or what is said, with the directory's name as DIR.
    fn load(&self) -> Result<Config, String> {
        let dir = self.0.path().display().to_string();
        load(&self.0.path().join("lbd.toml")).map_err(|error| error.to_string().replace(&dir, "DIR"))
    }

    fn names(&self) -> Vec<String> {
        self.load().unwrap().services.iter().map(|service| service.name.to_string()).collect()
    }
}

#[test]
fn files_are_read_in_the_order_of_their_names_and_each_once() {
    let files = Files::new(&[
        ("lbd.toml", &format!("{MAIN}{}", service("main", 1))),
        ("conf.d/20-b.toml", &service("b", 3)),
        ("conf.d/10-a.toml", &service("a", 2)),
        ("conf.d/.15-hidden.toml", "syntax error"),
        ("conf.d/10-a.toml.bak", "syntax error"),
        ("conf.d/sub.toml/x.toml", "syntax error"),
        ("extra/one.toml", &service("one", 4)),
    ]);
    assert_eq!(files.names(), ["main", "a", "b"]);
    let all =
        MAIN.replace("'conf.d/*.toml'", "['extra/one.toml', 'conf.d/2*.toml', 'conf.d/*.toml', '*.toml']");
    files.write("lbd.toml", &all);
    assert_eq!(files.names(), ["one", "b", "a"], "the list's order; the main file does not include itself");
}

#[test]
fn a_pattern_may_match_nothing_but_a_file_must_be_there() {
    let files = Files::new(&[("lbd.toml", MAIN)]);
    assert_eq!(files.names(), [""; 0]);
    files.write("lbd.toml", &MAIN.replace("conf.d/*.toml", "conf.d/www.toml"));
    assert_eq!(
        files.load().unwrap_err(),
        "DIR/lbd.toml:1:11: include has \"conf.d/www.toml\": expected a file that is there; no file \
         DIR/conf.d/www.toml: create it, or write a pattern such as \"conf.d/*.toml\", which may match nothing"
    );
    for (value, said) in [
        (
            "5",
            "include = 5 (an integer): expected a path or a pattern such as \"conf.d/*.toml\", or an array of those",
        ),
        ("['a', 5]", "include has 5 (an integer): expected"),
        ("''", "include = \"\": expected a path or a pattern"),
        ("'a**'", "directories below directories are not searched"),
        ("'a[b'", "expected a path or a pattern"),
        (
            "['lbd.toml']",
            "include has \"lbd.toml\": expected each file once; it is read already: remove it here",
        ),
    ] {
        files.write("lbd.toml", &MAIN.replace("'conf.d/*.toml'", value));
        let found = files.load().unwrap_err();
        assert!(found.contains(said), "{value}: {found}");
    }
}

#[test]
fn every_section_may_lie_anywhere_and_says_where_it_is() {
    let files = Files::new(&[
        ("lbd.toml", "include = ['a.toml', 'b.toml']\n"),
        (
            "a.toml",
            "[node]\ninterfaces = ['eth0']\n[defaults]\nport = 80\n[firewall]\ndeny = ['203.0.113.0/24']\n",
        ),
        (
            "b.toml",
            "[[service]]\nname = 'www'\naddresses = ['192.0.2.1']\n[[vrrp]]\nname = 'v'\ninterface = 'eth0'\n\
                    router_id = 1\naddresses = ['192.0.2.1/24']\n",
        ),
    ]);
    let config = files.load().unwrap();
    assert_eq!(config.services[0].port, PortSpec::Exact(80));
    assert_eq!((config.vrrp.len(), config.firewall.deny.len()), (1, 1));
    let dir = files.0.path().display().to_string();
    let place = |key| match origin(&config, key) {
        Origin::Default => "default".to_owned(),
        Origin::File { file, line } => format!("{}:{line}", config.files[file]).replace(&dir, "DIR"),
    };
    assert_eq!(place("node.interfaces"), "DIR/a.toml:2");
    assert_eq!(place("service.www.port"), "DIR/a.toml:4", "a default stands where it stands");
    assert_eq!(place("service.www.addresses"), "DIR/b.toml:3");
    assert_eq!(place("vrrp.v.router_id"), "DIR/b.toml:7");
    assert_eq!(place("service.www.seed"), "default");
    // Files are form only.
    let joined = fs::read_to_string(files.0.path().join("a.toml")).unwrap()
        + &fs::read_to_string(files.0.path().join("b.toml")).unwrap();
    assert_eq!(parse_on("x", &joined, &config.node.name).unwrap().hash(), config.hash());
}

#[test]
fn what_is_wrong_is_said_of_the_right_file_and_line() {
    let www = service("www", 80);
    let files = Files::new(&[
        ("lbd.toml", &format!("{MAIN}{www}")),
        ("conf.d/a.toml", &format!("# ä\n{www}")),
        (
            "conf.d/b.toml",
            &format!("include = 'x'\n[node]\ninterfaces = ['eth1']\n{}weight = 5\n", service("b", 80)),
        ),
        (
            "conf.d/c.toml",
            "[[service]]\nname = 'c'\naddresses = ['192.0.2.1']\nport = 99\nhealth.interval = '1ms'\n",
        ),
    ]);
    let said = files.load().unwrap_err();
    let expected = "\
DIR/conf.d/a.toml:3:8: service 'www': name = \"www\": expected a name that no other service has; the service on line 5 of DIR/lbd.toml has it
DIR/conf.d/b.toml:1:1: key 'include': only the main file includes others: name this one's there
DIR/conf.d/b.toml:2:1: section [node] again: expected each section once in all files; line 2 of DIR/lbd.toml has it: join the two
DIR/conf.d/b.toml:6:14: service 'b': addresses has \"192.0.2.1\" with tcp port 80: expected no overlap with service 'www' (line 4 of DIR/lbd.toml), which has tcp port 80 there; change address, port or protocol of one of them
DIR/conf.d/b.toml:8:1: service 'b': unknown key 'weight': it belongs in [[service.backend]]
DIR/conf.d/c.toml:5:19: service 'c', health: interval = \"1ms\": expected a duration from \"10ms\" to \"1h\"";
    assert_eq!(said.lines().collect::<Vec<_>>(), expected.lines().collect::<Vec<_>>());
    files.write("conf.d/a.toml", "x = \n");
    files.write("conf.d/b.toml", "\n[node\n");
    assert_eq!(
        files.load().unwrap_err(),
        "DIR/conf.d/a.toml:1:5: not valid TOML: a value is missing\n\
         DIR/conf.d/b.toml:2:6: not valid TOML: unclosed table, expected `]`"
    );
    fs::write(files.0.path().join("conf.d/a.toml"), b"a\nb\xff").unwrap();
    assert_eq!(
        files.load().unwrap_err(),
        "DIR/conf.d/a.toml:2:2: byte 0xff: expected text in UTF-8; save the file in that encoding"
    );
}

#[test]
fn a_text_alone_says_what_it_would_include_without_reading_it() {
    assert_eq!(parse_on("lbd.toml", MAIN, "h").unwrap().files, ["lbd.toml"]);
    let file = |name: &str, text: &str| SourceFile { name: name.to_owned(), text: text.to_owned() };
    let config = parse_files(&[file("m", MAIN), file("s", &service("a", 1))], "h").unwrap();
    assert_eq!((config.services.len(), config.files), (1, vec!["m".to_owned(), "s".to_owned()]));
}

//! `[fleet]`, and the document that all nodes share.

use super::*;
use crate::config::{FleetConfig, include::SourceFile, load_with, parse_with};

const FLEET: &str =
    "[node]\ninterfaces = ['eth0']\n[fleet]\nendpoints = ['http://10.9.0.5:2379']\nprefix = '/lbd/prod'\n";
const WWW: &str = "[[service]]\nname = 'www'\naddresses = ['192.0.2.1']\nport = 80\n";

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.to_owned(), text: text.to_owned() }
}

/// With a document, or what is said of both.
fn together(own: &str, document: &str) -> Result<Config, String> {
    let document = file("etcd:/lbd/prod/config@17", document);
    parse_with(&[file("lbd.toml", own)], Some(&document), "host1").map_err(|error| error.to_string())
}

fn refused(own: &str) -> String {
    parse_files(&[file("lbd.toml", own)], "host1").unwrap_err().to_string()
}

#[test]
fn where_etcd_is() {
    let config = parse_files(&[file("lbd.toml", FLEET)], "host1").unwrap();
    let expected = FleetConfig {
        endpoints: vec!["http://10.9.0.5:2379".to_owned()],
        prefix: "/lbd/prod".to_owned(),
        ca_file: None,
        identity: None,
        login: None,
        lease: Duration::from_secs(5),
        commands: false,
    };
    assert_eq!(config.fleet, Some(expected));
    assert_eq!(config.fleet.unwrap().key(), "/lbd/prod/config");
}

#[test]
fn what_is_wrong_with_it_is_said() {
    let section = |lines: &str| refused(&format!("[node]\ninterfaces = ['eth0']\n[fleet]\n{lines}\n"));
    let http = "endpoints = ['http://a:2379']\n";
    let cases = [
        ("", "endpoints is missing: expected an array of etcd's URLs"),
        ("endpoints = []\nprefix = '/a'", "endpoints = []: expected an array"),
        ("endpoints = ['a:2379']\nprefix = '/a'", "write http:// or https:// in front"),
        ("endpoints = ['http://a']\nprefix = '/a'", "the port is missing; etcd's is 2379"),
        ("endpoints = ['http://u@a:1']\nprefix = '/a'", "user and password_file say who logs in"),
        ("endpoints = ['http://a:1/x']\nprefix = '/a'", "nothing follows the port"),
        ("endpoints = ['http://a:1', 'http://a:1/']\nprefix = '/a'", "expected each URL once"),
        ("endpoints = ['http://a:1', 'https://b:1']\nprefix = '/a'", "expected https for all or for none"),
        (&format!("{http}prefix = 'a'"), "it begins with a slash"),
        (&format!("{http}prefix = '/a/'"), "names of letters, digits and -_."),
        (&format!("{http}prefix = '/a'\nlease = '1s'"), "lease = \"1s\""),
        (&format!("{http}prefix = '/a'\nlease = '2500ms'"), "expected whole seconds"),
        (&format!("{http}prefix = '/a'\nca_file = '/a'"), "ca_file without https"),
        (&format!("{http}prefix = '/a'\nuser = 'u'"), "password_file is missing"),
        (&format!("{http}prefix = '/a'\npassword_file = '/p'"), "user is missing"),
        ("endpoints = ['https://a:1']\nprefix = '/a'\ncert_file = '/c'", "key_file is missing"),
        ("endpoints = ['https://a:1']\nprefix = '/a'\nkey_file = 'k'", "expected the absolute path"),
        (&format!("{http}prefix = '/a'\nttl = '5s'"), "unknown key 'ttl'"),
    ];
    for (lines, expected) in cases {
        let said = section(lines);
        assert!(said.contains(expected), "{lines}: {said}");
        assert!(said.lines().all(|line| line.starts_with("lbd.toml:")), "{said}");
    }
}

#[test]
fn the_document_is_joined_to_the_nodes_own() {
    let own = "[[service]]\nname = 'own'\naddresses = ['192.0.2.9']\n[defaults]\nport = 9\nring_size = 101\n";
    let document = format!("[defaults]\nring_size = 4099\n[firewall]\ndeny = ['198.51.100.0/24']\n{WWW}");
    let config = together(&format!("{FLEET}{own}"), &document).unwrap();
    let sizes: Vec<_> = config.services.iter().map(|s| (s.name.as_str(), s.ring_size)).collect();
    assert_eq!(sizes, [("own", Some(101)), ("www", Some(4099))], "each has the defaults beside it");
    assert_eq!(config.firewall.deny.len(), 1);
    assert_eq!(config.fleet_file, Some(1));
    let path = ["service", "www", "name"].map(str::to_owned);
    assert_eq!(config.origins.of(&path), Origin::File { file: 1, line: 6 });
    // Without a section the document is none of this node's.
    let alone = together("[node]\ninterfaces = ['eth0']\n", &document).unwrap();
    assert!(alone.services.is_empty() && alone.fleet_file.is_none());
}

#[test]
fn what_is_each_nodes_own_is_refused_in_the_document() {
    let said = together(FLEET, "[node]\ninterfaces = ['eth0']\n").unwrap_err();
    assert_eq!(
        said,
        "etcd:/lbd/prod/config@17:1:2: section 'node': each node has its own: write it in the node's lbd.toml"
    );
    for section in ["metrics", "tunnel", "flows", "control", "bgp", "sync", "fleet"] {
        let said = together(FLEET, &format!("[{section}]\n")).unwrap_err();
        assert!(said.contains(&format!("section '{section}': each node has its own")), "{said}");
    }
    let said = together(FLEET, "include = 'a.toml'\n").unwrap_err();
    assert!(said.contains("the document is one text"), "{said}");
    let said = together(FLEET, "[firewall]\ndeny_files = ['/etc/lbd/deny']\n").unwrap_err();
    assert!(said.starts_with("etcd:/lbd/prod/config@17:2:") && said.contains("key 'deny_files'"), "{said}");
    let said = together(&format!("{FLEET}{WWW}"), WWW).unwrap_err();
    assert!(
        said.starts_with("etcd:/lbd/prod/config@17:2:8: ")
            && said.contains("a name that no other service has; the service on line 7 of lbd.toml has it"),
        "{said}"
    );
    let said = together(FLEET, "[[service]\n").unwrap_err();
    assert!(said.starts_with("etcd:/lbd/prod/config@17:1:"), "{said}");
}

#[test]
fn names_of_services_are_looked_for_once_the_document_is_there() {
    let own = format!("{FLEET}[bgp]\nservices = ['www']\n");
    assert!(parse_files(&[file("lbd.toml", &own)], "host1").is_ok(), "nobody knows yet");
    assert!(together(&own, WWW).is_ok());
    let said = together(&own, "").unwrap_err();
    assert!(said.contains("there is none of this name"), "{said}");
}

#[test]
fn commands_of_the_document_are_run_only_where_that_is_allowed() {
    let load = |more: &str, document: &str| {
        let document = file("etcd:/x@1", document);
        let result = load_with(&[file("lbd.toml", &format!("{FLEET}{more}"))], Some(&document));
        result.map(drop).map_err(|error| error.to_string())
    };
    let exec = format!("{WWW}health.type = 'exec'\nhealth.command = ['/bin/true']\n");
    let notify = format!("{WWW}[[service.notify]]\ncommand = ['/bin/true']\n");
    for document in [&exec, &notify] {
        let said = load("", document).unwrap_err();
        assert!(
            said.starts_with("etcd:/x@1:") && said.contains("unless its [fleet] has commands = true"),
            "{said}"
        );
        assert_eq!(load("commands = true\n", document), Ok(()));
    }
    assert_eq!(load(&exec, ""), Ok(()), "the node's own are its own");
}

#[test]
fn its_files_are_looked_at() {
    let secret = "user = 'lbd'\npassword_file = '/nonexistent/password'\n";
    let error = load_with(&[file("lbd.toml", &format!("{FLEET}{secret}"))], None).unwrap_err();
    let said = error.to_string();
    assert!(
        said.starts_with("lbd.toml:7:1: [fleet]: password_file = \"/nonexistent/password\" cannot be read"),
        "{said}"
    );
}

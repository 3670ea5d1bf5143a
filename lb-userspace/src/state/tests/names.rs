//! Backends by name.

use super::*;
use crate::{
    config::{Config, parse_on},
    model::{Found, Query},
    state::{Answers, queries},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

const TEXT: &str = "\
node.interfaces = ['eth0']
[resolver]
servers = ['10.0.0.53', '[2001:db8::53]:5353']
min_ttl = '2s'
[[service]]
name = 'www'
addresses = ['192.0.2.10']
port = 80
forward = 'nat'
[[service.backend]]
name = 'fixed'
address = '10.0.0.1'
[[service.backend]]
name = 'web'
address = 'web.example.net'
weight = 50
[[service.backend]]
name = 'all'
srv = '_http._tcp.example.net'
";

fn config() -> Config {
    parse_on("lbd.toml", TEXT, "host1").unwrap_or_else(|error| panic!("{error}"))
}

fn host() -> Query {
    Query::Host("web.example.net".to_owned())
}

fn found(lasts: &[u8]) -> BTreeSet<Found> {
    lasts.iter().map(|last| Found { address: ip(*last), port: None, weight: None }).collect()
}

/// Name, port and weight of each backend.
fn backends(config: &Config) -> Vec<(String, Option<u16>, u16)> {
    config.services[0].backends.iter().map(|b| (b.name.to_string(), b.port, b.weight)).collect()
}

fn row(name: &str, port: Option<u16>, weight: u16) -> (String, Option<u16>, u16) {
    (name.to_owned(), port, weight)
}

#[test]
fn every_address_of_a_name_is_a_backend_with_a_name_of_its_own() {
    let mut config = config();
    let (mut answers, now) = (Answers::default(), Instant::now());
    assert_eq!(queries(&config).len(), 2);
    assert!(answers.fill(&mut config).is_empty());
    assert_eq!(backends(&config), [row("fixed", None, 100)]);
    assert!(answers.learn(host(), found(&[3, 2]), now));
    assert!(!answers.learn(host(), found(&[2, 3]), now), "the order says nothing");
    let srv = Found { address: ip(9), port: Some(8080), weight: Some(7) };
    answers.learn(Query::Srv("_http._tcp.example.net".to_owned()), [srv].into(), now);
    let all = [
        row("fixed", None, 100),
        row("web-10.0.0.2", None, 50),
        row("web-10.0.0.3", None, 50),
        row("all-10.0.0.9", Some(8080), 7),
    ];
    for _ in 0..2 {
        assert!(answers.fill(&mut config).is_empty());
        assert_eq!(backends(&config), all);
    }
    // What another daemon remembers of it.
    let kept = serde_json::to_vec(&answers.to_remember()).unwrap();
    let mut other = self::config();
    Answers::remembered(serde_json::from_slice(&kept).unwrap()).fill(&mut other);
    assert_eq!(backends(&other), all);
}

#[test]
fn an_address_that_leaves_keeps_its_flows_for_a_while() {
    let mut config = config();
    let (mut answers, start) = (Answers::default(), Instant::now());
    let drain = Duration::from_secs(300);
    answers.learn(host(), found(&[2, 3]), start);
    answers.learn(host(), found(&[3, 4]), start + drain);
    answers.fill(&mut config);
    let leaving = row("web-10.0.0.2", None, 0);
    assert!(backends(&config).contains(&leaving), "{:?}", backends(&config));
    assert!(backends(&config).contains(&row("web-10.0.0.4", None, 50)));
    assert!(!answers.expire(drain, start + drain + drain / 2));
    // It comes back before it is gone: the same backend as ever.
    answers.learn(host(), found(&[2, 3]), start + drain + drain / 2);
    answers.fill(&mut config);
    assert!(backends(&config).contains(&row("web-10.0.0.2", None, 50)));
    assert!(answers.expire(drain, start + 3 * drain));
    answers.fill(&mut config);
    assert_eq!(backends(&config).len(), 3, "{:?}", backends(&config));
}

#[test]
fn a_family_that_was_not_heard_of_is_kept() {
    let mut answers = Answers::default();
    let v6 = Found { address: "2001:db8::7".parse().unwrap(), port: None, weight: None };
    let mut both = found(&[2, 3]);
    both.insert(v6.clone());
    assert_eq!(answers.completed(&host(), found(&[2]), [false, true]), found(&[2]), "nothing was known");
    answers.learn(host(), both.clone(), Instant::now());
    assert_eq!(answers.completed(&host(), [v6.clone()].into(), [true, false]), both);
    assert_eq!(answers.completed(&host(), [v6.clone()].into(), [false, false]), [v6.clone()].into());
    let mut new = found(&[4]);
    new.insert(v6);
    assert_eq!(answers.completed(&host(), found(&[4]), [false, true]), new);
}

#[test]
fn addresses_that_cannot_serve_are_refused_one_by_one() {
    let mut config = config();
    let mut answers = Answers::default();
    let mut all = found(&[1, 2]);
    for text in ["127.0.0.1", "192.0.2.10", "2001:db8::5"] {
        all.insert(Found { address: text.parse().unwrap(), port: None, weight: None });
    }
    answers.learn(host(), all, Instant::now());
    let refused = answers.fill(&mut config);
    assert_eq!(backends(&config).len(), 2, "{refused:?}");
    for why in [
        "a loopback address",
        "an address of the service",
        "another backend has it",
        "2001:db8::5 of web.example.net",
    ] {
        assert!(refused.iter().any(|line| line.contains(why)), "{why}: {refused:?}");
    }
}

#[test]
fn names_in_the_configuration() {
    let config = config();
    assert_eq!(config.names[&s("www")].len(), 2);
    let again = parse_on("again.toml", &config.to_toml(), "host2").unwrap();
    assert_eq!(
        (again.names.clone(), &again.resolver, again.hash()),
        (config.names.clone(), &config.resolver, config.hash())
    );
    let said = |from: &str, to: &str| {
        let text = TEXT.replace(from, to);
        assert_ne!(text, TEXT);
        parse_on("lbd.toml", &text, "h").unwrap_err().to_string()
    };
    assert!(
        said("srv = ", "address = '10.0.0.7'\nsrv = ")
            .contains("a backend has one of the two: remove the other")
    );
    assert!(said("'10.0.0.1'", "'10.0.0.1'\nfamily = 'ipv4'").contains("an address has its family"));
    assert!(said("'web.example.net'", "'10.0.0.312'").contains("expected an IPv4 or IPv6 address"));
    assert!(said("name = 'web'", "name = 'a-name-of-twenty-four-ch'").contains("at most 23 characters"));
    assert!(said("min_ttl = '2s'", "min_ttl = '1h'").contains("at most max_ttl, \"5m\""));
    assert!(
        said("forward = 'nat'", "protocol = 'quic'").contains("QUIC's server ids are of addresses that stay")
    );
}

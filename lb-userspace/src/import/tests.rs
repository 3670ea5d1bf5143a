//! No text makes an import panic; what it makes is accepted by lbd; no line is lost.

use super::*;
use crate::config::parse_on;
use proptest::prelude::*;

const KINDS: [Kind; 3] = [Kind::Keepalived, Kind::Haproxy, Kind::Ipvsadm];

/// Imports and checks what holds for every text.
fn checked(kind: Kind, text: &str, options: &Options) -> Imported {
    let made = import(kind, "sample", text, options);
    let config = parse_on("lbd.toml", &made.toml, "host")
        .unwrap_or_else(|error| panic!("{kind:?}\n{text}\n---\n{}\n---\n{error}", made.toml));
    assert_eq!((config.services.len(), config.vrrp.len()), (made.services, made.vrrp));
    let comments: &[char] = if kind == Kind::Keepalived { &['#', '!'] } else { &['#'] };
    for (line, text) in text.lines().enumerate().map(|(i, text)| (i + 1, text.trim())) {
        let blank = text.is_empty() || text.starts_with(comments) || matches!(text, "{" | "}");
        let said =
            made.mapped.contains(&line) || made.remarks.iter().any(|r| (r.line..=r.to).contains(&line));
        assert!(blank || said, "{kind:?}, line {line}: {text}\n{:#?}", made.remarks);
    }
    made
}

const WORDS: &[&str] = &[
    "virtual_server",
    "real_server",
    "10.0.0.1",
    "10.0.0.2",
    "192.0.2.1",
    "2001:db8::1",
    "80",
    "443",
    "0",
    "{",
    "}",
    "\n",
    "\n",
    "\n",
    "group",
    "fwmark",
    "TCP_CHECK",
    "HTTP_GET",
    "url",
    "path",
    "/x",
    "status_code",
    "200",
    "weight",
    "-1",
    "70000",
    "lb_kind",
    "NAT",
    "DR",
    "TUN",
    "protocol",
    "UDP",
    "SCTP",
    "delay_loop",
    "6",
    "0.001",
    "99999999",
    "vrrp_instance",
    "interface",
    "eth0",
    "virtual_router_id",
    "1",
    "virtual_ipaddress",
    "192.0.2.1/24",
    "dev",
    "track_interface",
    "track_script",
    "track_file",
    "track_bfd",
    "weight",
    "-20",
    "reverse",
    "vrrp_script",
    "script",
    "/bin/true",
    "vrrp_track_file",
    "vrrp_track_process",
    "process",
    "file",
    "/a",
    "vrrp_sync_group",
    "group",
    "bfd_instance",
    "neighbor_ip",
    "source_ip",
    "10.0.0.1",
    "\"",
    "'",
    "@a",
    "$A=1",
    "$A",
    "${A}",
    "!",
    "#",
    "\\",
    "frontend",
    "backend",
    "listen",
    "defaults",
    "bind",
    ":80",
    "192.0.2.1:80",
    "192.0.2.1:1-70000",
    "[2001:db8::1]:80",
    "mode",
    "http",
    "tcp",
    "server",
    "a",
    "10.0.0.1:80",
    "check",
    "inter",
    "1us",
    "option",
    "httpchk",
    "http-check",
    "expect",
    "status",
    "string",
    "default_backend",
    "use_backend",
    "from",
    "balance",
    "-A",
    "-a",
    "-t",
    "-u",
    "-f",
    "-r",
    "-m",
    "-i",
    "-g",
    "-w",
    "-s",
    "wlc",
    "-p",
    "300",
    "--tun-type",
    "gue",
    "--tun-port",
    "default-server",
    "weight",
    "disabled",
    "unicast_peer",
    "MISC_CHECK",
    "misc_path",
    "regex",
    "(",
    "priority",
    "advert_int",
    "timeout",
    "client",
    "1d",
    "global",
    "node",
    "é",
    "\u{0}",
    "\u{202e}",
    "sorry_server",
    "UDP_CHECK",
    "payload",
    "0a0",
    "version",
    "3",
    "SSL_GET",
    "virtualhost",
    "host name",
    "DNS_CHECK",
    "type",
    "A",
    "name",
    "example.org",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_words_panic(words in proptest::collection::vec(0..WORDS.len(), 0..60), which in 0..3usize, options in any::<bool>()) {
        let text: Vec<&str> = words.into_iter().map(|word| WORDS[word]).collect();
        let mut asked = Options::default();
        if options {
            asked.addresses = vec!["192.0.2.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
            asked.snat_addresses = vec!["10.0.0.200".parse().unwrap()];
            asked.id = Some("a".to_owned());
        }
        checked(KINDS[which], &text.join(" "), &asked);
    }

    #[test]
    fn no_text_panics(text in "(?s).{0,200}", which in 0..3usize) {
        checked(KINDS[which], &text, &Options::default());
    }

    /// Good files with lines taken out, doubled and cut.
    #[test]
    fn no_damaged_sample_panics(cuts in proptest::collection::vec((any::<u16>(), 0..4u8), 0..12), which in 0..3usize) {
        let sample = [KEEPALIVED, HAPROXY, IPVSADM][which];
        let mut lines: Vec<String> = sample.lines().map(str::to_owned).collect();
        for (at, how) in cuts {
            let at = usize::from(at) % lines.len();
            match how {
                0 => lines[at].clear(),
                1 => lines.insert(at, lines[at].clone()),
                2 => { let half = lines[at].floor_char_boundary(lines[at].len() / 2); lines[at].truncate(half); }
                _ => { let other = (at * 7 + 3) % lines.len(); lines.swap(at, other); }
            }
        }
        checked(KINDS[which], &lines.join("\n"), &Options::default());
    }
}

const KEEPALIVED: &str = include_str!("../../tests/lbctl/import/keepalived.conf");
const HAPROXY: &str = include_str!("../../tests/lbctl/import/haproxy.cfg");
const IPVSADM: &str = include_str!("../../tests/lbctl/import/ipvsadm.rules");

#[test]
fn samples_are_taken_over() {
    let counts = |made: &Imported| (made.services, made.backends, made.vrrp);
    let keepalived = checked(Kind::Keepalived, KEEPALIVED, &Options::default());
    assert_eq!(counts(&keepalived), (5, 10, 3));
    assert!(keepalived.toml.contains("quorum_up = 2\nquorum_down = 2\n"), "{}", keepalived.toml);
    let haproxy = checked(Kind::Haproxy, HAPROXY, &Options::default());
    assert_eq!(counts(&haproxy), (4, 10, 0));
    // Who stands in for the others does so here too.
    assert_eq!([&keepalived, &haproxy].map(|made| made.toml.matches("backup = true").count()), [1, 1]);
    assert_eq!(counts(&checked(Kind::Ipvsadm, IPVSADM, &Options::default())), (4, 6, 0));
}

#[test]
fn remarks_say_line_and_reason() {
    let text = "virtual_server fwmark 1 {\n  lb_algo rr\n}\nvirtual_server 192.0.2.1 80 {\n  lb_kind DR\n  \
                persistence_timeout 50\n  real_server 10.0.0.1 8080 {\n    weight 1\n  }\n}\nfoo bar\n";
    let made = checked(Kind::Keepalived, text, &Options::default());
    let said: Vec<String> = made.remarks.iter().map(ToString::to_string).collect();
    let begins = |start: &str| assert!(said.iter().any(|line| line.starts_with(start)), "{start}: {said:#?}");
    begins("lines 1-3: left out: virtual_server fwmark 1: lbd does not see firewall marks");
    begins("line 6: differs: persistence_timeout 50: scheduler = \"source-ip\"");
    begins("lines 7-9: differs: real_server 10.0.0.1 8080: port 8080 is not used: forward = \"dsr\"");
    begins("line 11: left out: foo bar: unknown here");
    for remark in &said {
        assert!(made.toml.contains(&format!("#   {remark}")), "{remark}");
    }
}

#[test]
fn what_lbd_refuses_is_left_out_with_its_words() {
    let text = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 192.0.2.1:80 -g -w 1\n\
                -a -t 192.0.2.1:80 -r 10.0.0.1:80 -g -w 1\n-A -t 224.0.0.1:80 -s rr\n";
    let made = checked(Kind::Ipvsadm, text, &Options::default());
    assert_eq!((made.services, made.backends), (1, 1));
    let said = |line: usize, text: &str| {
        assert!(
            made.remarks.iter().any(|r| r.line == line && r.reason.contains(text)),
            "{:#?}",
            made.remarks
        );
    };
    said(2, "lbd refuses it: address = \"192.0.2.1\"; the backend's own address");
    said(4, "this is a multicast address");
}

#[test]
fn keepalived_conditions_and_definitions() {
    let text = "$VIP=192.0.2.7\n$PORT = 80\n@a vrrp_instance A { interface eth1\nvirtual_router_id 5\nvirtual_ipaddress { $VIP/24 } }\n\
                @^a virtual_server ${VIP} $PORT { lb_kind TUN type gue port 6081\nreal_server 10.0.0.9 80 { PING_CHECK } }\n";
    let of = |id: &str| Options { id: Some(id.to_owned()), ..Options::default() };
    let made = checked(Kind::Keepalived, text, &of("b"));
    assert!(made.toml.contains("addresses = [\"192.0.2.7\"]"), "{}", made.toml);
    assert!(
        made.toml.contains("forward = \"gue\"") && made.toml.contains("gue_port = 6081"),
        "{}",
        made.toml
    );
    assert!(made.toml.contains("type = \"icmp\""), "{}", made.toml);
}

#[test]
fn haproxy_needs_addresses_for_what_listens_everywhere() {
    let text = "listen web\n mode tcp\n bind :80\n bind [::]:81 v4v6\n bind *:443 ssl crt x\n server a 10.0.0.1:8080 check\n";
    let made = checked(Kind::Haproxy, text, &Options::default());
    assert_eq!(made.services, 0);
    let addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    let snat_addresses = vec!["10.0.0.99".parse().unwrap()];
    let made = checked(Kind::Haproxy, text, &Options { addresses, snat_addresses, ..Options::default() });
    assert_eq!(made.services, 2, "{:#?}", made.remarks);
    assert!(made.toml.contains("[service.snat]\naddresses = [\"10.0.0.99\"]"), "{}", made.toml);
    assert!(made.toml.contains("port = 8080"), "{}", made.toml);
}

#[test]
fn haproxy_rules_that_refuse_are_not_forgotten() {
    for rule in [
        "http-request deny if x",
        "tcp-request connection reject if x",
        "use_backend b if x",
        "redirect scheme https",
    ] {
        let text = format!(
            "frontend f\n bind 192.0.2.1:80\n {rule}\n default_backend b\nbackend b\n server a 10.0.0.1:80\n"
        );
        let made = checked(Kind::Haproxy, &text, &Options::default());
        assert_eq!(made.services, 0, "{rule}");
        assert!(
            made.remarks.iter().any(|r| r.line == 1 && r.reason.contains("its line 3")),
            "{:#?}",
            made.remarks
        );
    }
}

#[test]
fn haproxy_names_become_names() {
    let text = "listen web\n mode tcp\n bind 192.0.2.1:80\n bind [2001:db8::1]:80\n server app app.example.net:8080 check\n \
                server-template pods 5 _http._tcp.pods.example.net:80 weight 3\n server x a..b:80\n server y $HOST:80\n \
                server a-name-that-is-much-too-long-for-that long.example.net:80\n";
    let made = checked(Kind::Haproxy, text, &Options::default());
    assert_eq!((made.services, made.backends), (2, 6), "{:#?}\n{}", made.remarks, made.toml);
    for expected in [
        "address = \"app.example.net\"\nfamily = \"ipv4\"\nport = 8080\n",
        "address = \"app.example.net\"\nfamily = \"ipv6\"\nport = 8080\n",
        "srv = \"_http._tcp.pods.example.net\"\nfamily = \"ipv4\"\n",
        "name = \"a-name-that-is-much-\"\n",
    ] {
        assert!(made.toml.contains(expected), "{expected}\n{}", made.toml);
    }
    let said = |line: usize, text: &str| {
        assert!(
            made.remarks.iter().any(|r| r.line == line && r.reason.contains(text)),
            "{:#?}",
            made.remarks
        );
    };
    said(5, "each of its addresses becomes a backend");
    said(7, "neither an address nor a name");
    said(8, "no variables of the environment");
    // A proxy's own source takes both versions.
    let snat_addresses = vec!["10.0.0.99".parse().unwrap()];
    let made = checked(Kind::Haproxy, text, &Options { snat_addresses, ..Options::default() });
    assert!(!made.toml.contains("family"), "{}", made.toml);
}

#[test]
fn schedulers_that_look_at_other_things_than_lbds_are_told_of() {
    let rules = |scheduler: &str, weights: [u32; 2]| {
        let [a, b] = weights;
        format!(
            "-A -t 192.0.2.1:80 -s {scheduler}\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 -g -w {a}\n\
             -a -t 192.0.2.1:80 -r 10.0.0.2:80 -g -w {b}\n"
        )
    };
    let keepalived = |settings: &str, weights: [u32; 2]| {
        let [a, b] = weights;
        format!(
            "virtual_server 192.0.2.1 80 {{\n  {settings}\n  lb_kind DR\n  real_server 10.0.0.1 80 {{\n    weight {a}\n  }}\n  \
             real_server 10.0.0.2 80 {{\n    weight {b}\n  }}\n}}\n"
        )
    };
    let cases = [
        ("rr", "lb_algo rr", [1, 5], "round-robin", true),
        ("rr", "lb_algo rr", [5, 5], "round-robin", false),
        ("rr", "lb_algo rr", [5, 0], "round-robin", false),
        ("wrr", "lb_algo wrr", [1, 5], "round-robin", false),
        ("lc", "lb_algo lc", [1, 5], "least-connections", true),
        ("mh", "lb_algo mh", [1, 1], "source-ip", false),
        ("mh -b mh-port", "lb_algo mh\n  mh-port", [1, 1], "maglev", false),
        ("sh -b sh-port", "lb_algo sh\n  sh-port", [1, 1], "maglev", false),
    ];
    for (ipvs, settings, weights, scheduler, told) in cases {
        for (kind, text) in
            [(Kind::Ipvsadm, rules(ipvs, weights)), (Kind::Keepalived, keepalived(settings, weights))]
        {
            let made = checked(kind, &text, &Options::default());
            // The default is not written.
            let written = made.toml.lines().find_map(|line| line.strip_prefix("scheduler = "));
            assert_eq!(written.unwrap_or("\"maglev\""), format!("\"{scheduler}\""), "{ipvs}: {}", made.toml);
            let remarks = format!("{:?}", made.remarks);
            assert_eq!(remarks.contains("does not look at weights"), told, "{ipvs} {weights:?}: {remarks}");
            assert!(!remarks.contains("Left"), "{remarks}");
        }
    }
}

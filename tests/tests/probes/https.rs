//! `http` and `https` against nginx.

use crate::{
    Host, LONG, PATIENCE,
    certificates::{Authority, Pair},
};
use lb_tests::{
    lab::{Process, Result, wait_for_port},
    require,
    skip::Need,
};
use lb_userspace::model::{HealthCheck, HttpCheck, StatusRange, TlsSpec};

const NAME: &str = "www.example.com";
pub(crate) const PLAIN: u16 = 80;
pub(crate) const GOOD: u16 = 443;
const EXPIRED: u16 = 444;
const OTHER: u16 = 445;
const CLIENTS: u16 = 446;

pub(crate) fn plain() -> HttpCheck {
    HttpCheck {
        method: "GET".into(),
        path: "/".into(),
        host: Some(NAME.into()),
        headers: Vec::new(),
        status: vec![StatusRange { lo: 200, hi: 299 }],
        body: None,
        tls: None,
    }
}

pub(crate) fn nginx(host: &Host, authority: &Authority) -> Result<Process> {
    let server = |port: u16, pair: &Pair, more: &str| {
        let (certificate, key) = (pair.certificate.display(), pair.key.display());
        format!(
            "server {{ listen {port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key}; {more}
               location = / {{ return 200 \"sni=$ssl_server_name host=$host probe=$http_x_probe via=$request_method\\n\"; }}
               location = /busy {{ return 503 \"later\\n\"; }} }}\n"
        )
    };
    let good = authority.sign(host, NAME, 2999);
    let expired = authority.sign(host, NAME, 2020);
    let other = authority.sign(host, "other.example", 2999);
    let clients = format!("ssl_client_certificate {}; ssl_verify_client on;", authority.file.display());
    let dir = host.lab.dir().display().to_string();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {dir}/{what};\n"))
        .concat();
    let text = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; events {{ worker_connections 512; }}
         http {{ access_log off; {temp} {}{}{}{}
           server {{ listen {PLAIN}; location / {{ return 200 \"status: fine\\n\"; }} }} }}",
        server(GOOD, &good, ""),
        server(EXPIRED, &expired, ""),
        server(OTHER, &other, ""),
        server(CLIENTS, &good, &clients),
    );
    let config = host.file("nginx.conf", text);
    let mut command = host.ns.command("nginx");
    command.arg("-p").arg(host.lab.dir()).arg("-c").arg(config).args(["-e", "stderr"]);
    let process = host.lab.spawn("nginx", command)?;
    wait_for_port(&host.ns, Host::at(CLIENTS), PATIENCE)?;
    Ok(process)
}

#[test]
fn https_tells_good_certificates_from_others() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nginx"));
    let host = Host::new()?;
    let authority = Authority::new(&host)?;
    let nginx = nginx(&host, &authority)?;
    let trusting = TlsSpec { ca_file: Some(authority.file.clone()), ..TlsSpec::default() };
    let tls = |tls: TlsSpec| HealthCheck::Http(HttpCheck { tls: Some(tls), ..plain() });
    let trusted = tls(trusting.clone());

    assert_eq!(host.check(&trusted, GOOD, LONG), Ok(()));
    let expired = host.fails(&trusted, EXPIRED);
    assert!(
        expired.starts_with("the server's certificate has expired ") && expired.ends_with(" days ago"),
        "{expired}"
    );
    let other = host.fails(&trusted, OTHER);
    assert!(other.contains("is not for 'www.example.com'") && other.contains("other.example"), "{other}");
    assert!(host.fails(&tls(TlsSpec::default()), GOOD).contains("an authority that is not known here"));
    // The name that is verified is the one that is asked for.
    let named = TlsSpec { server_name: Some("other.example".into()), ..trusting.clone() };
    assert_eq!(host.check(&tls(named), OTHER, LONG), Ok(()));
    let by_address = HealthCheck::Http(HttpCheck { host: None, tls: Some(trusting.clone()), ..plain() });
    assert!(host.fails(&by_address, GOOD).contains("is not for '127.0.0.1'"));

    let unverified = tls(TlsSpec { verify: false, ..TlsSpec::default() });
    for port in [GOOD, EXPIRED, OTHER] {
        assert_eq!(host.check(&unverified, port, LONG), Ok(()));
    }
    assert_eq!(host.fails(&trusted, PLAIN), "not a TLS answer");
    let plain_to_tls = host.fails(&HealthCheck::Http(plain()), GOOD);
    assert_eq!(plain_to_tls, "status 400, expected 200-299");
    // nginx says this with a status, not an alert.
    assert_eq!(host.fails(&trusted, CLIENTS), "status 400, expected 200-299");
    host.hangs_and_refuses(&trusted);
    assert_eq!(host.stops(&nginx, &trusted, GOOD), "connected, but no TLS handshake within 300ms");

    let missing = tls(TlsSpec { ca_file: Some("/nonexistent/ca.pem".into()), ..TlsSpec::default() });
    let failure = host.check(&missing, GOOD, LONG).expect_err("no authorities");
    assert!(failure.is_local() && failure.to_string().contains("/nonexistent/ca.pem"), "{failure}");
    host.leaks_nothing(&trusted, GOOD, true);
    Ok(())
}

#[test]
fn http_asks_and_judges_as_configured() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("nginx"));
    let host = Host::new()?;
    let authority = Authority::new(&host)?;
    let nginx = nginx(&host, &authority)?;
    let tls = TlsSpec { ca_file: Some(authority.file.clone()), ..TlsSpec::default() };
    let check = |change: &dyn Fn(&mut HttpCheck)| {
        let mut check = HttpCheck { tls: Some(tls.clone()), ..plain() };
        change(&mut check);
        HealthCheck::Http(check)
    };
    let body = |pattern: &str| Some(pattern.to_owned());
    let all = check(&|check| {
        check.headers = vec![("X-Probe".into(), "from lbd".into())];
        check.method = "POST".into();
        check.body = body("^sni=www\\.example\\.com host=www\\.example\\.com probe=from lbd via=POST\n$");
    });
    assert_eq!(host.check(&all, GOOD, LONG), Ok(()));
    let wrong = host.fails(&check(&|check| check.body = body("probe=somebody")), GOOD);
    assert!(wrong.starts_with("body does not match: 'sni=www.example.com"), "{wrong}");
    assert_eq!(
        host.fails(&check(&|check| check.path = "/busy".into()), GOOD),
        "status 503, expected 200-299"
    );
    let busy = check(&|check| {
        check.path = "/busy".into();
        check.status = vec![StatusRange { lo: 200, hi: 299 }, StatusRange { lo: 503, hi: 503 }];
        check.body = body("(?i)LATER");
    });
    assert_eq!(host.check(&busy, GOOD, LONG), Ok(()));
    let plain = HealthCheck::Http(HttpCheck { body: body("status: (ok|fine)"), ..plain() });
    assert_eq!(host.check(&plain, PLAIN, LONG), Ok(()));
    host.hangs_and_refuses(&plain);
    assert_eq!(host.stops(&nginx, &plain, PLAIN), "connected, but no answer within 300ms");
    host.leaks_nothing(&plain, PLAIN, true);
    Ok(())
}

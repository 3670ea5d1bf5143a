//! The dashboard in a real browser, on a desk and on a phone, against the API and through faults.

mod browser;

use std::{net::SocketAddr, time::Duration};

use browser::Page;
use lb_tests::{
    balancer::{Balancer, Service, Settings, web_servers},
    client::Requests,
    lab::{Result, Shape, Topology, wait_until},
    require,
    skip::Need,
};
use lb_userspace::control::api::{DropView, ServiceView};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn settings(topology: &Topology) -> Settings {
    let vrrp = format!(
        "\n[[vrrp]]\nname = \"public\"\ninterface = \"eth0\"\nrouter_id = 51\npriority = 150\n\
         advert_interval = \"100ms\"\naddresses = [\"{}/24\", \"{}/64\"]\n",
        topology.vip4(),
        topology.vip6()
    );
    let www = Service::www([topology.vip4(), topology.vip6()]).nodes(&topology.backends).checked();
    let api = Service::www([topology.vip4()])
        .name("api")
        .port(8080)
        .extra("on_all_down = \"reject\"\nquorum_up = 2")
        .nodes(&topology.backends)
        .health("type = \"tcp\"\nport = 80\ninterval = \"200ms\"\ntimeout = \"200ms\"");
    Settings { rest: vrrp, ..Settings::of([www, api]) }
}

const ROW: &str = "document.querySelector('[data-service=SERVICE] [data-backend=BACKEND]')";

fn row(service: &str, backend: &str) -> String {
    ROW.replace("SERVICE", service).replace("BACKEND", backend)
}

/// Texts of the cells of a backend, by their labels.
fn cells(page: &mut Page, service: &str, backend: &str) -> Value {
    page.eval(&format!(
        "Object.fromEntries([...{}.cells].map(cell => [cell.dataset.label, cell.innerText]))",
        row(service, backend)
    ))
}

/// What is on the page is what the API says; traffic must rest.
fn assert_equal_to_api(page: &mut Page, balancer: &Balancer<'_>) {
    let services: Vec<ServiceView> = balancer.services();
    let shown =
        page.eval("[...document.querySelectorAll('[data-service]')].map(card => card.dataset.service)");
    let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(shown, serde_json::json!(names));
    for service in &services {
        let card = format!("document.querySelector('[data-service={}]').innerText", service.name);
        let text = page.eval(&card).as_str().expect("text").to_owned();
        let total = page.eval(&format!("({}).toLocaleString('en')", service.packets));
        assert!(text.contains(&format!("{} packets", total.as_str().expect("text"))), "{text}");
        assert!(
            text.contains(&format!(
                "{} slots",
                page.eval(&format!("({}).toLocaleString('en')", service.slots.total)).as_str().expect("text")
            )),
            "{text}"
        );
        for backend in &service.backends {
            let cells = cells(page, &service.name, &backend.name);
            let cell = |label: &str| cells[label].as_str().unwrap_or_else(|| panic!("no {label}: {cells}"));
            assert!(cell("Backend").contains(&backend.address.to_string()), "{cells}");
            assert_eq!(cell("Admin").trim_start_matches("▲ "), backend.admin.to_string(), "{cells}");
            assert!(cell("Health").contains(&backend.health.to_string()), "{cells}");
            assert_eq!(cell("Weight"), backend.weight.to_string());
            let share = 100.0 * f64::from(backend.slots) / f64::from(service.slots.total);
            assert_eq!(cell("Share"), format!("{share:.1} %"));
            let total = page.eval(&format!("({}).toLocaleString('en')", backend.packets));
            assert_eq!(cell("Total"), total.as_str().expect("text"), "{cells}");
        }
    }
    let drops: Vec<DropView> = balancer.json(&["drops", "--all"]);
    let shown = page.eval(
        "Object.fromEntries([...document.querySelectorAll('[data-reason]')].map(row => \
         [row.dataset.reason, Number(row.cells[2].firstChild.innerText.replaceAll(',', ''))]))",
    );
    let expected: serde_json::Map<String, Value> = drops
        .into_iter()
        .filter(|drop| drop.packets > 0)
        .map(|drop| (drop.reason, drop.packets.into()))
        .collect();
    assert_eq!(shown, Value::Object(expected));
}

/// Texts whose contrast is too low for WCAG 2.2, 1.4.3, with the ratio.
const CONTRAST: &str = r"
(() => {
  const parse = text => (text.match(/[\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.getBoundingClientRect().width < 2) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push(node.innerText + ' ' + ratio.toFixed(2));
  }
  return poor;
})()";

/// Whatever sticks out at the right.
const TOO_WIDE: &str = "[...document.querySelectorAll('body *')].filter(node => node.checkVisibility() && \
    !node.closest('.hidden, .skip, thead') && node.getBoundingClientRect().right > innerWidth + 1).map(node => \
    node.tagName + ' ' + node.className + ' ' + node.innerText).concat(document.documentElement.scrollWidth > innerWidth ? \
    ['the page'] : [])";

const NOTHING: Value = Value::Array(Vec::new());

#[test]
fn the_page_shows_what_is_and_what_happens() -> Result<()> {
    require!(Need::Root, Need::Tool("ip"), Need::Tool("curl"), Need::Tool("chromium-headless-shell"));
    let topology = Topology::new(&Shape { vips_on_link: true, ..Shape::default() })?;
    let mut servers = web_servers(&topology, 0)?;
    let mut balancer = Balancer::start(&topology, settings(&topology))?;
    let mut page = Page::start(&topology.lab, &balancer.node.ns)?;
    page.resize(1280, 900, false);
    page.dark(false);
    page.call("Page.navigate", &serde_json::json!({"url": "http://127.0.0.1:9750/"}));
    page.wait("the services", "document.querySelectorAll('[data-service] [data-backend]').length === 6");
    page.wait("all is well", "document.querySelector('#trouble li.good') !== null");
    page.wait(
        "it is master",
        "document.querySelector('[data-router=public]').innerText.includes('● master')",
    );

    let load = Requests::to_all([topology.vip4(), topology.vip6()].map(|vip| SocketAddr::new(vip, 80)))
        .concurrency(2)
        .timeout(Duration::from_secs(1))
        .pause(Duration::from_millis(5))
        .start(&topology.client.ns);
    page.wait("a rate", "/^[1-9][\\d.]* k?pkt/.test(document.querySelector('.tile .value').innerText)");
    page.wait(
        "a curve",
        "document.querySelector('.tile polyline').getAttribute('points').split(' ').length > 5",
    );
    page.screenshot("desk-light.png");
    page.resize(390, 844, true);
    page.screenshot("phone-light.png");
    assert_eq!(page.eval(TOO_WIDE), NOTHING);
    page.dark(true);
    page.wait("the dark theme", "document.documentElement.classList.contains('dark')");
    page.screenshot("phone-dark.png");
    load.stop();
    wait_until("the counters rest", PATIENCE, || {
        let packets = |b: &Balancer<'_>| -> u64 { b.services().iter().map(|s| s.packets).sum() };
        let before = packets(&balancer);
        std::thread::sleep(Duration::from_millis(500));
        packets(&balancer) == before
    })?;
    std::thread::sleep(Duration::from_secs(3));
    assert_equal_to_api(&mut page, &balancer);
    page.resize(1280, 900, false);

    // Faults and changes.
    servers[1].kill();
    let health = |state: &str| format!("{}.cells[2].innerText.startsWith('{state}')", row("www", "web2"));
    page.wait("web2 is down on the page", &health("✖ down"));
    page.wait(
        "it says so on top",
        "document.querySelector('#trouble').innerText.includes('▲ service www: web2 is down')",
    );
    balancer.lbctl(&["backend", "drain", "www", "web3"]);
    balancer.lbctl(&["backend", "weight", "www", "web1", "7"]);
    page.wait(
        "web3 drains, web1 has another weight",
        &format!(
            "{}.cells[1].innerText === '▲ draining' && {}.cells[3].innerText === '7'",
            row("www", "web3"),
            row("www", "web1")
        ),
    );
    page.screenshot("desk-dark.png");
    for (dark, phone) in [(true, false), (false, false), (false, true), (true, true)] {
        page.dark(dark);
        page.resize(if phone { 390 } else { 1280 }, 844, phone);
        page.wait("the theme", &format!("document.documentElement.classList.contains('dark') === {dark}"));
        assert_eq!(page.eval(CONTRAST), NOTHING, "dark: {dark}, phone: {phone}");
        assert_eq!(page.eval(TOO_WIDE), NOTHING, "dark: {dark}, phone: {phone}");
    }
    assert_equal_to_api(&mut page, &balancer);

    // The filter, and the theme by hand.
    page.eval("filter.value = 'AP'; filter.dispatchEvent(new Event('input'))");
    assert_eq!(
        page.eval("[...document.querySelectorAll('[data-service]')].map(c => c.dataset.service)"),
        serde_json::json!(["api"])
    );
    page.eval("filter.value = ''; filter.dispatchEvent(new Event('input'))");
    assert_eq!(page.eval("document.querySelectorAll('[data-service]').length"), 2);
    page.eval("theme.value = 'light'; theme.dispatchEvent(new Event('change'))");
    assert_eq!(page.eval("document.documentElement.classList.contains('dark')"), false);

    // What becomes of a service as a whole, readable on a phone.
    const STATE: &str = "[...document.querySelectorAll('[data-pool]')].map(node => node.innerText)";
    assert_eq!(page.eval(STATE), serde_json::json!(["▲ degraded", "▲ degraded"]));
    page.resize(390, 844, true);
    for server in [0, 2] {
        servers[server].kill();
    }
    page.wait("all are down", &format!("{STATE}.join() === '✖ all down,✖ all down'"));
    let trouble = page.eval("document.querySelector('#trouble').innerText");
    let trouble = trouble.as_str().expect("text");
    assert!(
        trouble.contains("✖ service www: nobody takes new connections, packets are dropped"),
        "{trouble}"
    );
    assert!(
        trouble.contains("✖ service api: nobody takes new connections, packets are rejected"),
        "{trouble}"
    );
    assert_eq!(page.eval(TOO_WIDE), NOTHING);
    assert_eq!(page.eval(CONTRAST), NOTHING);
    page.screenshot("phone-all-down.png");
    servers[0].start(&topology.lab)?;
    page.wait(
        "one serves on, too few for the quorum of the other",
        &format!("{STATE}.join() === '▲ degraded,✖ no quorum'"),
    );
    assert_eq!(page.eval(TOO_WIDE), NOTHING);
    page.screenshot("phone-no-quorum.png");
    page.resize(1280, 900, false);
    servers[2].start(&topology.lab)?;

    servers[1].start(&topology.lab)?;
    page.wait("web2 is back", &health("● up"));
    assert_eq!(page.errors, Vec::<String>::new());

    // Names that cannot be, as if the daemon had said them.
    page.eval(
        "window.real = fetch; window.fetch = async (...all) => new Response((await (await real(...all)).text())\
         .replaceAll('web1', '<img src=x onerror=window.hacked=1><script>window.hacked=1</script>'))",
    );
    page.wait("the odd name", "document.querySelector('#services').innerText.includes('<img src=x onerror')");
    assert_eq!(
        page.eval("[document.images.length, document.scripts.length, window.hacked === undefined]"),
        serde_json::json!([0, 1, true])
    );
    // Even a script that got in would not run.
    page.eval(
        "(() => { const evil = document.createElement('script'); try { evil.text = 'window.hacked = 1'; } catch {} \
         document.body.appendChild(evil); })()",
    );
    assert_eq!(page.eval("window.hacked === undefined"), true);
    page.eval("window.fetch = real");
    page.errors.clear();

    // A daemon that is gone.
    balancer.stop()?;
    page.wait(
        "the banner",
        "!document.querySelector('#banner').hidden && document.body.className === 'stale'",
    );
    balancer.restart()?;
    page.wait("the banner is gone", "document.querySelector('#banner').hidden");
    page.errors.retain(|error| !error.contains("ERR_CONNECTION") && !error.contains("ERR_EMPTY_RESPONSE"));
    assert_eq!(page.errors, Vec::<String>::new());
    // Each second, as long as the daemon was there.
    assert!(page.requests.len() > 5, "{:?}", page.requests);
    for request in &page.requests {
        assert!(request.starts_with("http://127.0.0.1:9750/") || request.starts_with("data:"), "{request}");
    }
    Ok(())
}

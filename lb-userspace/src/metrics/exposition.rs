//! A strict reader of both formats, and what the exposition of the sample must be.

use super::{Format, Instruments, encode, sample};
use crate::model::{Admin, Health};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

type Labels = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct Parsed {
    /// Type and help by name, as written.
    families: BTreeMap<String, (String, String)>,
    samples: BTreeMap<(String, Labels), f64>,
}

impl Parsed {
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let key = (name.to_owned(), labels);
        *self.samples.get(&key).unwrap_or_else(|| panic!("no sample {key:?} in {:#?}", self.samples))
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Labels after the opening brace; what follows the closing one.
fn labels(mut rest: &str) -> Result<(Labels, &str), String> {
    let mut labels = Labels::new();
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("a label without =\"")?;
        if !is_name(name) {
            return Err(format!("'{name}' is no label name"));
        }
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().ok_or("a label value without end")? {
                (at, '"') => break at + 1,
                (_, '\\') => match chars.next().map(|(_, c)| c) {
                    Some('n') => value.push('\n'),
                    Some(c @ ('"' | '\\')) => value.push(c),
                    other => return Err(format!("escape \\{other:?}")),
                },
                (_, c) => value.push(c),
            }
        };
        if labels.insert(name.to_owned(), value).is_some() {
            return Err(format!("label {name} twice"));
        }
        match after[end..].chars().next() {
            Some(',') => rest = &after[end + 1..],
            Some('}') => return Ok((labels, &after[end + 1..])),
            other => return Err(format!("{other:?} after a label")),
        }
    }
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            text.parse().map_err(|_| format!("'{text}' is no number"))
        }
        _ => Err(format!("'{text}' is no number")),
    }
}

/// Refuses whatever the format does not allow: samples outside their family, wrong suffixes, families or
/// series twice, `# EOF` missing or misplaced, histograms that are not cumulative.
fn parse(text: &str, format: Format) -> Result<Parsed, String> {
    let openmetrics = format == Format::OpenMetrics;
    let body = match (text.strip_suffix("# EOF\n"), openmetrics) {
        (Some(body), true) => body,
        (None, false) => text,
        (found, _) => return Err(format!("# EOF: {}", found.is_some())),
    };
    if !body.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let mut parsed = Parsed::default();
    let mut help: Option<(String, String)> = None;
    let mut family = (String::new(), String::new());
    for line in body[..body.len() - 1].split('\n') {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').ok_or("HELP without text")?;
            if text.is_empty() || text.contains(['\\', '"']) {
                return Err(format!("help of {name}: {text}"));
            }
            help = Some((name.to_owned(), text.to_owned()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or("TYPE without type")?;
            let (described, text) = help.take().ok_or(format!("{name} has no help before its type"))?;
            if described != name || !is_name(name) {
                return Err(format!("help of {described} before the type of {name}"));
            }
            let known: &[&str] = if openmetrics {
                &["counter", "gauge", "histogram", "info", "unknown"]
            } else {
                &["counter", "gauge", "histogram", "untyped"]
            };
            if !known.contains(&kind)
                || (openmetrics && (name.ends_with("_total") || name.ends_with("_info")))
            {
                return Err(format!("{name} of type {kind}"));
            }
            if parsed.families.insert(name.to_owned(), (kind.to_owned(), text)).is_some() {
                return Err(format!("{name} twice"));
            }
            family = (name.to_owned(), kind.to_owned());
        } else {
            if line.starts_with('#') || help.is_some() {
                return Err(format!("'{line}' is out of place"));
            }
            let end = line.find(['{', ' ']).ok_or("a sample without value")?;
            let name = &line[..end];
            let (labels, rest) = match line[end..].strip_prefix('{') {
                Some(rest) => labels(rest)?,
                None => (Labels::new(), &line[end..]),
            };
            let value = number(rest.strip_prefix(' ').ok_or("no space before a value")?)?;
            let suffixes: &[&str] = match (family.1.as_str(), openmetrics) {
                ("counter", true) => &["_total"],
                ("info", true) => &["_info"],
                ("histogram", _) => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            let suffix = name.strip_prefix(family.0.as_str()).ok_or(format!("{name} in {}", family.0))?;
            if !suffixes.contains(&suffix) || (suffix == "_bucket") != labels.contains_key("le") {
                return Err(format!("{name}{labels:?} in {family:?}"));
            }
            if parsed.samples.insert((name.to_owned(), labels), value).is_some() {
                return Err(format!("'{line}' twice"));
            }
        }
    }
    cumulative(&parsed)?;
    Ok(parsed)
}

fn cumulative(parsed: &Parsed) -> Result<(), String> {
    let mut histograms: BTreeMap<(&str, Labels), Vec<(f64, f64)>> = BTreeMap::new();
    for ((name, labels), value) in &parsed.samples {
        if let (Some(family), Some(le)) = (name.strip_suffix("_bucket"), labels.get("le")) {
            let mut series = labels.clone();
            series.remove("le");
            histograms.entry((family, series)).or_default().push((number(le)?, *value));
        }
    }
    for ((family, labels), mut buckets) in histograms {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = parsed.samples[&(format!("{family}_count"), labels.clone())];
        if !buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1)
            || buckets.last() != Some(&(f64::INFINITY, count))
        {
            return Err(format!("{family}{labels:?}: {buckets:?}, count {count}"));
        }
    }
    Ok(())
}

fn text(format: Format) -> String {
    encode(Arc::new(sample::snapshot()), sample::instruments(), format).unwrap()
}

fn both() -> [(Format, Parsed); 2] {
    [Format::OpenMetrics, Format::Text].map(|format| {
        let text = text(format);
        (format, parse(&text, format).unwrap_or_else(|error| panic!("{error}\n{text}")))
    })
}

/// The golden files are what `LBD_BLESS=1 cargo test -p lb-userspace exposition` wrote last.
fn golden(file: &str, expected: &str, found: &str) {
    if std::env::var_os("LBD_BLESS").is_some() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/metrics/golden").join(file);
        std::fs::write(&path, found).unwrap();
        return;
    }
    for (line, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(expected, found, "line {} of {file}", line + 1);
    }
    assert_eq!(expected, found, "{file}");
}

#[test]
fn the_openmetrics_text_is_as_recorded() {
    golden("openmetrics.txt", include_str!("golden/openmetrics.txt"), &text(Format::OpenMetrics));
}

#[test]
fn the_prometheus_text_is_as_recorded() {
    golden("text.txt", include_str!("golden/text.txt"), &text(Format::Text));
}

#[test]
fn both_formats_obey_their_rules_and_say_the_same() {
    let [(_, openmetrics), (_, text)] = both();
    assert_eq!(openmetrics.samples, text.samples);
    for (name, (kind, help)) in &openmetrics.families {
        let (name, kind) = match kind.as_str() {
            "counter" => (format!("{name}_total"), "counter"),
            "info" => (format!("{name}_info"), "gauge"),
            other => (name.clone(), other),
        };
        assert_eq!(text.families.get(&name), Some(&(kind.to_owned(), help.clone())), "{name}");
    }
    assert_eq!(openmetrics.families.len(), text.families.len());
}

#[test]
fn names_follow_the_rules_of_prometheus() {
    let [_, (_, text)] = both();
    for (name, (kind, help)) in &text.families {
        assert!(name.starts_with("lbd_") || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(help.ends_with('.') && help.len() > 20, "{name}: {help}");
        for bad in ["_count", "_sum", "_bucket", "_milliseconds", "_ms", "_kilobytes"] {
            assert!(!name.ends_with(bad), "{name}");
        }
    }
    for (name, labels) in text.samples.keys() {
        for reserved in ["instance", "job"] {
            // A VRRP instance is called so by everybody; Prometheus shows its label as exported_instance.
            if reserved == "instance" && name.starts_with("lbd_vrrp_") {
                continue;
            }
            assert!(!labels.contains_key(reserved), "{name} carries Prometheus' own label {reserved}");
        }
    }
}

#[test]
fn the_names_of_the_contract_are_there() {
    for (format, parsed) in both() {
        let names: BTreeSet<&str> = parsed.samples.keys().map(|(name, _)| name.as_str()).collect();
        for name in [
            "lbd_service_packets_total",
            "lbd_service_bytes_total",
            "lbd_backend_packets_total",
            "lbd_backend_bytes_total",
            "lbd_backend_up",
            "lbd_vrrp_state",
            "lbd_vrrp_transitions_total",
            "lbd_backend_weight",
            "lbd_health_check_duration_seconds_bucket",
            "lbd_health_check_duration_seconds_sum",
            "lbd_health_check_duration_seconds_count",
            "lbd_drops_total",
            "lbd_build_info",
        ] {
            assert!(names.contains(name), "{name} in {format:?}");
        }
    }
}

#[test]
fn values_are_those_of_the_snapshot() {
    for (_, parsed) in both() {
        let web1 = [("service", "www"), ("backend", "web1")];
        let web2 = [("service", "www"), ("backend", "web2")];
        let ns1 = [("service", "dns.v6"), ("backend", "ns1")];
        assert_eq!(parsed.value("lbd_service_bytes_total", &[("service", "www")]), 120_000.0);
        assert_eq!(parsed.value("lbd_backend_packets_total", &web1), 600.0);
        assert_eq!(parsed.value("lbd_backend_up", &web1), 1.0);
        assert_eq!(parsed.value("lbd_backend_up", &web2), 0.0);
        assert_eq!(parsed.value("lbd_backend_up", &ns1), 1.0, "unknown counts as up");
        assert_eq!(parsed.value("lbd_backend_reachable", &web2), 0.0);
        for (state, value) in [("enabled", 0.0), ("draining", 1.0), ("disabled", 0.0)] {
            let labels = [web2[0], web2[1], ("state", state)];
            assert_eq!(parsed.value("lbd_backend_admin", &labels), value, "{state}");
        }
        let slots = |state| parsed.value("lbd_ring_slots", &[("service", "www"), ("state", state)]);
        assert_eq!((slots("plain"), slots("moving"), slots("tracked")), (300.0, 5.0, 2.0));
        assert_eq!(parsed.value("lbd_drops_total", &[("reason", "ttl")]), 3.0);
        assert_eq!(parsed.value("lbd_config_reloads_total", &[("result", "applied")]), 2.0);
        assert_eq!(parsed.value("lbd_config_reloads_total", &[("result", "refused")]), 1.0);
        assert_eq!(parsed.value("lbd_config_last_reload_successful", &[]), 0.0);
        let checks = [("service", "www"), ("type", "http")];
        assert_eq!(parsed.value("lbd_health_check_duration_seconds_count", &checks), 3.0);
        assert_eq!(parsed.value("lbd_health_check_failures_total", &checks), 1.0);
        let bucket = |le| {
            let labels = [checks[0], checks[1], ("le", le)];
            parsed.value("lbd_health_check_duration_seconds_bucket", &labels)
        };
        assert_eq!((bucket("0.0005"), bucket("0.0025"), bucket("0.005")), (1.0, 1.0, 2.0));
        assert_eq!((bucket("10.0"), bucket("+Inf")), (2.0, 3.0));
        assert!(
            !parsed
                .samples
                .keys()
                .any(|(_, labels)| labels.get("service").is_some_and(|value| value == "gone")),
            "a service that was removed has no series"
        );
    }
    // Beyond the 53 bits of a float every digit must be there.
    let line = format!("lbd_backend_packets_total{{service=\"www\",backend=\"web2\"}} {}\n", u64::MAX);
    assert!(text(Format::Text).contains(&line));
}

#[test]
fn counters_never_fall_while_checks_run() {
    let instruments = Instruments::default();
    let mut snapshot = sample::snapshot();
    let worker = instruments.clone();
    let checks = std::thread::spawn(move || {
        for n in 0..20_000_u64 {
            worker.health.observe("www", "http", Duration::from_micros(n), n % 3 != 0);
        }
    });
    let mut before = Parsed::default();
    for round in 1..=20 {
        snapshot.services[0].packets += round;
        snapshot.services[0].backends[0].bytes += round * 1000;
        snapshot.drops[1].packets += 1;
        let text = encode(Arc::new(snapshot.clone()), instruments.clone(), Format::Text).unwrap();
        let now = parse(&text, Format::Text).unwrap();
        for ((name, labels), value) in &before.samples {
            if ["_total", "_count", "_bucket", "_sum"].iter().any(|suffix| name.ends_with(suffix)) {
                assert!(now.samples[&(name.clone(), labels.clone())] >= *value, "{name}{labels:?} fell");
            }
        }
        before = now;
    }
    checks.join().unwrap();
    let text = encode(Arc::new(snapshot), instruments, Format::Text).unwrap();
    let last = parse(&text, Format::Text).unwrap();
    let labels = [("service", "www"), ("type", "http")];
    assert_eq!(last.value("lbd_health_check_duration_seconds_count", &labels), 20_000.0);
    assert_eq!(last.value("lbd_health_check_failures_total", &labels), 6667.0);
}

#[test]
fn removed_services_are_forgotten() {
    let instruments = sample::instruments();
    instruments.health.retain(|service| service != "gone");
    let left: Vec<String> = instruments.health.rows().into_iter().map(|(service, ..)| service).collect();
    assert_eq!(left, ["www"]);
}

#[test]
fn the_strict_reader_is_strict() {
    let good = "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"\\\"\\\\\\n\"} 1\n";
    assert_eq!(parse(good, Format::Text).unwrap().value("a_total", &[("x", "\"\\\n")]), 1.0);
    for bad in [
        "a_total 1\n",
        "# TYPE a counter\na 1\n",
        "# HELP a Help.\n# TYPE a gauge\na 1\na 1\n",
        "# HELP a Help.\n# TYPE a gauge\na{,x=\"1\"} 1\n",
        "# HELP a Help.\n# TYPE a gauge\na{x=\"1\n\"} 1\n",
        "# HELP a Help.\n# TYPE a gauge\na NaN\n",
        "# HELP a Help.\n# TYPE a gauge\na 1",
        "# HELP a Help.\n# TYPE a gauge\na 1\n# EOF\n",
    ] {
        assert!(parse(bad, Format::Text).is_err(), "{bad}");
    }
    let om = "# HELP a Help.\n# TYPE a counter\na_total 1\n";
    assert!(parse(om, Format::OpenMetrics).is_err(), "no # EOF");
    assert!(parse(&format!("{om}# EOF\n"), Format::OpenMetrics).is_ok());
}

#[test]
fn the_format_is_what_the_scraper_asks_for() {
    use Format::{OpenMetrics, Text};
    let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
        application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
        text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (accept, expected) in [
        (None, Text),
        (Some("*/*"), Text),
        (Some(""), Text),
        (Some("text/plain"), Text),
        (Some("text/plain;version=0.0.4"), Text),
        (Some("text/html,application/xhtml+xml,*/*;q=0.8"), Text),
        (Some("application/openmetrics-text"), OpenMetrics),
        (Some("Application/OpenMetrics-Text; version=1.0.0; charset=utf-8"), OpenMetrics),
        (Some("text/plain, application/openmetrics-text;q=0.5"), Text),
        (Some("text/plain;q=0.5, application/openmetrics-text;q=0.5"), OpenMetrics),
        (Some("application/openmetrics-text;q=0"), Text),
        (Some(prometheus_3), OpenMetrics),
    ] {
        assert_eq!(Format::negotiate(accept), expected, "{accept:?}");
    }
}

proptest! {
    #[test]
    fn no_accept_header_panics(accept: String) {
        let _ = Format::negotiate(Some(&accept));
    }

    /// Whatever the names are, both formats stay readable and give them back.
    #[test]
    fn any_label_survives(names in proptest::collection::btree_set(any::<String>(), 1..5)) {
        let mut snapshot = sample::snapshot();
        snapshot.services = names
            .iter()
            .map(|name| sample::service(name, vec![sample::backend(name, Admin::Enabled, Health::Up)]))
            .collect();
        let snapshot = Arc::new(snapshot);
        for format in [Format::OpenMetrics, Format::Text] {
            let text = encode(snapshot.clone(), Instruments::default(), format).unwrap();
            let parsed = parse(&text, format).map_err(TestCaseError::fail)?;
            for name in &names {
                parsed.value("lbd_backend_weight", &[("service", name), ("backend", name)]);
            }
        }
    }
}

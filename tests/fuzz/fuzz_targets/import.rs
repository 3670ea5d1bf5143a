//! Imports: no text makes them panic, what they make is a configuration that lbd accepts, and every line that says
//! something was taken over or remarked.
#![no_main]

use lb_userspace::{
    config::parse_on,
    import::{Kind, Options, import},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| {
    let (choice, text) = input;
    let kind = [Kind::Keepalived, Kind::Haproxy, Kind::Ipvsadm][usize::from(choice % 3)];
    let addresses = if choice & 8 == 0 { Vec::new() } else { vec!["192.0.2.99".parse().unwrap()] };
    let made = import(kind, "fuzz", text, &Options { addresses, ..Options::default() });
    if let Err(error) = parse_on("lbd.toml", &made.toml, "host1") {
        panic!("{error}\n{}", made.toml);
    }
    for (line, text) in text.lines().enumerate().map(|(i, text)| (i + 1, text.trim())) {
        let blank = text.is_empty() || text.starts_with(['#', '!']) || matches!(text, "{" | "}");
        let said = made.mapped.contains(&line) || made.remarks.iter().any(|r| (r.line..=r.to).contains(&line));
        assert!(blank || said, "line {line}: {text}");
    }
});

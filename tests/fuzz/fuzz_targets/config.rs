//! The configuration parser: no text makes it panic, every problem stays on its line, and what it
//! accepts it prints so that it reads back.
#![no_main]

use lb_userspace::config::parse_on;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match parse_on("lbd.toml", text, "host1") {
        Ok(config) => {
            let printed = config.to_toml();
            let again = parse_on("lbd.toml", &printed, "host2");
            let again = again.unwrap_or_else(|error| panic!("{error}\n{printed}"));
            assert_eq!(again.services, config.services);
            assert_eq!(again.hash(), config.hash());
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            assert_eq!(error.to_string().lines().count(), error.problems.len());
        }
    }
});

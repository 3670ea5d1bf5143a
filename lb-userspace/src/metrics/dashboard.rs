//! The built-in page: three files without any reference to the outside, that draw `/api/snapshot.json`.

/// Path, type and text of its files.
pub(super) const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", HTML),
    ("/dashboard.css", "text/css; charset=utf-8", include_str!("dashboard.css")),
    ("/dashboard.js", "text/javascript; charset=utf-8", SCRIPT),
];

const HTML: &str = include_str!("dashboard.html");
const SCRIPT: &str = include_str!("dashboard.js");

/// The page may load its own script and style and ask this server, nothing else, and nothing inline is run; the plain
/// answers need not even that. Text from the daemon is only ever put into text nodes.
pub(super) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'";

#[cfg(test)]
mod tests {
    use super::{super::sample, FILES, HTML, SCRIPT};
    use std::collections::BTreeSet;

    #[test]
    fn the_page_refers_to_nothing_outside() {
        for (path, _, text) in FILES {
            // The name of a namespace, which nobody fetches.
            let text = text.replace("'http://www.w3.org/2000/svg'", "");
            for bad in ["http:", "https:", "//www", "@import", "url(", "WebSocket", "eval(", "import("] {
                assert!(!text.contains(bad), "{bad} in {path}");
            }
        }
        let references: Vec<&str> = HTML
            .split_whitespace()
            .filter(|word| word.starts_with("src=") || word.starts_with("href="))
            .collect();
        assert_eq!(references.len(), HTML.matches("src=").count() + HTML.matches("href=").count());
        for reference in references {
            let inside = ["=\"/dashboard.", "=\"data:,", "=\"#"].iter().any(|kind| reference.contains(kind));
            assert!(inside, "{reference}");
        }
    }

    /// By the policy neither would run.
    #[test]
    fn nothing_is_inline() {
        for bad in ["<style", " style=", " onclick", " onload", "javascript:", "<script>"] {
            assert!(!HTML.contains(bad), "{bad}");
        }
    }

    #[test]
    fn text_from_the_daemon_cannot_become_markup() {
        for bad in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "createContextualFragment"]
        {
            assert!(!SCRIPT.contains(bad), "{bad}");
        }
        // Attributes: by name, of a few kinds that carry no script.
        for (at, call) in SCRIPT.match_indices("setAttribute(") {
            let name = &SCRIPT[at + call.len()..];
            let name = name.strip_prefix('\'').and_then(|n| n.split('\'').next()).expect("a literal name");
            let harmless = [
                "class",
                "viewBox",
                "preserveAspectRatio",
                "aria-hidden",
                "fill",
                "stroke",
                "stroke-width",
                "vector-effect",
                "points",
            ];
            assert!(harmless.contains(&name), "{name}");
        }
    }

    /// Every `status.x`, `service.x` and so on of the script is a field that is served.
    #[test]
    fn the_page_reads_fields_that_exist() {
        let json = serde_json::to_value(sample::snapshot()).unwrap();
        let keys = |value: &serde_json::Value| -> BTreeSet<String> {
            let rows = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            rows.iter().flat_map(|row| row.as_object().unwrap().keys().cloned()).collect()
        };
        let services = json["services"].as_array().unwrap();
        let backends = services.iter().flat_map(|s| s["backends"].as_array().unwrap().clone());
        for (variable, fields) in [
            ("snapshot", keys(&json)),
            ("status", keys(&json["status"])),
            ("nic", keys(&json["status"]["interfaces"])),
            ("room", keys(&json["status"]["tables"])),
            ("service", keys(&json["services"])),
            ("slots", keys(&json["services"][0]["slots"])),
            ("backend", keys(&backends.collect())),
            ("drop", keys(&json["drops"])),
            ("router", keys(&json["pair"])),
            ("process", keys(&json["process"])),
        ] {
            let mut used = 0;
            for (at, _) in SCRIPT.match_indices(&format!("{variable}.")) {
                if SCRIPT[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "._$/".contains(c)) {
                    continue;
                }
                let rest = &SCRIPT[at + variable.len() + 1..];
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap();
                // Collections of the language.
                if rest[..end] == *"appendChild" {
                    continue;
                }
                assert!(fields.contains(&rest[..end]), "{variable}.{}", &rest[..end]);
                used += 1;
            }
            assert!(used > 0, "the page shows nothing of {variable}");
        }
    }
}

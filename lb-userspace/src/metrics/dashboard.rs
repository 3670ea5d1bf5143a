//! The built-in page. One file without any reference to the outside; it draws `/api/snapshot.json`.

/// The page.
pub(super) const HTML: &str = include_str!("dashboard.html");

/// The page may run its own inline script and style and ask this server, nothing else; the plain answers
/// need not even that. Text from the daemon is only ever put into text nodes.
pub(super) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
    style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::HTML;
    use std::collections::BTreeSet;

    #[test]
    fn the_page_refers_to_nothing_outside() {
        for bad in ["http:", "https:", "src=", "@import", "url(", "WebSocket", "eval("] {
            assert!(!HTML.contains(bad), "{bad}");
        }
    }

    #[test]
    fn text_from_the_daemon_cannot_become_markup() {
        for bad in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "setAttribute"] {
            assert!(!HTML.contains(bad), "{bad}");
        }
    }

    /// Every `status.x`, `service.x`, `backend.x`, `nic.x` and `drop.x` of the script is a field that is served.
    #[test]
    fn the_page_reads_fields_that_exist() {
        let json = serde_json::to_value(sample::snapshot()).unwrap();
        let keys = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let service = &json["services"][0];
        for (variable, fields) in [
            ("snapshot", keys(&json)),
            ("status", keys(&json["status"])),
            ("nic", keys(&json["status"]["interfaces"][1])),
            ("service", keys(service)),
            ("backend", keys(&service["backends"][1])),
            ("drop", keys(&json["drops"][0])),
        ] {
            let mut used = 0;
            for (at, _) in HTML.match_indices(&format!("{variable}.")) {
                if HTML[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "._$/".contains(c)) {
                    continue;
                }
                let rest = &HTML[at + variable.len() + 1..];
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap();
                assert!(fields.contains(&rest[..end]), "{variable}.{}", &rest[..end]);
                used += 1;
            }
            assert!(used > 0, "the page shows nothing of {variable}");
        }
    }
}

//! `lbctl fleet`.

use super::table::{
    Align::{Left, Right},
    printable, printable_lines, table,
};
use crate::control::{
    client::{Client, ClientError},
    fleet::{FleetDocument, FleetNode, FleetView, PutAnswer, PutDocument},
};
use clap::Subcommand;
use std::{fmt::Write as _, fs, io::Read as _, path::PathBuf};

pub const FLEET_EXAMPLES: &str = "\
Examples:
  lbctl fleet                         etcd, generation in force, who has the word, do all agree?
  lbctl fleet get > fleet.toml        the document; its first line says which generation it is
  vi fleet.toml
  lbctl fleet put fleet.toml          checked here, written if unchanged since, taken by all nodes
  lbctl fleet put fleet.toml --force  also where it is more than max_disruption

A document that a node cannot take stays in etcd, and that node goes on as it is: `lbctl fleet`
tells why.";

/// How the first line of a document that was read begins; it is no part of it.
const MARK: &str = "# lbctl fleet get: generation ";
/// Largest file that is read, in bytes; etcd takes less.
const MAX_FILE: u64 = 16 << 20;

#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// etcd, the generation in force, the nodes; also without a word
    #[command(after_help = FLEET_EXAMPLES)]
    Status,
    /// Prints the document that is in etcd
    #[command(after_help = FLEET_EXAMPLES)]
    Get,
    /// Checks a document and writes it into etcd, for all nodes
    #[command(after_help = FLEET_EXAMPLES)]
    Put {
        /// TOML; - is the standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Only if the document in etcd is of this generation, 0 if there is none [default: as the first line says that `get` prints, else the one in etcd]
        #[arg(long, value_name = "N")]
        if_generation: Option<u64>,
        /// Every node takes it, also where it is more than the max_disruption of a service
        #[arg(long)]
        force: bool,
    },
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct FileError {
    file: PathBuf,
    why: String,
}

/// A document to write, and the generation it was made from.
fn split(text: &str) -> (Option<u64>, &str) {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    match first.strip_prefix(MARK).map(|rest| rest.split(' ').next().unwrap_or_default().parse()) {
        Some(Ok(generation)) => (Some(generation), rest),
        _ => (None, text),
    }
}

/// Reads what shall be written.
pub fn read(file: &PathBuf, if_generation: Option<u64>, force: bool) -> Result<PutDocument, FileError> {
    let failed = |why: String| FileError { file: file.clone(), why };
    let mut bytes = Vec::new();
    let source: Box<dyn std::io::Read> = if file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(fs::File::open(file).map_err(|error| failed(error.to_string()))?)
    };
    source.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed("is too large for etcd".to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|_| failed("is no text in UTF-8".to_owned()))?;
    let (generation, text) = split(&text);
    Ok(PutDocument {
        // Lines are counted as in the file.
        text: if generation.is_some() { format!("\n{text}") } else { text.to_owned() },
        if_generation: if_generation.or(generation),
        force,
        name: Some(file.display().to_string()),
    })
}

/// Writes it.
pub async fn put(client: &Client, mut put: PutDocument) -> Result<PutAnswer, ClientError> {
    if put.if_generation.is_none() {
        put.if_generation = Some(client.fleet_document().await?.generation);
    }
    client.fleet_put(&put).await
}

pub fn render_document(document: &FleetDocument) -> String {
    let FleetDocument { key, generation, text } = document;
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    // The line that a put leaves empty in the place of this one.
    let text = text.strip_prefix('\n').unwrap_or(text);
    format!("{MARK}{generation} of {}\n{}{gap}", printable(key), printable_text(text))
}

/// As it is, but for what would talk to the terminal.
fn printable_text(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !"\n\t\r".contains(c) { '\u{fffd}' } else { c }).collect()
}

pub fn render_put(answer: &PutAnswer) -> String {
    let mut text = format!("{}\n", printable_lines(&answer.message));
    for warning in &answer.warnings {
        let _ = writeln!(text, "warning: {}", printable_lines(warning));
    }
    text
}

pub fn render(view: &FleetView) -> String {
    if !view.configured {
        return "no [fleet] in the configuration\n".to_owned();
    }
    let mut text = String::new();
    let etcd = match (&view.endpoint, &view.error) {
        (Some(endpoint), _) => format!("connected to {}", printable(endpoint)),
        (None, Some(error)) => format!("not connected: {}", printable(error)),
        (None, None) => "not connected".to_owned(),
    };
    let number = |generation: Option<u64>| generation.map_or("none".to_owned(), |number| number.to_string());
    let copy = if view.from_copy { " (the last good copy on disk)" } else { "" };
    let by = view
        .put_by
        .as_ref()
        .map_or(String::new(), |put| format!(", by {} on {}", printable(&put.by), printable(&put.node)));
    let authority = match (&view.authority.holder, view.authority.mine) {
        (_, true) => "this node".to_owned(),
        (Some(holder), false) => printable(holder),
        (None, false) => "nobody is known to be it".to_owned(),
    };
    let rows = [
        ("etcd", etcd),
        ("document", printable(view.key.as_deref().unwrap_or("-"))),
        (
            "generation",
            format!("{} here{copy}, {} in etcd{by}", number(view.generation), number(view.stored_generation)),
        ),
        ("services", format!("hash {}", printable(&view.services_hash))),
        ("authority", format!("{authority}, epoch {}", view.authority.epoch)),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<11} {value}");
    }
    if let Some(refused) = &view.refused {
        let _ = writeln!(
            text,
            "generation {} is refused: {}\n`lbctl reload` tries it again",
            refused.generation,
            printable_lines(&refused.reason)
        );
    }
    if view.namesake {
        text +=
            "another daemon registers itself under the name of this node: names must be unique in a fleet\n";
    }
    if view.nodes.is_empty() {
        return text;
    }
    text += &table(
        [
            ("NODE", Left),
            ("VERSION", Left),
            ("GENERATION", Right),
            ("SERVICES", Left),
            ("RINGS", Left),
            ("REFUSED", Left),
        ],
        view.nodes.iter().map(|node| {
            [
                node.name.clone(),
                node.version.clone(),
                node.generation.to_string(),
                if node.same_services { "the same" } else { "differ" }.to_owned(),
                rings(node),
                node.refused.as_ref().map_or("-".to_owned(), |refused| {
                    format!("{}: {}", refused.generation, refused.reason.lines().next().unwrap_or_default())
                }),
            ]
        }),
    );
    text
}

fn rings(node: &FleetNode) -> String {
    match (node.same_rings, node.different_rings.as_slice()) {
        (true, _) => "the same".to_owned(),
        (false, []) => "differ".to_owned(),
        (false, names) => format!("differ: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fleet::{FleetAuthority, FleetPut, FleetRefusal};

    #[test]
    fn what_get_prints_knows_its_generation() {
        let document = FleetDocument {
            key: "/lbd/prod/config".to_owned(),
            generation: 17,
            text: "[[service]]\nname = \"www\"".to_owned(),
        };
        let text = render_document(&document);
        assert!(text.starts_with("# lbctl fleet get: generation 17 of /lbd/prod/config\n"), "{text}");
        assert_eq!(split(&text), (Some(17), "[[service]]\nname = \"www\"\n"));
        assert_eq!(split("a = 1\n"), (None, "a = 1\n"));
        assert_eq!(split(""), (None, ""));
        assert_eq!(split("# lbctl fleet get: generation x\n"), (None, "# lbctl fleet get: generation x\n"));
    }

    #[test]
    fn lines_of_a_document_are_those_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fleet.toml");
        fs::write(&file, "# lbctl fleet get: generation 17 of /x\nb = 2\n").unwrap();
        let put = read(&file, None, false).unwrap();
        assert_eq!((put.if_generation, put.text.as_str()), (Some(17), "\nb = 2\n"));
        assert_eq!(read(&file, Some(3), false).unwrap().if_generation, Some(3));
        let document = FleetDocument { key: "/x".to_owned(), generation: 18, text: put.text };
        assert_eq!(render_document(&document), "# lbctl fleet get: generation 18 of /x\nb = 2\n");
        fs::write(&file, [0xff]).unwrap();
        assert!(read(&file, None, false).unwrap_err().to_string().ends_with("is no text in UTF-8"));
        assert!(read(&dir.path().join("none"), None, false).is_err());
    }

    #[test]
    fn what_an_operator_sees() {
        assert_eq!(render(&FleetView::default()), "no [fleet] in the configuration\n");
        let node = |name: &str, generation| FleetNode {
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            generation,
            services_hash: "00ff".to_owned(),
            same_services: generation == 17,
            same_rings: generation == 17,
            different_rings: if generation == 17 { Vec::new() } else { vec!["www".to_owned()] },
            refused: (generation != 17)
                .then(|| FleetRefusal { generation: 17, reason: "line 3:\nand more".to_owned() }),
        };
        let view = FleetView {
            configured: true,
            key: Some("/lbd/prod/config".to_owned()),
            endpoint: Some("http://10.9.0.5:2379".to_owned()),
            generation: Some(17),
            stored_generation: Some(17),
            put_by: Some(FleetPut {
                by: "uid 0 (root)".to_owned(),
                node: "lb2".to_owned(),
                ..FleetPut::default()
            }),
            services_hash: "00ff".to_owned(),
            authority: FleetAuthority { mine: false, holder: Some("lb2".to_owned()), epoch: 9 },
            nodes: vec![node("lb1", 17), node("lb2", 12)],
            ..FleetView::default()
        };
        let expected = "etcd connected to http://10.9.0.5:2379\ndocument /lbd/prod/config\n\
            generation 17 here, 17 in etcd, by uid 0 (root) on lb2\nservices hash 00ff\nauthority lb2, epoch 9\n\
            NODE VERSION GENERATION SERVICES RINGS REFUSED\nlb1 0.1.0 17 the same the same -\n\
            lb2 0.1.0 12 differ differ: www 17: line 3:\n";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(&render(&view)), squeezed(expected));
        let alone = FleetView {
            configured: true,
            error: Some("connection refused".to_owned()),
            generation: Some(3),
            from_copy: true,
            refused: Some(FleetRefusal { generation: 4, reason: "no".to_owned() }),
            namesake: true,
            ..FleetView::default()
        };
        let shown = render(&alone);
        for part in [
            "not connected: connection refused",
            "3 here (the last good copy on disk), none in etcd",
            "generation 4 is refused: no",
            "names must be unique",
            "nobody is known to be it, epoch 0",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}

//! `lbctl save` with an engine made for the test.

use lb_userspace::control::{
    command::Reply,
    save::{SaveView, SavedFile},
};
use std::process::Command;

const TEXT: &str = "[node]\ninterfaces = [\"eth0\"]\n";

pub fn obey(print: bool, by: String, mut note: impl FnMut(String), reply: Reply<SaveView>) {
    note(by);
    let file = SavedFile { path: "/etc/lbd/lbd.toml".to_owned(), text: print.then(|| TEXT.to_owned()) };
    let kept = vec!["service 'www', backend 'web3': draining (no setting of a file says that)".to_owned()];
    let _ =
        reply.send(Ok(SaveView { message: "2 runtime changes saved".to_owned(), files: vec![file], kept }));
}

#[test]
fn what_save_says_and_writes() {
    let daemon = super::engine::Daemon::start();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
        let output =
            command.arg("--socket").arg(&daemon.socket).arg("save").args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let said = "2 runtime changes saved\n  /etc/lbd/lbd.toml, before: /etc/lbd/lbd.toml.bak\n  \
                kept as a runtime change: service 'www', backend 'web3': draining (no setting of a file says that)\n";
    assert_eq!(run(&[]), (Some(0), said.to_owned(), String::new()));
    assert_eq!(run(&["--print"]), (Some(0), TEXT.to_owned(), String::new()));
    let json: SaveView = serde_json::from_str(&run(&["-o", "json"]).1).unwrap();
    assert_eq!(json.files[0].text, None);
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.toml");
    let path = copy.to_str().unwrap();
    assert_eq!(run(&[path]).0, Some(0));
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), TEXT);
    let (status, _, trouble) = run(&[path]);
    assert!(status == Some(2) && trouble.contains("exists already"), "{trouble}");
    assert_eq!(run(&[path, "--force"]).0, Some(0));
}

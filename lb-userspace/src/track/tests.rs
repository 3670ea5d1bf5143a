use super::*;
use std::{os::unix::fs::PermissionsExt as _, time::Instant};

fn script(name: &str, text: &str, rise: u8, fall: u8, timeout: Duration) -> ScriptSpec {
    ScriptSpec {
        name: name.parse().unwrap(),
        command: ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
        interval: Duration::from_millis(20),
        timeout,
        rise,
        fall,
        user: "nobody".to_owned(),
        initial_up: true,
        weight: 0,
    }
}

async fn wait(trackers: &Trackers, what: &str, holds: impl Fn(&Found) -> bool) {
    let start = Instant::now();
    while !holds(&trackers.found()) {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: {:?}", trackers.found());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Commands run as somebody else.
fn open_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

#[tokio::test]
async fn a_script_goes_down_and_up_and_never_overlaps_itself() {
    let directory = open_directory();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (bad, busy, overlaps) = (path("bad"), path("busy"), path("overlaps"));
    // Longer than its interval.
    let text = format!(
        "if ! mkdir {busy}; then echo x >> {overlaps}; exit 1; fi; sleep 0.05; rmdir {busy}; test ! -e {bad}"
    );
    let spec = script("check", &text, 2, 3, Duration::from_secs(30));
    let mut trackers = Trackers::default();
    trackers.set(std::slice::from_ref(&spec), &[]);
    let up = |found: &Found| found.scripts[&spec.name].up;
    assert!(up(&trackers.found()), "until it says otherwise");
    std::fs::write(&bad, "").unwrap();
    wait(&trackers, "down", |found| !up(found)).await;
    assert_eq!(trackers.found().scripts[&spec.name].why, "ended with status 1");
    // A reload that changes nothing for it, or something, does not bring it up.
    trackers.set(std::slice::from_ref(&spec), &[]);
    assert!(!up(&trackers.found()));
    let changed = ScriptSpec { rise: 1, ..spec.clone() };
    trackers.set(std::slice::from_ref(&changed), &[]);
    assert!(!up(&trackers.found()));
    // The one that was ended may have left its mark.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _ = std::fs::remove_dir(&busy);
    let before = std::fs::read_to_string(&overlaps).unwrap_or_default();
    std::fs::remove_file(&bad).unwrap();
    wait(&trackers, "up", |found| up(found)).await;
    assert_eq!(std::fs::read_to_string(&overlaps).unwrap_or_default(), before);
    trackers.set(&[], &[]);
    assert_eq!(trackers.found(), Found::default());
}

#[tokio::test]
async fn one_run_that_takes_too_long_is_no_outage_many_are() {
    let directory = open_directory();
    let file = directory.path().join("runs");
    // Every second run hangs.
    let text = format!("echo x >> {0}; test $(($(wc -l < {0}) % 2)) = 0 || sleep 60", file.display());
    let flaky = script("flaky", &text, 1, 2, Duration::from_millis(300));
    let hangs = script("hangs", "sleep 60", 1, 2, Duration::from_millis(50));
    let mut trackers = Trackers::default();
    trackers.set(&[flaky.clone(), hangs.clone()], &[]);
    wait(&trackers, "hangs is down", |found| !found.scripts[&hangs.name].up).await;
    assert_eq!(trackers.found().scripts[&hangs.name].why, "it took longer than 50ms");
    let start = Instant::now();
    while std::fs::read_to_string(&file).unwrap_or_default().lines().count() < 6 {
        assert!(start.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(trackers.found().scripts[&flaky.name].up);
}

#[tokio::test]
async fn the_number_in_a_file() {
    let directory = open_directory();
    let path = directory.path().join("load");
    let spec = FileSpec { name: "load".parse().unwrap(), path: path.clone(), weight: 1 };
    let mut trackers = Trackers::default();
    trackers.set(&[], std::slice::from_ref(&spec));
    let number = |found: &Found| found.files.get(&spec.name).copied();
    wait(&trackers, "none is 0", |found| number(found) == Some(0)).await;
    let changed = trackers.changed();
    changed.notified().await;
    std::fs::write(&path, " -20\n").unwrap();
    changed.notified().await;
    assert_eq!(number(&trackers.found()), Some(-20));
    // What cannot be read changes nothing.
    std::fs::write(&path, "many").unwrap();
    tokio::time::sleep(LOOK * 3).await;
    assert_eq!(number(&trackers.found()), Some(-20));
    std::fs::remove_file(&path).unwrap();
    wait(&trackers, "gone is 0", |found| number(found) == Some(0)).await;
}

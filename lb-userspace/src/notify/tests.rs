use super::*;
use crate::events::{Bus, Kind, News};
use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

fn hook(script: &str, timeout: Duration) -> HookSpec {
    // `$0` is the word before the arguments that are added.
    let command = ["/bin/sh", "-c", script, "hook"].map(str::to_owned).to_vec();
    HookSpec { command, timeout, user: "nobody".to_owned() }
}

fn news(service: &str, to: &str) -> News {
    News {
        kind: Kind::Service,
        service: service.to_owned(),
        backend: None,
        from: "up".to_owned(),
        to: to.to_owned(),
        reason: "it was; time".to_owned(),
    }
}

/// A directory that everybody may write to: the commands run as somebody else.
fn open_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

async fn lines(file: &Path, count: usize) -> Vec<String> {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{lines:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn counted(metrics: &NotifyMetrics) -> [u64; 4] {
    metrics.counts()
}

#[tokio::test]
async fn one_after_the_other_in_order_each_hook_its_own() {
    let directory = open_directory();
    let (slow, quick) = (directory.path().join("slow"), directory.path().join("quick"));
    let metrics = Arc::new(NotifyMetrics::default());
    let notifier = Notifier::new(metrics.clone());
    let write = |file: &Path, first: &str| {
        let script = format!("{first} echo \"$1 $2 $3 $4 $5 [$6] $LBD_TO $LBD_SEQ\" >> {}", file.display());
        hook(&script, Duration::from_secs(30))
    };
    let of_www = (Some("www".parse().unwrap()), write(&quick, ""));
    notifier.set_hooks([(None, write(&slow, "sleep 0.05;")), of_www.clone()]);
    let bus = Bus::default();
    for i in 0..6 {
        notifier.tell(&bus.publish(news(if i % 2 == 0 { "www" } else { "dns" }, &format!("s{i}"))));
    }
    // Hooks that go finish what waits for them.
    notifier.set_hooks([]);
    notifier.tell(&bus.publish(news("www", "nobody hears")));
    let row = |i: u64| {
        let service = if i.is_multiple_of(2) { "www" } else { "dns" };
        format!("SERVICE {service} - up s{i} [it was; time] s{i} {}", i + 1)
    };
    assert_eq!(lines(&slow, 6).await, (0..6).map(row).collect::<Vec<_>>());
    assert_eq!(lines(&quick, 3).await, [0, 2, 4].map(row));
    let start = Instant::now();
    while counted(&metrics) != [9, 0, 0, 0] {
        assert!(start.elapsed() < Duration::from_secs(30), "{metrics:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn events_of_the_pair_go_to_the_hooks_of_the_file_and_the_last_are_waited_for() {
    let directory = open_directory();
    let (all, own) = (directory.path().join("all"), directory.path().join("own"));
    let notifier = Notifier::new(Arc::new(NotifyMetrics::default()));
    let write = |file: &Path| {
        let script = format!("sleep 0.1; echo \"$1 $2 $4 $5\" >> {}", file.display());
        hook(&script, Duration::from_secs(30))
    };
    // A service of the instance's name.
    notifier.set_hooks([(None, write(&all)), (Some("public".parse().unwrap()), write(&own))]);
    let bus = Bus::default();
    let states = ["init", "backup", "master", "fault", "stop"];
    for pair in states.windows(2) {
        let mut news = news("public", pair[1]);
        (news.kind, news.from) = (Kind::Pair, pair[0].to_owned());
        notifier.tell(&bus.publish(news));
    }
    notifier.finish(Duration::from_secs(60)).await;
    let expected: Vec<_> =
        states.windows(2).map(|pair| format!("PAIR public {} {}", pair[0], pair[1])).collect();
    assert_eq!(lines(&all, 4).await, expected);
    assert!(!own.exists());
}

#[tokio::test]
async fn what_fails_or_takes_too_long_is_counted_and_ended() {
    let directory = open_directory();
    let file = directory.path().join("late");
    let event = Bus::default().publish(news("www", "down"));
    assert_eq!(run(&hook("exit 3", Duration::from_secs(30)), &event).await, NotifyResult::Failed);
    let nobody = HookSpec { command: vec!["/nonexistent".to_owned()], ..hook("", Duration::from_secs(30)) };
    assert_eq!(run(&nobody, &event).await, NotifyResult::Failed);
    let script = format!("(sleep 2; echo late > {}) & sleep 600", file.display());
    let start = Instant::now();
    assert_eq!(run(&hook(&script, Duration::from_millis(200)), &event).await, NotifyResult::Timeout);
    assert!(start.elapsed() < Duration::from_secs(60));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!file.exists(), "what it started goes on");
}

#[tokio::test]
async fn a_full_queue_drops_and_never_waits() {
    let metrics = Arc::new(NotifyMetrics::default());
    let notifier = Notifier::new(metrics.clone());
    notifier.set_hooks([(None, hook("sleep 600", Duration::from_secs(600)))]);
    let bus = Bus::default();
    // The task does not run meanwhile: this runtime has one thread.
    for _ in 0..QUEUE + 5 {
        notifier.tell(&bus.publish(news("www", "down")));
    }
    assert_eq!(counted(&metrics), [0, 0, 0, 5]);
}

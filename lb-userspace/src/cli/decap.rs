//! `lbctl decap`: talks to the kernel of a backend, not to a daemon.

use super::args::{DecapCommand, Output};
use super::{Failure, print, render};
use crate::control::api::{ChangeView, DecapView};
use ipnet::IpNet;
use std::path::Path;

/// The decapsulation program in the kernel of this host. `pin_root` is the directory on bpffs under
/// which the program's directory lies.
pub trait Decap {
    /// Attaches the program to an interface; where it is attached, replaces its settings.
    fn attach(&self, ifname: &str, sources: &[IpNet], gue_port: u16, pin_root: &Path) -> anyhow::Result<()>;
    /// Removes it from an interface.
    fn detach(&self, ifname: &str, pin_root: &Path) -> anyhow::Result<()>;
    /// Every interface that has it.
    fn show(&self, pin_root: &Path) -> anyhow::Result<Vec<DecapView>>;
}

pub(super) fn execute(command: &DecapCommand, output: Output, decap: &dyn Decap) -> Result<String, Failure> {
    match command {
        DecapCommand::Attach { interface, from, gue_port, pins } => {
            decap.attach(interface, from, *gue_port, &pins.pin_dir).map_err(Failure::Decap)?;
            let sources: Vec<_> = from.iter().map(ToString::to_string).collect();
            let message = format!(
                "{interface} takes IPIP and GUE (UDP port {gue_port}) packets from {}",
                sources.join(", ")
            );
            done(output, message)
        }
        DecapCommand::Detach { interface, pins } => {
            decap.detach(interface, &pins.pin_dir).map_err(Failure::Decap)?;
            done(output, format!("the decapsulation program was removed from {interface}"))
        }
        DecapCommand::Show { pins } => {
            let views = decap.show(&pins.pin_dir).map_err(Failure::Decap)?;
            print(output, &views, |views| render::decap(views))
        }
    }
}

fn done(output: Output, message: String) -> Result<String, Failure> {
    print(output, &ChangeView { message, ..ChangeView::default() }, render::change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::DropView;
    use std::cell::RefCell;

    /// Writes down what it is asked.
    struct Recorder(RefCell<Vec<String>>);

    impl Decap for Recorder {
        fn attach(&self, ifname: &str, sources: &[IpNet], gue_port: u16, pins: &Path) -> anyhow::Result<()> {
            self.0.borrow_mut().push(format!("attach {ifname} {sources:?} {gue_port} {}", pins.display()));
            Ok(())
        }

        fn detach(&self, ifname: &str, _: &Path) -> anyhow::Result<()> {
            Err(anyhow::anyhow!("no such pin").context(format!("{ifname} does not have the program")))
        }

        fn show(&self, _: &Path) -> anyhow::Result<Vec<DecapView>> {
            Ok(vec![DecapView {
                interface: "eth0".to_owned(),
                ifindex: 2,
                mode: "native".to_owned(),
                sources: vec!["10.0.0.2/32".to_owned(), "2001:db8::/64".to_owned()],
                gue_port: 6080,
                packets: 12,
                bytes: 3456,
                refused: [("malformed", 0), ("congestion", 2)]
                    .map(|(reason, packets)| DropView {
                        reason: reason.to_owned(),
                        packets,
                        help: String::new(),
                    })
                    .to_vec(),
            }])
        }
    }

    fn run(line: &str) -> (u8, String, String, Vec<String>) {
        let (recorder, mut out, mut err) = (Recorder(RefCell::default()), Vec::new(), Vec::new());
        let status = super::super::run(line.split_whitespace(), &recorder, &mut out, &mut err);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status, text(out), text(err), recorder.0.into_inner())
    }

    #[test]
    fn attach_passes_everything_on() {
        let (status, out, err, asked) =
            run("lbctl decap attach eth0 --from 10.0.0.2 10.1.0.0/16,2001:db8::/64 --gue-port 5555");
        assert_eq!((status, err.as_str()), (0, ""));
        assert_eq!(asked, ["attach eth0 [10.0.0.2/32, 10.1.0.0/16, 2001:db8::/64] 5555 /sys/fs/bpf/lbd"]);
        assert_eq!(
            out,
            "eth0 takes IPIP and GUE (UDP port 5555) packets from 10.0.0.2/32, 10.1.0.0/16, 2001:db8::/64\n"
        );
        let (_, _, _, asked) = run("lbctl decap attach eth0 --from ::1 --pin-dir /bpf");
        assert_eq!(asked, ["attach eth0 [::1/128] 6080 /bpf"]);
    }

    #[test]
    fn a_failure_is_told_with_its_causes() {
        let (status, out, err, _) = run("lbctl decap detach eth0");
        assert_eq!((status, out.as_str()), (1, ""));
        assert_eq!(err, "lbctl: eth0 does not have the program: no such pin\n");
    }

    #[test]
    fn show_has_both_forms() {
        let (status, out, _, _) = run("lbctl decap show");
        assert_eq!(status, 0);
        assert_eq!(
            out,
            "INTERFACE  INDEX  MODE    GUE PORT  PACKETS  BYTES       REFUSED  FROM\n\
             eth0           2  native      6080       12   3456  2 congestion  10.0.0.2/32,2001:db8::/64\n"
        );
        let (_, out, _, _) = run("lbctl decap show -o json");
        let views: Vec<DecapView> = serde_json::from_str(&out).unwrap();
        assert_eq!(views[0].gue_port, 6080);
    }
}

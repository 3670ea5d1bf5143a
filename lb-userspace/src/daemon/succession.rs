//! Whether anybody would take over an instance that is to be handed over.

use super::engine::Engine;
use crate::{
    link::{Successor, Unfit},
    model::{VrrpName, VrrpSpec},
    vrrp::{Phase, RouterView},
};
use std::time::Duration;

/// An instance that is to be handed over, with its group, and what is known of each.
struct Leaving<'a> {
    name: &'a VrrpName,
    /// None without `[sync]`.
    successors: Option<Vec<(VrrpName, Successor)>>,
    /// After which silence this node is master again.
    returns: Duration,
    /// `sync.takeover_wait`.
    wait: Duration,
}

impl Leaving<'_> {
    /// What the operator is told when it is done; or why it is not.
    fn judge(&self) -> Result<String, String> {
        let name = self.name;
        let unasked = |why: String| {
            format!(
                "{name} was given up without a successor's word ({why}): a backup that hears the farewell takes over \
                 after its skew; if there is none, this node is master again after {:?}",
                self.returns
            )
        };
        let Some(successors) = &self.successors else {
            return Ok(unasked("there is no [sync] to ask the peer".to_owned()));
        };
        for (member, successor) in successors {
            let Successor::Unfit(peer, unfit) = successor else { continue };
            let wait = self.wait.as_secs();
            let (found, cure) = match unfit {
                Unfit::Held => ("is held", "release it there with 'lbctl pair hold --off'".to_owned()),
                Unfit::Fault => ("is in a fault", "'lbctl pair' there tells which".to_owned()),
                Unfit::Stopped => ("does not run", "'lbctl pair' and the log there tell why".to_owned()),
                Unfit::Gated => (
                    "lacks this node's state",
                    format!("try again in a moment; it waits {wait} s for it at most (sync.takeover_wait)"),
                ),
            };
            return Err(format!(
                "VRRP instance '{name}' is not handed over: nobody would take it. On {peer} '{member}' {found}: \
                 {cure}. To take it from this node all the same, without a successor: 'lbctl pair hold'"
            ));
        }
        let missing = successors.iter().find(|(_, successor)| *successor != Successor::Fit);
        Ok(match missing {
            None => format!("{name} is handed over to the peer"),
            Some((member, Successor::NoInstance)) => {
                unasked(format!("no connected peer has an instance '{member}'"))
            }
            Some(_) => unasked("no peer is connected over the sync link, 'lbctl pair' tells why".to_owned()),
        })
    }
}

/// Itself, and those that go with it.
fn with<'a>(views: &'a [RouterView], spec: &'a VrrpSpec) -> impl Iterator<Item = &'a RouterView> {
    views.iter().filter(move |view| {
        view.spec.name == spec.name || (spec.group.is_some() && view.spec.group == spec.group)
    })
}

impl Engine {
    /// What the operator is told when an instance was handed over; or why it cannot be. Of one that is not master here
    /// the heartbeat tells so.
    pub(super) fn successor(&self, name: &VrrpName) -> Result<String, String> {
        let views = self.pair.views();
        let master = views.iter().find(|view| view.spec.name == *name && view.phase == Phase::Master);
        let Some(view) = master else { return Ok(format!("{name} is handed over to the peer")) };
        let members = || with(&views, &view.spec).map(|member| member.spec.name.clone());
        let link = self.pair.handover.link.as_ref();
        let successors =
            link.map(|link| members().map(|member| (member.clone(), link.successor(&member))).collect());
        let wait = self.config.sync.as_ref().map(|sync| sync.takeover_wait).unwrap_or_default();
        Leaving { name, successors, returns: view.returns(), wait }.judge()
    }

    /// What the peer lacks of these instances, and of those that go with them, goes into the link's queue.
    pub(super) fn flush_masters(&mut self, which: impl Fn(&VrrpName) -> bool) {
        let views = self.pair.views();
        let masters = || views.iter().filter(|view| view.phase == Phase::Master);
        let goes = |view: &&RouterView| with(&views, &view.spec).any(|member| which(&member.spec.name));
        for view in masters().filter(goes) {
            self.flush_mirror(&view.spec.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(successors: Option<&[(&str, Successor)]>) -> Result<String, String> {
        let name = "public".parse().unwrap();
        let successors = successors.map(|all| {
            all.iter().map(|(name, successor)| (name.parse().unwrap(), successor.clone())).collect()
        });
        let returns = Duration::from_millis(3609);
        Leaving { name: &name, successors, returns, wait: Duration::from_secs(10) }.judge()
    }

    #[test]
    fn who_would_not_take_over_is_no_successor() {
        let fit = ("public", Successor::Fit);
        assert_eq!(told(Some(std::slice::from_ref(&fit))).unwrap(), "public is handed over to the peer");
        for (why, found, cure) in [
            (Unfit::Held, "On lb2 'inside' is held", "'lbctl pair hold --off'"),
            (Unfit::Fault, "On lb2 'inside' is in a fault", "'lbctl pair' there"),
            (Unfit::Stopped, "On lb2 'inside' does not run", "the log there"),
            (Unfit::Gated, "On lb2 'inside' lacks this node's state", "10 s"),
        ] {
            let error =
                told(Some(&[fit.clone(), ("inside", Successor::Unfit("lb2".into(), why))])).unwrap_err();
            assert!(error.contains(found) && error.contains(cure), "{error}");
            assert!(
                error.contains("'public' is not handed over") && error.contains("'lbctl pair hold'"),
                "{error}"
            );
        }
    }

    #[test]
    fn who_cannot_be_asked_is_no_success() {
        for (successors, why) in [
            (None, "there is no [sync]"),
            (Some(&[("public", Successor::NoPeer)][..]), "no peer is connected"),
            (Some(&[("public", Successor::Fit), ("inside", Successor::NoInstance)]), "instance 'inside'"),
        ] {
            let message = told(successors).unwrap();
            assert!(message.starts_with("public was given up without") && message.contains(why), "{message}");
            assert!(message.ends_with("this node is master again after 3.609s"), "{message}");
        }
    }
}

//! When the router sends the virtual addresses to the other balancer. Pure: what the probes say goes in, moves
//! come out.
//!
//! This is the playground's stand-in for VRRP: one router that asks both balancers. lb1 has the addresses
//! whenever it can.

/// Probes in a row without a good answer after which a balancer counts as gone.
const FALL: u32 = 3;
/// Good probes in a row after which it may have the addresses again.
const RISE: u32 = 4;

/// What one probe of a balancer found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    /// It forwards, and as far as it knows to so many web servers; so many slots of its rings are still changing hands.
    Forwards { backends: usize, moving: u64 },
    /// It forwards, but its daemon is not there to say to whom.
    NoDaemon,
    /// It does not forward; why.
    Gone(String),
}

/// The router moved the virtual addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    /// Index of the balancer that has them now.
    pub to: usize,
    pub why: String,
}

#[derive(Debug, Clone, Default)]
struct Record {
    good: u32,
    bad: u32,
}

/// The router's opinion of both.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch {
    active: usize,
    records: [Record; 2],
}

impl Watch {
    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// Takes in one probe of each balancer.
    pub(super) fn observe(&mut self, findings: &[Finding; 2]) -> Option<Move> {
        for (record, finding) in self.records.iter_mut().zip(findings) {
            match finding {
                Finding::Forwards { .. } | Finding::NoDaemon => {
                    *record = Record { good: record.good.saturating_add(1), bad: 0 };
                }
                Finding::Gone(_) => *record = Record { good: 0, bad: record.bad.saturating_add(1) },
            }
        }
        let other = 1 - self.active;
        let why = match (&findings[self.active], &findings[other]) {
            // Where both are gone a move would help nobody.
            (_, Finding::Gone(_)) => return None,
            (Finding::Gone(why), _) if self.records[self.active].bad >= FALL => {
                format!("lb{} {why}", self.active + 1)
            }
            // Back to lb1 only when it serves as well: after an outage its health checks need a moment, and its rings
            // until they have settled, before which they send flows that they do not know elsewhere than lb2 does.
            (Finding::Forwards { backends: here, .. }, Finding::Forwards { backends: there, moving: 0 })
                if other == 0 && self.records[other].good >= RISE && there >= here =>
            {
                "lb1 is back".to_owned()
            }
            (Finding::Gone(_) | Finding::Forwards { .. } | Finding::NoDaemon, _) => return None,
        };
        self.active = other;
        Some(Move { to: other, why })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: Finding = Finding::Forwards { backends: 3, moving: 0 };

    fn gone() -> Finding {
        Finding::Gone("does not answer".to_owned())
    }

    /// The moves that a series of findings makes: (index of the probe, to).
    fn moves(series: &[[Finding; 2]]) -> Vec<(usize, usize)> {
        let mut watch = Watch::default();
        series.iter().enumerate().filter_map(|(i, f)| watch.observe(f).map(|m| (i, m.to))).collect()
    }

    #[test]
    fn the_other_takes_over_after_three_bad_probes_and_gives_back_after_four_good_ones() {
        let mut series = vec![[gone(), GOOD]; 3];
        series.extend(vec![[GOOD, GOOD]; 10]);
        assert_eq!(moves(&series), [(2, 1), (6, 0)]);
    }

    #[test]
    fn a_single_lost_probe_moves_nothing() {
        let series = [[gone(), GOOD], [gone(), GOOD], [GOOD, GOOD], [gone(), GOOD], [GOOD, GOOD]];
        assert_eq!(moves(&series), []);
    }

    #[test]
    fn a_killed_daemon_moves_nothing() {
        assert_eq!(moves(&vec![[Finding::NoDaemon, GOOD]; 20]), []);
    }

    #[test]
    fn lb1_gets_nothing_back_before_it_has_as_many_web_servers_and_has_settled() {
        let mut series = vec![[gone(), GOOD]; 3];
        series.extend(vec![[Finding::Forwards { backends: 0, moving: 0 }, GOOD]; 5]);
        series.extend(vec![[Finding::Forwards { backends: 3, moving: 1 }, GOOD]; 5]);
        assert_eq!(moves(&series), [(2, 1)]);
        series.extend(vec![[GOOD, GOOD]]);
        assert_eq!(moves(&series), [(2, 1), (13, 0)]);
    }

    fn finding() -> impl Strategy<Value = Finding> {
        prop_oneof![
            (0_usize..4, 0_u64..2).prop_map(|(backends, moving)| Finding::Forwards { backends, moving }),
            Just(Finding::NoDaemon),
            Just(gone()),
        ]
    }

    proptest! {
        #[test]
        fn nobody_gets_the_addresses_while_it_is_gone(series in prop::collection::vec([finding(), finding()], 0..60)) {
            let mut watch = Watch::default();
            for findings in &series {
                if let Some(moved) = watch.observe(findings) {
                    prop_assert_eq!(moved.to, watch.active());
                    prop_assert!(!matches!(findings[moved.to], Finding::Gone(_)));
                }
            }
        }
    }
}

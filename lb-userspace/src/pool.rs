//! Who of a service's backends takes new flows, and whether the service is up. Pure.
//!
//! In this order: with a quorum, the healthy primaries; without one, healthy backups where there are any. Where no backup
//! stands in and fewer primaries are healthy than the panic threshold asks for, all enabled primaries, whatever their
//! health. Else the healthy primaries that are left; else nobody.

use crate::model::{Admin, Health, PoolSpec, ServiceState};

/// What is known of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub admin: Admin,
    pub health: Health,
    pub weight: u16,
    /// It stands in for the others.
    pub backup: bool,
    /// Found out to fail although its checks pass: no new flows; those it has go on.
    pub ejected: bool,
    /// Its next hop is known.
    pub reachable: bool,
}

impl Member {
    /// May it take new flows, as far as its operator is concerned?
    fn is_enabled(&self) -> bool {
        self.admin == Admin::Enabled && self.weight > 0
    }

    /// Can it take new flows and serve them well, as far as is known?
    fn is_healthy(&self) -> bool {
        self.is_enabled() && self.reachable && !self.ejected && self.health != Health::Down
    }
}

/// What becomes of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    /// It takes new flows.
    Takes,
    /// It keeps the flows it has and takes no new ones.
    Keeps,
    /// It takes no packets at all.
    Dead,
}

/// What becomes of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub state: ServiceState,
    /// In the order of the members.
    pub stances: Vec<Stance>,
    /// Primaries that are enabled, with a weight.
    pub enabled: usize,
    /// Those of them that can take new flows.
    pub healthy: usize,
}

/// Judges a service. `was_up`: it had its quorum until now; a service never judged before had.
#[must_use]
pub fn judge(spec: &PoolSpec, was_up: bool, members: &[Member]) -> Verdict {
    let primaries = || members.iter().filter(|member| !member.backup && member.is_enabled());
    let enabled = primaries().count();
    let healthy = primaries().filter(|member| member.is_healthy()).count();
    let quorum = if was_up { spec.quorum_down } else { spec.quorum_up };
    let is_up = healthy >= quorum as usize;
    let stands_in = !is_up && members.iter().any(|member| member.backup && member.is_healthy());
    let panics = !stands_in
        && healthy * 100 < usize::from(spec.panic_threshold) * enabled
        && primaries().any(|member| member.reachable);
    let state = match (is_up, stands_in, panics) {
        (true, _, false) => ServiceState::Up,
        (true, _, true) => ServiceState::UpPanic,
        (false, true, _) => ServiceState::DownBackup,
        (false, false, true) => ServiceState::DownPanic,
        (false, false, false) if healthy > 0 => ServiceState::DownDegraded,
        (false, false, false) => ServiceState::Down,
    };
    let stances = members.iter().map(|member| stance(member, stands_in, panics)).collect();
    Verdict { state, stances, enabled, healthy }
}

fn stance(member: &Member, stands_in: bool, panics: bool) -> Stance {
    let serves = member.backup == stands_in;
    let trusted = panics && serves && member.admin == Admin::Enabled;
    if member.admin == Admin::Disabled || (member.health == Health::Down && !trusted) {
        Stance::Dead
    } else if serves && (member.is_healthy() || trusted && member.is_enabled() && member.reachable) {
        Stance::Takes
    } else {
        Stance::Keeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(health: Health, backup: bool) -> Member {
        Member { admin: Admin::Enabled, health, weight: 100, backup, ejected: false, reachable: true }
    }

    const UP: Health = Health::Up;
    const DOWN: Health = Health::Down;

    fn spec(quorum: (u32, u32), panic_threshold: u8) -> PoolSpec {
        PoolSpec { quorum_up: quorum.0, quorum_down: quorum.1, panic_threshold, ..PoolSpec::default() }
    }

    /// One letter a backend: `t` takes new flows, `k` keeps its own, `d` dead.
    fn letters(verdict: &Verdict) -> String {
        let letter = |stance: &Stance| match stance {
            Stance::Takes => 't',
            Stance::Keeps => 'k',
            Stance::Dead => 'd',
        };
        verdict.stances.iter().map(letter).collect()
    }

    /// Primaries `+` and `-`, backups `B` and `b`, by health.
    fn members(text: &str) -> Vec<Member> {
        text.chars()
            .map(|c| match c {
                '+' => member(UP, false),
                '-' => member(DOWN, false),
                'B' => member(UP, true),
                'b' => member(DOWN, true),
                _ => panic!("{c}"),
            })
            .collect()
    }

    #[test]
    fn rows() {
        use ServiceState::*;
        type Row = (&'static str, (u32, u32), u8, bool, ServiceState, &'static str);
        #[rustfmt::skip]
        let rows: &[Row] = &[
            // members, quorum up and down, panic threshold, was up; state, stances
            ("++",    (1, 1), 0,   true,  Up,           "tt"),
            ("+-",    (1, 1), 0,   true,  Up,           "td"),
            ("--",    (1, 1), 0,   true,  Down,         "dd"),
            ("",      (1, 1), 30,  true,  Down,         ""),
            ("++B",   (1, 1), 0,   true,  Up,           "ttk"),
            ("--B",   (1, 1), 0,   true,  DownBackup,   "ddt"),
            ("--b",   (1, 1), 0,   true,  Down,         "ddd"),
            // Hysteresis.
            ("++-",   (3, 2), 0,   true,  Up,           "ttd"),
            ("+--",   (3, 2), 0,   true,  DownDegraded, "tdd"),
            ("++-",   (3, 2), 0,   false, DownDegraded, "ttd"),
            ("+++",   (3, 2), 0,   false, Up,           "ttt"),
            // No quorum: the backup instead of the primaries that are left.
            ("+--B",  (2, 2), 0,   true,  DownBackup,   "kddt"),
            ("+--b",  (2, 2), 0,   true,  DownDegraded, "tddd"),
            // Panic: below the threshold, not at it.
            ("+---",  (1, 1), 30,  true,  UpPanic,      "tttt"),
            ("+---",  (1, 1), 25,  true,  Up,           "tddd"),
            ("----",  (1, 1), 1,   true,  DownPanic,    "tttt"),
            ("+---B", (1, 1), 30,  true,  UpPanic,      "ttttk"),
            ("+---b", (1, 1), 30,  true,  UpPanic,      "ttttd"),
            ("----B", (1, 1), 30,  true,  DownBackup,   "ddddt"),
            ("----b", (1, 1), 30,  true,  DownPanic,    "ttttd"),
            ("+---B", (2, 2), 30,  true,  DownBackup,   "kdddt"),
            ("++",    (1, 1), 100, true,  Up,           "tt"),
            ("+-",    (1, 1), 100, true,  UpPanic,      "tt"),
            ("B",     (1, 1), 50,  true,  DownBackup,   "t"),
        ];
        for (text, quorum, panic, was_up, state, stances) in rows {
            let verdict = judge(&spec(*quorum, *panic), *was_up, &members(text));
            assert_eq!(
                (verdict.state, letters(&verdict).as_str()),
                (*state, *stances),
                "{text} {quorum:?} {panic}"
            );
        }
    }

    #[test]
    fn panic_resurrects_nobody_its_operator_took_out() {
        let with = |admin, weight| Member { admin, weight, ..member(DOWN, false) };
        let all = [
            with(Admin::Enabled, 100),
            with(Admin::Disabled, 100),
            with(Admin::Draining, 100),
            with(Admin::Enabled, 0),
            Member { reachable: false, ..with(Admin::Enabled, 1) },
            Member { ejected: true, ..member(UP, false) },
        ];
        let verdict = judge(&spec((1, 1), 50), true, &all);
        assert_eq!(verdict.state, ServiceState::DownPanic);
        // Of weight 0: its health is not believed, but it takes nothing new.
        assert_eq!(letters(&verdict), "tddkkt");
        assert_eq!((verdict.enabled, verdict.healthy), (3, 0));
        let verdict = judge(&spec((1, 1), 0), true, &all);
        assert_eq!((verdict.state, letters(&verdict).as_str()), (ServiceState::Down, "dddddk"));
    }

    /// Every kind of member.
    fn every() -> Vec<Member> {
        let mut all = Vec::new();
        for admin in [Admin::Enabled, Admin::Draining, Admin::Disabled] {
            for health in [Health::Up, Health::Down, Health::Unknown] {
                for bits in 0..16 {
                    let bit = |n: u32| bits >> n & 1 == 1;
                    let weight = u16::from(bit(0)) * 7;
                    let (backup, ejected, reachable) = (bit(1), bit(2), bit(3));
                    all.push(Member { admin, health, weight, backup, ejected, reachable });
                }
            }
        }
        all
    }

    /// What must hold of any verdict.
    fn sound(spec: &PoolSpec, was_up: bool, members: &[Member]) {
        let verdict = judge(spec, was_up, members);
        let state = verdict.state;
        let case = || format!("{spec:?} {was_up} {members:?} {verdict:?}");
        assert_eq!(verdict.stances.len(), members.len());
        let pairs = || members.iter().zip(verdict.stances.iter().copied());
        for (m, s) in pairs() {
            if s == Stance::Takes {
                assert!(m.admin == Admin::Enabled && m.weight > 0 && m.reachable, "{}", case());
                assert_eq!(m.backup, state == ServiceState::DownBackup, "{}", case());
                assert!(state.is_panic() || (m.health != Health::Down && !m.ejected), "{}", case());
            }
            // Nobody loses flows but who is disabled or down; in panic the enabled primaries are not down.
            let dead = m.admin == Admin::Disabled
                || m.health == Health::Down && !(state.is_panic() && !m.backup && m.admin == Admin::Enabled);
            assert_eq!(s == Stance::Dead, dead, "{}", case());
            // Who can serve does, unless another kind of backend serves.
            if m.is_healthy() && m.backup == (state == ServiceState::DownBackup) {
                assert_eq!(s, Stance::Takes, "{}", case());
            }
        }
        let anybody = verdict.stances.contains(&Stance::Takes);
        assert_eq!(anybody, state != ServiceState::Down, "{}", case());
        // Nobody serves only where nobody healthy is left at all.
        assert!(anybody || !members.iter().any(Member::is_healthy), "{}", case());
        let needed = if was_up { spec.quorum_down } else { spec.quorum_up };
        assert_eq!(state.is_up(), verdict.healthy >= needed as usize, "{}", case());
        // Judged again nothing changes: no flapping by itself.
        assert_eq!(judge(spec, state.is_up(), members), verdict, "{}", case());
    }

    #[test]
    fn every_pair_of_members() {
        let all = every();
        for spec in [spec((1, 1), 0), spec((2, 1), 60), spec((2, 2), 100), spec((1, 1), 1)] {
            for was_up in [true, false] {
                for a in &all {
                    sound(&spec, was_up, &[*a]);
                    for b in &all {
                        sound(&spec, was_up, &[*a, *b]);
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_pool(
            picks in proptest::collection::vec(0..144usize, 0..12), down in 1..6u32, more in 0..4u32,
            panic in 0..=100u8, was_up: bool,
        ) {
            let all = every();
            let members: Vec<_> = picks.iter().map(|i| all[*i]).collect();
            sound(&spec((down + more, down), panic), was_up, &members);
        }
    }
}

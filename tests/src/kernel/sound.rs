//! Is what left well-formed, and is what was in it still in it? By a parser that is not ours.

use super::{Outcome, Verdict, vip};
use crate::packets::check::{self, Parsed};

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Passed,
    Dropped,
    Forwarded,
    /// The sender got a packet instead.
    Answered,
}

/// A mode of forwarding: the VIPs of [`super::plain_world`] that have it, and how what left is compared with what came.
struct Mode {
    vips: &'static [u8],
    compare: fn(&Parsed<'_>, &Parsed<'_>) -> Result<(), String>,
}

const MODES: [Mode; 3] = [
    Mode { vips: &[10, 11, 20, 21, 23, 24, 26], compare: one_hop_later },
    Mode { vips: &[12, 13, 28, 29], compare: ip_in_ip },
    Mode { vips: &[14, 15, 25, 27], compare: ip_in_udp },
];

/// What leaves is an IP packet of the length its header says, with a right checksum wherever it is ours to make;
/// and what was in it is still in it, as the mode of its VIP says.
pub fn check(frame: &[u8], outcome: &Outcome) -> Result<Fate, String> {
    match outcome.verdict {
        Verdict::Drop => return Ok(Fate::Dropped),
        Verdict::Pass if outcome.frame == frame => return Ok(Fate::Passed),
        Verdict::Pass => return Err("a frame that passes was changed".to_owned()),
        Verdict::Aborted => return Err("the core never aborts".to_owned()),
        Verdict::Tx | Verdict::Redirect => {}
    }
    let (before, after) = (check::parse(frame)?, check::parse(&outcome.frame)?);
    if after.src == before.dst && after.dst == before.src {
        // An echo reply is as long as its request, and a wrong checksum stays wrong.
        if matches!((after.protocol, after.payload.first()), (1, Some(0)) | (58, Some(129))) {
            let same = after.payload[4..] == before.payload[4..]
                && after.ip.len() == before.ip.len()
                && after.padding == before.padding;
            let right = after.checksum_ok == before.checksum_ok
                && check::icmp(&after).is_ok() == check::icmp(&before).is_ok();
            return if same && right { Ok(Fate::Answered) } else { Err(format!("{after:?} was {before:?}")) };
        }
        // A reset answers any segment but a reset, and holds nothing but itself.
        if after.protocol == 6 {
            const RST: u8 = crate::packets::RST;
            let flags = |ip: &Parsed<'_>| ip.payload.get(13).copied().unwrap_or_default();
            let lone = after.payload.len() == 20 && flags(&after) & RST != 0 && after.checksum_ok;
            check::tcp(&after)?;
            // Behind extension headers the flags are elsewhere.
            let reset = before.protocol == 6 && flags(&before) & RST != 0;
            return match lone && !reset {
                true => Ok(Fate::Answered),
                false => Err(format!("{after:?} was {before:?}")),
            };
        }
        let icmp = check::icmp(&after)?;
        return match after.checksum_ok && before.ip.starts_with(icmp.quote) && after.padding.is_empty() {
            true => Ok(Fate::Answered),
            false => Err(format!("{icmp:?}")),
        };
    }
    let of = |n: &u8| vip(*n, before.dst.is_ipv6()) == before.dst;
    let mode = MODES.iter().find(|mode| mode.vips.iter().any(of));
    let mode = mode.ok_or_else(|| format!("{} is no VIP that forwards", before.dst))?;
    if after.padding != before.padding {
        return Err("the bytes behind the packet are others".to_owned());
    }
    (mode.compare)(&before, &after).map(|()| Fate::Forwarded)
}

/// The same packet with one hop less to go. A wrong header checksum stays wrong: the next router is to see it.
fn one_hop_later(before: &Parsed<'_>, after: &Parsed<'_>) -> Result<(), String> {
    let same = (after.src, after.dst, after.protocol, after.payload, after.tos)
        == (before.src, before.dst, before.protocol, before.payload, before.tos)
        && (after.id, after.flow_label, after.ip.len()) == (before.id, before.flow_label, before.ip.len());
    if same && after.ttl == before.ttl - 1 && after.checksum_ok == before.checksum_ok {
        Ok(())
    } else {
        Err(format!("{after:?} was {before:?}"))
    }
}

/// An outer header of ours.
fn outer(before: &Parsed<'_>, after: &Parsed<'_>) -> Result<(), String> {
    let right = after.checksum_ok && after.ttl == 64 && after.tos == before.tos && after.dont_fragment;
    if right && after.src != before.src { Ok(()) } else { Err(format!("the outer header: {after:?}")) }
}

fn whole<'a>(carried: &'a [u8]) -> Result<Parsed<'a>, String> {
    let inner = check::parse_ip(carried)?;
    if inner.padding.is_empty() {
        Ok(inner)
    } else {
        Err("the outer length is beyond the inner one".to_owned())
    }
}

fn ip_in_ip(before: &Parsed<'_>, after: &Parsed<'_>) -> Result<(), String> {
    outer(before, after)?;
    let number = if before.src.is_ipv6() { 41 } else { 4 };
    if after.protocol != number {
        return Err(format!("the outer protocol is {}", after.protocol));
    }
    one_hop_later(before, &whole(after.payload)?)
}

fn ip_in_udp(before: &Parsed<'_>, after: &Parsed<'_>) -> Result<(), String> {
    outer(before, after)?;
    let [_, _, _, _, hi, lo, _, _, carried @ ..] = after.payload else {
        return Err(format!("no UDP header: {after:?}"));
    };
    if after.protocol != 17 || usize::from(u16::from_be_bytes([*hi, *lo])) != after.payload.len() {
        return Err(format!("the outer UDP header: {after:?}"));
    }
    one_hop_later(before, &whole(carried)?)?;
    // A checksum of ours over IPv6 is right wherever the packet inside is right.
    let right = before.checksum_ok
        && match before.protocol {
            6 => check::tcp(before).is_ok(),
            17 => check::udp(before).is_ok(),
            _ => false,
        };
    if right {
        check::udp(after)?;
    }
    Ok(())
}

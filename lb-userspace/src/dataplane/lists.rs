//! The firewall's maps: tries by batches, marks and limits through memory maps.

use super::{
    DataplaneError, batch,
    maps::{Mapped, mapped, windowed},
    window::Windowed,
};
use crate::{
    model::{Prefixes, Verdict},
    plan::{self, Image, ListAction},
};
use aya::{Ebpf, maps::Map};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::abi::{Control, Limits, MAX_SERVICES};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A trie, by its descriptor: aya has no batches.
struct Trie {
    name: &'static str,
    fd: OwnedFd,
}

impl Trie {
    fn take(ebpf: &Ebpf, name: &'static str) -> Result<Self, DataplaneError> {
        let Some(Map::LpmTrie(data)) = ebpf.map(name) else {
            panic!("the program has no trie {name}: abi and program differ");
        };
        let fd = data.fd().as_fd().try_clone_to_owned();
        Ok(Self { name, fd: fd.map_err(|source| DataplaneError::Read { map: name, source })? })
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> DataplaneError {
        let map = self.name;
        move |source| DataplaneError::Write { map, source }
    }

    fn insert<const N: usize>(&self, entries: &[([u8; N], u32)]) -> Result<(), DataplaneError> {
        let (keys, values): (Vec<_>, Vec<_>) = entries.iter().copied().unzip();
        batch::insert(self.fd.as_fd(), &keys, &values).map_err(self.failed())
    }

    fn remove<const N: usize>(&self, keys: &[[u8; N]]) -> Result<(), DataplaneError> {
        batch::remove(self.fd.as_fd(), keys).map_err(self.failed())
    }

    fn read<const N: usize>(&self) -> Result<Vec<([u8; N], u32)>, DataplaneError>
    where
        [u8; N]: Default,
    {
        let mut entries = Vec::new();
        batch::for_each::<[u8; N], u32>(self.fd.as_fd(), |key, value| entries.push((*key, *value)))
            .map_err(|source| DataplaneError::Read { map: self.name, source })?;
        Ok(entries)
    }
}

/// A trie's key: its length in bits in host order, then the data.
fn key<const N: usize>(bits: u32, parts: &[&[u8]]) -> [u8; N] {
    let mut key = [0; N];
    key[..4].copy_from_slice(&bits.to_ne_bytes());
    let mut at = 4;
    for part in parts {
        key[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    key
}

fn key4(net: Ipv4Net) -> [u8; 8] {
    key(net.prefix_len().into(), &[&net.network().octets()])
}

fn key6(net: Ipv6Net) -> [u8; 20] {
    key(net.prefix_len().into(), &[&net.network().octets()])
}

fn allow4(service: u32, net: Ipv4Net) -> [u8; 12] {
    key(32 + u32::from(net.prefix_len()), &[&service.to_be_bytes(), &net.network().octets()])
}

fn allow6(service: u32, net: Ipv6Net) -> [u8; 24] {
    key(32 + u32::from(net.prefix_len()), &[&service.to_be_bytes(), &net.network().octets()])
}

/// Length in bits (less those of a service's id) and address of a key.
fn parse<const N: usize, const A: usize>(key: &[u8; N], fixed: u32) -> Option<(u8, [u8; A])> {
    let bits = u32::from_ne_bytes(key[..4].try_into().ok()?).checked_sub(fixed)?;
    Some((u8::try_from(bits).ok()?, key[N - A..].try_into().ok()?))
}

fn net4<const N: usize>(key: &[u8; N], fixed: u32) -> Option<IpNet> {
    let (len, address) = parse::<N, 4>(key, fixed)?;
    Some(Ipv4Net::new(Ipv4Addr::from(address), len).ok()?.into())
}

fn net6<const N: usize>(key: &[u8; N], fixed: u32) -> Option<IpNet> {
    let (len, address) = parse::<N, 16>(key, fixed)?;
    Some(Ipv6Net::new(Ipv6Addr::from(address), len).ok()?.into())
}

fn service_of<const N: usize>(key: &[u8; N]) -> u32 {
    u32::from_be_bytes([key[4], key[5], key[6], key[7]])
}

/// Handles of the firewall's maps.
pub(super) struct Lists {
    deny4: Trie,
    deny6: Trie,
    allow4: Trie,
    allow6: Trie,
    regions4: Mapped,
    marks4: Windowed,
    marks6: Windowed,
    limits: Mapped,
    control: Arc<Mapped>,
}

impl Lists {
    pub(super) fn take(ebpf: &mut Ebpf, control: Arc<Mapped>) -> Result<Self, DataplaneError> {
        Ok(Self {
            deny4: Trie::take(ebpf, "DENY4")?,
            deny6: Trie::take(ebpf, "DENY6")?,
            allow4: Trie::take(ebpf, "ALLOWED4")?,
            allow6: Trie::take(ebpf, "ALLOWED6")?,
            regions4: mapped(ebpf, "REGIONS4")?,
            marks4: windowed(ebpf, "MARKS4")?,
            marks6: windowed(ebpf, "MARKS6")?,
            limits: mapped(ebpf, "LIMITS")?,
            control,
        })
    }

    /// Reads the firewall's part of the image.
    pub(super) fn observe(&self, image: &mut Image) -> Result<(), DataplaneError> {
        let mut denied = Prefixes::new();
        let known = |net: Option<IpNet>, value| Some((net?, Verdict::from_number(value)?));
        denied.extend(self.deny4.read::<8>()?.iter().filter_map(|(key, value)| known(net4(key, 0), *value)));
        denied.extend(self.deny6.read::<20>()?.iter().filter_map(|(key, value)| known(net6(key, 0), *value)));
        image.denied = Arc::new(denied);
        let allowed4 = self.allow4.read::<12>()?;
        let allowed4 = allowed4.iter().filter_map(|(key, _)| Some((service_of(key), net4(key, 32)?)));
        image.allowed.extend(allowed4);
        let allowed6 = self.allow6.read::<24>()?;
        let allowed6 = allowed6.iter().filter_map(|(key, _)| Some((service_of(key), net6(key, 32)?)));
        image.allowed.extend(allowed6);
        for id in 0..MAX_SERVICES {
            let limits: Limits = self.limits.load(id);
            if limits != Limits::default() {
                image.limits.insert(id, limits);
            }
        }
        Ok(())
    }

    /// Writes the marks that belong to a deny list, where they differ: one word at a time, each at once. What the old
    /// list and the new one agree on holds in between: the bits for it are the same in both, or lead to the trie.
    pub(super) fn write_marks(&self, denied: &Prefixes) -> Result<(), DataplaneError> {
        let (marks6, short) = plan::marks6(denied);
        let switch = |on: bool| {
            // The flags are the first half of the first word. Others of them are not ours.
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&Control::SHORT_PREFIXES6.to_ne_bytes());
            let (bits, word) = (u64::from_ne_bytes(bytes), self.control.word(0, 0));
            if on {
                word.fetch_or(bits, Ordering::AcqRel)
            } else {
                word.fetch_and(!bits, Ordering::AcqRel)
            };
        };
        if short {
            switch(true);
        }
        let marks4 = plan::marks4(denied);
        let regions4 = plan::regions4(&marks4);
        let write = |place: &AtomicU64, word: u64| {
            if place.load(Ordering::Relaxed) != word {
                place.store(word, Ordering::Release);
            }
        };
        for (index, word) in (0..).zip(regions4) {
            write(self.regions4.word(index, 0), word);
        }
        for (map, words) in [(&self.marks4, marks4), (&self.marks6, marks6)] {
            let window = map.at(0, map.len)?;
            window.words().iter().zip(words).for_each(|(place, word)| write(place, word));
        }
        if !short {
            switch(false);
        }
        Ok(())
    }

    pub(super) fn apply(&self, action: &ListAction) -> Result<(), DataplaneError> {
        match action {
            ListAction::Deny { old, new } => {
                for entries in plan::list_added(old, new) {
                    self.insert_denied(&entries)?;
                }
                self.write_marks(new)?;
                let [exceptions, denied] = plan::list_removed(old, new);
                self.remove_denied(&denied)?;
                self.remove_denied(&exceptions)
            }
            ListAction::Allow { add, remove } => {
                let (add4, add6) = by_family(add, allow4, allow6);
                self.allow4.insert(&add4.into_iter().map(|key| (key, 1)).collect::<Vec<_>>())?;
                self.allow6.insert(&add6.into_iter().map(|key| (key, 1)).collect::<Vec<_>>())?;
                let (remove4, remove6) = by_family(remove, allow4, allow6);
                self.allow4.remove(&remove4)?;
                self.allow6.remove(&remove6)
            }
            ListAction::Limits { service, new, .. } => {
                // Two words a rate, and nothing says that they must be read at once: a packet in between is judged by
                // the interval of one and the burst of the other.
                self.limits.store(*service, &new.unwrap_or_default(), 0, false);
                Ok(())
            }
        }
    }

    fn insert_denied(&self, entries: &[(IpNet, Verdict)]) -> Result<(), DataplaneError> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (net, verdict) in entries {
            match net {
                IpNet::V4(net) => v4.push((key4(*net), verdict.number())),
                IpNet::V6(net) => v6.push((key6(*net), verdict.number())),
            }
        }
        self.deny4.insert(&v4)?;
        self.deny6.insert(&v6)
    }

    fn remove_denied(&self, entries: &[(IpNet, Verdict)]) -> Result<(), DataplaneError> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (net, _) in entries {
            match net {
                IpNet::V4(net) => v4.push(key4(*net)),
                IpNet::V6(net) => v6.push(key6(*net)),
            }
        }
        self.deny4.remove(&v4)?;
        self.deny6.remove(&v6)
    }
}

fn by_family<A, B>(
    entries: &[(u32, IpNet)],
    v4: impl Fn(u32, Ipv4Net) -> A,
    v6: impl Fn(u32, Ipv6Net) -> B,
) -> (Vec<A>, Vec<B>) {
    let (mut of4, mut of6) = (Vec::new(), Vec::new());
    for (service, net) in entries {
        match net {
            IpNet::V4(net) => of4.push(v4(*service, *net)),
            IpNet::V6(net) => of6.push(v6(*service, *net)),
        }
    }
    (of4, of6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back() {
        let v4: Ipv4Net = "203.0.112.0/20".parse().unwrap();
        let v6: Ipv6Net = "2001:db8::/33".parse().unwrap();
        assert_eq!(net4(&key4(v4), 0), Some(v4.into()));
        assert_eq!(net6(&key6(v6), 0), Some(v6.into()));
        let key = allow4(0x0102, v4);
        assert_eq!((service_of(&key), net4(&key, 32)), (0x0102, Some(v4.into())));
        let key = allow6(7, v6);
        assert_eq!((service_of(&key), net6(&key, 32)), (7, Some(v6.into())));
        assert_eq!(key[4..8], [0, 0, 0, 7], "big endian, like all that a trie compares");
    }
}

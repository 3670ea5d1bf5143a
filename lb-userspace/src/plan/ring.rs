//! The words of a service's ring, packed: thousands of slots hold few different words.

use lb_common::abi::Slot;
use std::{fmt, ops::Index, sync::Arc};

/// A ring's words. Cloning shares them.
///
/// At most 256 different words are kept once each, with a byte a slot, and up to 16 with half a byte; more, as after a long
/// history of changes (each counts in its slot's epoch), are kept as they are.
#[derive(Clone, PartialEq, Eq)]
pub struct Ring(Arc<Words>);

#[derive(PartialEq, Eq)]
enum Words {
    /// The words in the order in which they first occur, so that equal rings are equal here; and which one each slot holds.
    Packed {
        palette: Box<[Slot]>,
        places: Places,
    },
    Plain(Box<[Slot]>),
}

/// Places in a palette, slot by slot.
#[derive(PartialEq, Eq)]
enum Places {
    /// Of a palette of 16 words at most: the lower half of a byte is the earlier slot's.
    Halves { len: usize, pairs: Box<[u8]> },
    /// Of a larger one.
    Bytes(Box<[u8]>),
}

impl Places {
    fn new(places: &[u8], words: usize) -> Self {
        if words > 16 {
            return Self::Bytes(places.into());
        }
        let pairs = places.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |place| place << 4));
        Self::Halves { len: places.len(), pairs: pairs.collect() }
    }

    fn len(&self) -> usize {
        match self {
            Self::Halves { len, .. } => *len,
            Self::Bytes(places) => places.len(),
        }
    }

    fn get(&self, at: usize) -> Option<usize> {
        match self {
            Self::Halves { len, pairs } => {
                (at < *len).then(|| usize::from(pairs[at / 2] >> (at % 2 * 4) & 15))
            }
            Self::Bytes(places) => places.get(at).map(|place| usize::from(*place)),
        }
    }
}

impl Ring {
    /// How many slots it has.
    #[must_use]
    pub fn len(&self) -> usize {
        match &*self.0 {
            Words::Packed { places, .. } => places.len(),
            Words::Plain(words) => words.len(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The word of a slot.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&Slot> {
        match &*self.0 {
            Words::Packed { palette, places } => places.get(at).map(|place| &palette[place]),
            Words::Plain(words) => words.get(at),
        }
    }

    /// The words, slot by slot.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { ring: self, at: 0 }
    }

    /// The different words it holds; some may occur more than once.
    #[must_use]
    pub fn different(&self) -> &[Slot] {
        match &*self.0 {
            Words::Packed { palette: words, .. } | Words::Plain(words) => words,
        }
    }

    /// True if no slot asks the flow table.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.different().iter().all(|slot| slot.is_plain())
    }

    /// True if both are the same words in memory, without looking at them.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Changes words.
    pub fn update(&mut self, change: impl FnOnce(&mut Vec<Slot>)) {
        let mut words: Vec<Slot> = self.iter().copied().collect();
        change(&mut words);
        *self = words.into();
    }
}

impl Default for Ring {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl From<Vec<Slot>> for Ring {
    fn from(words: Vec<Slot>) -> Self {
        let mut palette = Palette::new();
        let mut places = Vec::with_capacity(words.len());
        for word in &words {
            match palette.place(*word) {
                Some(place) => places.push(place),
                None => return Self(Arc::new(Words::Plain(words.into()))),
            }
        }
        let places = Places::new(&places, palette.words.len());
        Self(Arc::new(Words::Packed { palette: palette.words.into(), places }))
    }
}

impl FromIterator<Slot> for Ring {
    fn from_iter<I: IntoIterator<Item = Slot>>(words: I) -> Self {
        words.into_iter().collect::<Vec<_>>().into()
    }
}

/// Words that were met, found again by a hash table of open addresses.
struct Palette {
    words: Vec<Slot>,
    /// 1 + the place in `words`, 0 = free; four times as many as words.
    table: [u16; Self::TABLE],
}

impl Palette {
    const BITS: u32 = 10;
    const TABLE: usize = 1 << Self::BITS;

    fn new() -> Self {
        Self { words: Vec::new(), table: [0; Self::TABLE] }
    }

    /// `None` if it would be the 257th.
    fn place(&mut self, word: Slot) -> Option<u8> {
        // Knuth's multiplicative hash: the upper bits depend on all of the word.
        let mut at = (word.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - Self::BITS)) as usize;
        loop {
            match self.table[at] {
                0 => break,
                place if self.words[usize::from(place) - 1] == word => return Some((place - 1) as u8),
                _ => at = (at + 1) % Self::TABLE,
            }
        }
        let place = u8::try_from(self.words.len()).ok()?;
        self.words.push(word);
        self.table[at] = u16::from(place) + 1;
        Some(place)
    }
}

/// The words of a ring.
#[derive(Clone)]
pub struct Iter<'a> {
    ring: &'a Ring,
    at: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Slot;

    fn next(&mut self) -> Option<&'a Slot> {
        let word = self.ring.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.ring.len() - self.at;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> IntoIterator for &'a Ring {
    type Item = &'a Slot;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl Index<usize> for Ring {
    type Output = Slot;

    fn index(&self, at: usize) -> &Slot {
        self.get(at).unwrap_or_else(|| panic!("slot {at} of {}", self.len()))
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// With few different words and with many: what goes in comes out, and equal is equal.
        #[test]
        fn what_is_packed_is_unpacked(words in proptest::collection::vec(0..400u64, 0..2000), few in 1..400u64) {
            let words: Vec<Slot> = words.into_iter().map(|w| Slot(w % few * 0x1_0000_0001)).collect();
            let ring = Ring::from(words.clone());
            prop_assert_eq!(ring.len(), words.len());
            prop_assert!(ring.iter().eq(&words));
            prop_assert_eq!(&ring, &words.iter().copied().collect::<Ring>());
            prop_assert_eq!(ring.get(words.len()), None);
            prop_assert_eq!(ring.is_plain(), words.iter().all(|word| word.is_plain()));
            let mut other = ring.clone();
            prop_assert!(other.is_same(&ring));
            other.update(|words| words.push(Slot(1 << 60)));
            prop_assert!(other != ring && other.len() == ring.len() + 1 && other[words.len()] == Slot(1 << 60));
        }
    }

    #[test]
    fn the_257th_word_still_fits() {
        for count in [1, 15, 16, 17, 255, 256, 257, 300] {
            let words: Vec<Slot> = (0..2 * count).map(|i| Slot(i % count)).collect();
            let ring = Ring::from(words.clone());
            assert!(ring.iter().eq(&words), "{count}");
            assert_eq!(ring.different().len() < words.len(), count <= 256);
        }
    }
}

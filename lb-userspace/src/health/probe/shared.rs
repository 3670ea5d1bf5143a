//! What thousands of checks with the same settings have in common (a TLS configuration with its
//! authorities, a compiled regular expression) is made once and lives as long as one of them.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

/// Values by what they were made from.
pub(super) struct Shared<K, V>(LazyLock<Mutex<HashMap<K, Weak<V>>>>);

impl<K: Eq + Hash + Clone, V> Shared<K, V> {
    pub(super) const fn new() -> Self {
        Self(LazyLock::new(|| Mutex::new(HashMap::new())))
    }

    /// The value of `key`, made if nobody holds one.
    pub(super) fn get_or<E>(&self, key: &K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        // Every write is a whole insert or remove: what a panicking writer leaves is sound.
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values.get(key).and_then(Weak::upgrade) {
            return Ok(value);
        }
        let value = Arc::new(make()?);
        values.retain(|_, value| value.strong_count() > 0);
        values.insert(key.clone(), Arc::downgrade(&value));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_share_and_the_last_user_ends_it() {
        static SHARED: Shared<u8, u8> = Shared::new();
        let make = |value: u8| move || Ok::<_, ()>(value);
        let one = SHARED.get_or(&1, make(10)).unwrap();
        assert!(Arc::ptr_eq(&one, &SHARED.get_or(&1, make(11)).unwrap()));
        assert_eq!(*SHARED.get_or(&2, make(20)).unwrap(), 20);
        drop(one);
        assert_eq!(*SHARED.get_or(&1, make(12)).unwrap(), 12);
        assert_eq!(SHARED.get_or(&3, || Err::<u8, _>("no")), Err("no"));
        assert!(SHARED.0.lock().unwrap().len() <= 2);
    }
}

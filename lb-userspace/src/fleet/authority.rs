//! Who has the word in changes that concern the whole fleet.

/// What this node knows of the authority: the one node of the fleet whose decisions all others follow. It is the
/// holder of a key in etcd that ends with its holder's lease, so that never two nodes hold it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Authority {
    /// This node is it. Taken back no later than its own lease ends by its own monotonic clock, so before etcd gives
    /// the key to another.
    pub mine: bool,
    /// The name of the node that is it, as far as is known: none while there is no election, and while etcd
    /// has not answered for longer than a lease.
    pub holder: Option<String>,
    /// Grows with every election (etcd's revision that the key was made with), and only then: whoever sees a word
    /// of a lower epoch than one seen before does not follow it. 0 while none was ever seen; kept when the
    /// holder is lost.
    pub epoch: u64,
}

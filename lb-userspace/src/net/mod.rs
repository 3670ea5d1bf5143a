//! What the kernel knows of the network: links, routes, neighbours over netlink; next hops kept fresh; capabilities.

//! Desired state against observed state, to a list of actions in a safe order. Pure.

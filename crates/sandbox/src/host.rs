//! Facts about this host that decide how sandboxes can be made here.

/// Something that sandboxes go without on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// What is lost.
    pub what: String,
    /// How to get it.
    pub remedy: String,
}

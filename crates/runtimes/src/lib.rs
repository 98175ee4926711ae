//! Which language runtimes this host has, from where, and the root file system and bootstrap of each.
//!
//! Owns the search for interpreters ([`Catalog::discover`]), the choice of one for a Lambda runtime name
//! ([`Catalog::resolve`]), the installation of further ones ([`Catalog::add`]) and the bootstraps that speak the
//! Runtime API for them. Returns plain data: it starts no function and mounts nothing, that is the worker's and the
//! sandbox's work.

mod add;
mod bootstrap;
mod catalog;
mod discover;
mod name;
mod probe;
mod root;

pub use add::AddError;
pub use bootstrap::BootstrapError;
pub use catalog::{Catalog, Options, ResolveError, Resolved, Waits};
pub use discover::{Installed, Origin};
pub use name::{Language, RuntimeName, RuntimeNameError, Version};
pub use root::RootPlan;

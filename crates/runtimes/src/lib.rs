//! Which language runtimes this host has, from where, and the root file system and bootstrap of each.

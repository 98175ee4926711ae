//! Function images from zip archives: hostile-input checks, deterministic unpacking, content addresses.

//! The machine against a simple model, over random interleavings.

//! Without root: a user namespace per sandbox.

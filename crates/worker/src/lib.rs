//! A host: environment lifecycle, code cache, log capture.

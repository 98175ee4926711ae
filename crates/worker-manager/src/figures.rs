//! What the manager tells of itself, for metrics.

use worker::VersionKey;

use crate::core::{FunctionFigures, Provisioned, SharedFigures, VersionFigures};

/// A snapshot. Counts are since the start of the server, or since the function was last forgotten: one that nobody has
/// invoked for longer than its environments are kept begins at zero again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// By name.
    pub functions: Vec<FunctionReport>,
    /// Of all functions together.
    pub totals: SharedFigures,
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionReport {
    /// Its name.
    pub name: String,
    /// Invocations, throttles and starts.
    pub counts: FunctionFigures,
    /// Its versions that have environments or provisioned concurrency, retired ones included.
    pub versions: Vec<VersionReport>,
}

/// A version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionReport {
    /// The pool.
    pub key: VersionKey,
    /// `$LATEST` or a number.
    pub version: String,
    /// Environments and waiting requests.
    pub now: VersionFigures,
}

impl FunctionReport {
    /// The environments of all its versions.
    pub fn environments(&self) -> VersionFigures {
        let mut sum = VersionFigures::default();
        for VersionReport { now, .. } in &self.versions {
            sum.wanted += now.wanted;
            sum.starting += now.starting;
            sum.busy += now.busy;
            sum.settling += now.settling;
            sum.idle += now.idle;
            sum.leaving += now.leaving;
            sum.waiting += now.waiting;
            let Provisioned { requested, allocated, available, failed } = now.provisioned;
            sum.provisioned.requested += requested;
            sum.provisioned.allocated += allocated;
            sum.provisioned.available += available;
            sum.provisioned.failed = sum.provisioned.failed.or(failed);
        }
        sum
    }
}

impl Figures {
    /// Requests without an environment, over all functions.
    pub fn waiting(&self) -> u32 {
        self.functions.iter().flat_map(|function| &function.versions).map(|version| version.now.waiting).sum()
    }
}

//! What is to be told of a version.

use super::*;

/// The state of a provisioned-concurrency setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Provisioned {
    /// Environments asked for.
    pub requested: u32,
    /// Initialized, busy ones included.
    pub allocated: u32,
    /// Initialized and idle.
    pub available: u32,
    /// Why no more are made until the setting is made anew, if that is so.
    pub failed: Option<ProvisionFailure>,
}

/// What went wrong with a provisioned environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProvisionFailure {
    /// It was made, and its initialization failed.
    Initialization,
    /// There is no room for it.
    NoRoom,
}

/// How many environments and requests a version has, by what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VersionFigures {
    /// Environments that wait for a place on a worker.
    pub wanted: u32,
    /// Environments that are being made.
    pub starting: u32,
    /// Environments with an invocation that is not answered.
    pub busy: u32,
    /// Environments whose invocations are all answered, but not over.
    pub settling: u32,
    /// Environments that wait for an invocation.
    pub idle: u32,
    /// Environments that were told to end and have not.
    pub leaving: u32,
    /// Requests without an environment.
    pub waiting: u32,
    /// The provisioned-concurrency setting.
    pub provisioned: Provisioned,
}

impl Version {
    /// The provisioned setting and how far it has been carried out.
    pub fn provisioned(&self) -> Provisioned {
        self.figures().provisioned
    }

    /// What it has now. Looks at every environment.
    pub fn figures(&self) -> VersionFigures {
        let mut figures = VersionFigures {
            leaving: count(self.leaving.len()),
            waiting: count(self.waiting.len()),
            provisioned: Provisioned {
                requested: self.provisioned_target,
                failed: self.provisioned_failed,
                ..Provisioned::default()
            },
            ..VersionFigures::default()
        };
        for environment in self.environments.values() {
            let provisioned = u32::from(environment.purpose == Purpose::Provisioned);
            match &environment.stage {
                Stage::Wanted { .. } => figures.wanted += 1,
                Stage::Starting { .. } => figures.starting += 1,
                Stage::Up(up) => {
                    figures.provisioned.allocated += provisioned;
                    if !up.flights.is_empty() {
                        figures.busy += 1;
                    } else if up.settling > 0 {
                        figures.settling += 1;
                    } else {
                        figures.idle += 1;
                        figures.provisioned.available += provisioned;
                    }
                }
            }
        }
        figures
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

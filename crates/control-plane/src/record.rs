//! What the control plane keeps of a function: its settings, code, versions and states.
//!
//! ```text
//!             create                 complete(ok)
//! (nothing) ---------> Pending ------------------> Active <----+
//!                         |                          |  update | complete(ok)
//!                         | complete(failure)        v         |
//!                         +------------> Failed   InProgress --+--> Failed (LastUpdateStatus; the old code serves on)
//! ```

mod attached;
mod governance;
mod layer;
mod signing;
mod url;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use aws_model::arn::Qualifier;
use serde::{Deserialize, Serialize};
use store::Digest;
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

use crate::objects::ObjectRef;

pub use self::attached::{Alias, Attached, ProvisionedSetting, Scope, Weight};
pub use self::governance::{EventInvoke, RecursiveLoop, RuntimeUpdate};
pub use self::layer::{Layer, LayerVersion};
pub use self::signing::{CodeSigning, SigningPolicy};
pub use self::url::{Cors, InvokeMode, UrlAuth, UrlConfig};

/// A moment, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl From<SystemTime> for Timestamp {
    fn from(moment: SystemTime) -> Self {
        // A clock before 1970 is not worth an error path.
        let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

impl std::fmt::Display for Timestamp {
    /// The form of `LastModified`: `2026-01-02T03:04:05.678+0000`.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const FORM: &[FormatItem<'_>] =
            format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]+0000");
        let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        formatter.write_str(&moment.format(FORM).map_err(|_| std::fmt::Error)?)
    }
}

/// Environment variables. `Debug` shows their names only: the values are often secrets.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variables(pub BTreeMap<String, String>);

impl std::fmt::Debug for Variables {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

/// The instruction set of the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    X86_64,
    Arm64,
}

impl Architecture {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
        }
    }
}

/// Where and how a function logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logging {
    pub group: String,
    pub format: LogFormat,
}

/// The form of a function's log lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    Text,
    Json { application_level: String, system_level: String },
}

/// The subnets and security groups that the caller named; kept and shown, see docs/compatibility.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vpc {
    pub subnets: Vec<String>,
    pub security_groups: Vec<String>,
    pub ipv6: bool,
}

/// `LambdaManagedInstancesCapacityProviderConfig`. There is but one provider, so its name is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// `PerExecutionEnvironmentMaxConcurrency`, 1 to 1,600, where the caller named it.
    pub max_concurrency: Option<u32>,
}

/// `FunctionScalingConfig`: how many environments a version on a capacity provider has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    /// `MinExecutionEnvironments`: kept initialized, 0 to 15,000.
    pub least: u32,
    /// `MaxExecutionEnvironments`: no more at once; with 0 the version is deactivated. Not below `least`.
    pub most: u32,
}

/// All that a caller configures of a function and that a version freezes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSettings {
    /// A name of the `Runtime` enum.
    pub runtime: String,
    pub handler: String,
    /// ARN of the execution role.
    pub role: String,
    pub description: String,
    /// Seconds, 1 to 900.
    pub timeout_secs: u32,
    /// MiB, 128 to 10,240.
    pub memory_mib: u32,
    /// Size of `/tmp` in MiB, 512 to 10,240.
    pub ephemeral_mib: u32,
    /// Absent is not the same as empty: the API shows the difference.
    pub environment: Option<Variables>,
    pub architecture: Architecture,
    /// `TracingConfig.Mode` is `Active`.
    pub tracing_active: bool,
    pub logging: Logging,
    pub vpc: Option<Vpc>,
    pub dead_letter_arn: Option<String>,
    pub kms_key_arn: Option<String>,
    /// The key that the caller names for the package; kept and shown.
    #[serde(default)]
    pub source_kms_key_arn: Option<String>,
    /// `SnapStart.ApplyOn` is `PublishedVersions`.
    pub snap_start: bool,
    /// On which capacity it runs, where that is not the ordinary one.
    #[serde(default)]
    pub capacity: Option<Capacity>,
    /// Mounted at `/opt`, later ones over earlier ones.
    #[serde(default)]
    pub layers: Vec<LayerUse>,
}

/// A layer version in a function: all that running it needs, so that it goes on working when the layer version is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerUse {
    /// ARN of the layer version.
    pub arn: String,
    pub code: Code,
}

/// A code package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// Names the zip in the blob store.
    pub digest: Digest,
    /// Bytes of the zip.
    pub size: u64,
    /// Bytes of its files.
    pub unzipped_size: u64,
}

/// Whether a version can be invoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Its code is being prepared for the first time, or its snapshot is.
    Pending,
    Active,
    /// Its code or its snapshot could not be prepared. An update gives `$LATEST` another chance.
    Failed {
        code: String,
        reason: String,
    },
}

/// How the last update went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateStatus {
    /// Creation has not ended.
    None,
    InProgress,
    Successful,
    Failed {
        code: String,
        reason: String,
    },
}

/// Which version of a function a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VersionId {
    Latest,
    Number(u64),
}

impl std::fmt::Display for VersionId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Latest => formatter.write_str("$LATEST"),
            Self::Number(number) => write!(formatter, "{number}"),
        }
    }
}

impl From<VersionId> for Qualifier {
    fn from(id: VersionId) -> Self {
        match id {
            VersionId::Latest => Self::Latest,
            VersionId::Number(number) => Self::Version(number),
        }
    }
}

/// One version of a function: `$LATEST` or a published one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionVersion {
    pub function: String,
    pub id: VersionId,
    /// Without qualifier.
    pub arn: String,
    pub settings: FunctionSettings,
    pub code: Code,
    /// The object in S3 that the caller wants to be used where it lies; `code` is a copy of it.
    #[serde(default)]
    pub reference: Option<ObjectRef>,
    /// A UUID that changes with every change, state changes included.
    pub revision_id: String,
    /// The revision that the last change of settings or code began with: tells its work from that of any other.
    #[serde(default)]
    pub attempt: String,
    /// Counts the changes of settings and code of `$LATEST`; a published version carries the count it was made from.
    pub content: u64,
    pub last_modified: Timestamp,
    pub state: State,
    pub update: UpdateStatus,
    /// A version with SnapStart: whether there is a snapshot that its environments go on from.
    #[serde(default)]
    pub optimized: bool,
    /// Of a published version on a capacity provider, where it was given.
    #[serde(default)]
    pub scaling: Option<Scaling>,
}

impl FunctionVersion {
    /// Whether it may have no environments, and so cannot be invoked.
    pub fn is_deactivated(&self) -> bool {
        self.scaling.is_some_and(|scaling| scaling.most == 0)
    }

    /// Its state as the API names it.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::Pending => "Pending",
            State::Active if self.is_deactivated() => "Deactivated",
            State::Active => "Active",
            State::Failed { .. } => "Failed",
        }
    }

    /// Whether it is a version that waits for a snapshot, be its code prepared or not.
    pub(crate) fn wants_snapshot(&self) -> bool {
        self.settings.snap_start && matches!(self.id, VersionId::Number(_)) && self.state == State::Pending
    }

    /// The ARN with `:VERSION`.
    pub fn qualified_arn(&self) -> String {
        format!("{}:{}", self.arn, self.id)
    }
}

/// A function with its versions. Immutable: a change makes a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub latest: Arc<FunctionVersion>,
    /// What invocations of `$LATEST` run while an update is in progress or after it failed.
    pub previous: Option<Arc<FunctionVersion>>,
    pub versions: BTreeMap<u64, Arc<FunctionVersion>>,
    /// Never handed out twice, not even after a version was deleted.
    pub next_version: u64,
    pub attached: Attached,
}

impl Function {
    /// The record of a version.
    pub fn version(&self, id: VersionId) -> Option<&Arc<FunctionVersion>> {
        match id {
            VersionId::Latest => Some(&self.latest),
            VersionId::Number(number) => self.versions.get(&number),
        }
    }

    /// The record that an invocation runs: for `$LATEST` the last one that was completed.
    pub fn serving(&self, id: VersionId) -> Option<&Arc<FunctionVersion>> {
        match id {
            VersionId::Latest => Some(self.previous.as_ref().unwrap_or(&self.latest)),
            VersionId::Number(number) => self.versions.get(&number),
        }
    }

    /// Every record, `$LATEST` first, then the versions in order.
    pub fn records(&self) -> impl Iterator<Item = &Arc<FunctionVersion>> {
        std::iter::once(&self.latest).chain(self.versions.values())
    }

    /// Every code package that this function needs.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        let versions = self.records().chain(&self.previous);
        versions.flat_map(|version| {
            let layers = version.settings.layers.iter().map(|layer| layer.code.digest);
            std::iter::once(version.code.digest).chain(layers)
        })
    }
}

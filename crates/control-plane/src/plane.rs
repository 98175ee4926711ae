//! The control plane itself: tables in memory, one writer per function, and the lookup of the invoke path.
//!
//! A writer holds its function's lock from judging to visibility, and the commit runs in a task of its own: a caller
//! that goes away leaves neither a lock held nor memory behind the store. Readers only ever wait for the insertion of
//! a pointer.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use aws_model::ApiError;
use aws_model::arn::{FunctionRef, Qualifier, Realm};
use store::{Blobs, CommitError, Digest, Metadata, StoreError};

use crate::autoscaling::Autoscaling;
use crate::mappings::Mappings;
use crate::objects::Objects;
use crate::record::{CodeSigning, Function, FunctionVersion, Layer, VersionId};
use crate::roles::Roles;
use crate::shelf::Shelf;
use crate::tables::{self, OpenError, Stored};
use crate::usage::Usage;

/// Writers of different functions wait for each other only when their names share one of these.
const STRIPES: usize = 64;

/// Keeps the blob collector away.
pub(crate) type BlobGuard = tokio::sync::OwnedRwLockReadGuard<()>;

/// What the operator decides about the control plane.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Twelve digits; part of every ARN.
    pub account_id: String,
    /// Such as `us-east-1`; part of every ARN.
    pub region: String,
    pub limits: Limits,
    /// Who fetches code from S3.
    pub objects: Arc<dyn Objects>,
}

/// Account-wide limits, Lambda's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Concurrent executions of all functions together.
    pub concurrent_executions: u32,
    /// What provisioned concurrency must leave to everyone.
    pub unreserved_minimum: u32,
    /// Bytes of a zip in a request.
    pub zipped_code: u64,
    /// Bytes of the files in a zip; a package has to stay below.
    pub unzipped_code: u64,
    /// Unzipped bytes of all functions and versions together.
    pub total_code: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_executions: 1_000,
            unreserved_minimum: 100,
            zipped_code: 52_428_800,
            unzipped_code: 262_144_000,
            total_code: 300 * 1024 * 1024 * 1024,
        }
    }
}

/// The control plane. Cheap to clone; every clone is the same one.
#[derive(Clone)]
pub struct ControlPlane {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub realm: Realm,
    pub limits: Limits,
    pub blobs: Arc<dyn Blobs>,
    pub objects: Arc<dyn Objects>,
    metadata: Arc<dyn Metadata>,
    roles: Roles,
    pub layers: Shelf<Layer>,
    pub mappings: Mappings,
    pub autoscaling: Autoscaling,
    functions: RwLock<BTreeMap<String, Stored>>,
    /// Of `functions`, and changed together with it.
    usage: Mutex<Usage>,
    stripes: Vec<Arc<tokio::sync::Mutex<()>>>,
    hasher: BuildHasherDefault<DefaultHasher>,
    /// Held shared from storing a blob until something refers to it, and exclusively while unreferenced ones go.
    pub blob_gate: Arc<tokio::sync::RwLock<()>>,
    /// Held shared by every collector that runs.
    collecting: Arc<tokio::sync::RwLock<()>>,
    /// Held while the sum of all provisioned concurrency is judged and changed.
    pub provisioning: tokio::sync::Mutex<()>,
    /// By id.
    pub code_signing: Shelf<CodeSigning>,
    /// Held while a function begins to follow a code signing configuration, and while one is deleted.
    pub signing: tokio::sync::Mutex<()>,
}

/// A function version that a name and qualifier lead to.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What runs. While an update is in progress this is the version before it.
    pub version: Arc<FunctionVersion>,
    /// The ARN as the caller asked for it: with a qualifier if there was one.
    pub invoked_arn: String,
}

impl ControlPlane {
    /// Loads every table, and removes code packages that nothing refers to: what a crash may have left. `blobs` is
    /// therefore the control plane's alone.
    ///
    /// # Errors
    /// The store cannot be read, or holds what this version does not understand.
    pub async fn open(
        metadata: Arc<dyn Metadata>,
        blobs: Arc<dyn Blobs>,
        settings: Settings,
    ) -> Result<Self, OpenError> {
        let functions = tables::load(metadata.as_ref()).await?;
        let roles = Roles::open(Arc::clone(&metadata), settings.account_id.clone()).await?;
        let layers = Shelf::open(Arc::clone(&metadata), tables::LAYERS).await?;
        let mappings = Mappings::open(Arc::clone(&metadata)).await?;
        let autoscaling = Autoscaling::open(Arc::clone(&metadata)).await?;
        let code_signing = Shelf::open(Arc::clone(&metadata), tables::CODE_SIGNING).await?;
        let inner = Inner {
            realm: Realm { region: settings.region, account: settings.account_id },
            limits: settings.limits,
            blobs,
            objects: settings.objects,
            metadata,
            roles,
            layers,
            mappings,
            autoscaling,
            usage: Mutex::new(Usage::of(functions.values().map(|stored| stored.function.as_ref()))),
            functions: RwLock::new(functions),
            stripes: (0..STRIPES).map(|_| Arc::default()).collect(),
            hasher: BuildHasherDefault::default(),
            blob_gate: Arc::default(),
            collecting: Arc::default(),
            provisioning: tokio::sync::Mutex::default(),
            code_signing,
            signing: tokio::sync::Mutex::default(),
        };
        let plane = Self { inner: Arc::new(inner) };
        plane.sweep_blobs().await;
        Ok(plane)
    }

    /// Region and account of this installation.
    pub fn realm(&self) -> &Realm {
        &self.inner.realm
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// The IAM roles.
    pub fn roles(&self) -> &Roles {
        &self.inner.roles
    }

    /// The version that an invocation of `name` runs. `chance` (0 up to, but not including, 1) chooses where an alias
    /// has weights. Never waits for the store.
    ///
    /// # Errors
    /// ResourceNotFoundException, and the errors of [`Realm::resolve`].
    pub fn resolve(&self, name: &str, qualifier: Option<&str>, chance: f64) -> Result<Resolved, ApiError> {
        let target = self.inner.realm.resolve(name, qualifier)?;
        let functions = self.inner.read();
        let found = functions.get(&target.name).filter(|_| target.account == self.inner.realm.account);
        let version = found.and_then(|stored| stored.function.route(target.qualifier.as_ref(), chance));
        match version {
            Some(version) => {
                let invoked_arn = match &target.qualifier {
                    Some(qualifier) => format!("{}:{qualifier}", version.arn),
                    None => version.arn.clone(),
                };
                Ok(Resolved { version: Arc::clone(version), invoked_arn })
            }
            // Invoke alone spells the qualifier out that nobody gave.
            None => {
                let qualifier = Some(target.qualifier.unwrap_or(Qualifier::Latest));
                Err(self.not_found(&FunctionRef { qualifier, ..target }))
            }
        }
    }

    /// A function with its versions, by its bare name.
    pub fn function(&self, name: &str) -> Option<Arc<Function>> {
        self.inner.read().get(name).map(|stored| Arc::clone(&stored.function))
    }

    /// Every function, in the order of their names.
    pub fn functions(&self) -> Vec<Arc<Function>> {
        self.inner.read().values().map(|stored| Arc::clone(&stored.function)).collect()
    }

    /// The functions from a name on, in the order of their names, at most `count`.
    pub(crate) fn functions_from(&self, name: &str, count: usize) -> Vec<Arc<Function>> {
        let functions = self.inner.read();
        let range = functions.range::<str, _>((Bound::Included(name), Bound::Unbounded)).take(count);
        range.map(|(_, stored)| Arc::clone(&stored.function)).collect()
    }

    /// How many functions there are.
    pub fn function_count(&self) -> usize {
        self.inner.read().len()
    }

    /// Waits until no removal of unused code packages is under way: the last thing before a server ends, and what must
    /// come before another control plane opens the same stores.
    pub async fn settled(&self) {
        drop(self.inner.collecting.write().await);
    }

    pub(crate) fn not_found(&self, target: &FunctionRef) -> ApiError {
        ApiError::resource_not_found(format!("Function not found: {}", self.inner.realm.arn_of(target)))
    }

    /// The function that a management request names, and what its qualifier asks for.
    pub(crate) fn find(
        &self,
        name: Option<&str>,
        qualifier: Option<&str>,
    ) -> Result<(Arc<Function>, FunctionRef), ApiError> {
        let target = self.target(name, qualifier)?;
        match self.function(&target.name).filter(|_| target.account == self.inner.realm.account) {
            Some(function) => Ok((function, target)),
            None => Err(self.not_found(&target)),
        }
    }

    /// The name of a request that changes `$LATEST` or the function as a whole.
    pub(crate) fn unqualified(&self, name: Option<&str>) -> Result<FunctionRef, ApiError> {
        let target = self.target(name, None)?;
        match target.qualifier {
            None | Some(Qualifier::Latest) => Ok(FunctionRef { qualifier: None, ..target }),
            Some(_) => Err(ApiError::invalid_parameter_value(
                "This operation is permitted on Lambda functions only. Aliases and versions do not support this \
                 operation. Please specify either a function name or an unqualified function ARN.",
            )),
        }
    }

    pub(crate) fn target(&self, name: Option<&str>, qualifier: Option<&str>) -> Result<FunctionRef, ApiError> {
        // The shape requires a name; an empty one is found nowhere.
        self.inner.realm.resolve(name.unwrap_or_default(), qualifier)
    }

    /// Changes one function: `judge` sees what is there and says what shall be (`None`: nothing), or refuses.
    /// Answers what was and what is.
    /// `keep` is held until the change is visible, whatever becomes of the caller.
    pub(crate) async fn mutate(
        &self,
        name: &str,
        keep: Option<BlobGuard>,
        judge: impl FnOnce(Option<&Function>) -> Result<Option<Function>, ApiError>,
    ) -> Result<Mutation, ApiError> {
        let stripe = &self.inner.stripes[self.inner.hasher.hash_one(name) as usize % STRIPES];
        let lock = Arc::clone(stripe).lock_owned().await;
        let old = self.inner.read().get(name).cloned();
        let new = judge(old.as_ref().map(|stored| stored.function.as_ref()))?.map(Arc::new);
        let unchanged = match (&old, &new) {
            (None, None) => true,
            (Some(old), Some(new)) => old.function == *new,
            _ => false,
        };
        let before = old.as_ref().map(|stored| Arc::clone(&stored.function));
        if unchanged {
            return Ok(Mutation { before, after: new });
        }
        let inner = Arc::clone(&self.inner);
        let (name, after) = (name.to_owned(), new.clone());
        let commit = tokio::spawn(async move {
            let outcome = inner.commit(&name, old.as_ref(), new).await;
            if outcome.is_err() {
                inner.reload(&name).await;
            }
            drop((lock, keep));
            outcome
        });
        match commit.await {
            Ok(outcome) => outcome?,
            Err(error) => {
                tracing::error!(%error, "a commit task died");
                return Err(ApiError::service("The change could not be stored."));
            }
        }
        Ok(Mutation { before, after })
    }

    /// Removes the blobs among `candidates` that no function and no layer refers to any more.
    pub(crate) async fn collect_blobs(&self, candidates: HashSet<Digest>) {
        if candidates.is_empty() {
            return;
        }
        let inner = Arc::clone(&self.inner);
        let running = Arc::clone(&inner.collecting).read_owned().await;
        // In a task of its own, so that neither an answer waits for it nor a caller that leaves stops it.
        tokio::spawn(async move {
            inner.collect_blobs(candidates).await;
            drop(running);
        });
    }

    /// At start: whatever a crash left between storing a package and referring to it.
    async fn sweep_blobs(&self) {
        match self.inner.blobs.list().await {
            Ok(digests) => self.inner.collect_blobs(digests.into_iter().collect()).await,
            Err(error) => tracing::warn!(%error, "cannot list the code packages; unused ones stay on the disk"),
        }
    }
}

/// A function before and after a change.
pub(crate) struct Mutation {
    pub before: Option<Arc<Function>>,
    pub after: Option<Arc<Function>>,
}

impl Mutation {
    /// Packages that the function needed before and does not need now.
    pub fn released(&self) -> HashSet<Digest> {
        let mut digests: HashSet<Digest> = self.before.iter().flat_map(|function| function.digests()).collect();
        for digest in self.after.iter().flat_map(|function| function.digests()) {
            digests.remove(&digest);
        }
        digests
    }
}

impl Inner {
    pub fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Stored>> {
        // Only insertions and removals of whole entries happen under the lock: a poisoned map is whole.
        self.functions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Stored>> {
        self.functions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change durable, then visible.
    async fn commit(&self, name: &str, old: Option<&Stored>, new: Option<Arc<Function>>) -> Result<(), ApiError> {
        let batch = tables::batch(old, new.as_deref()).map_err(|error| store_failed(name, &error))?;
        let revisions = self.metadata.commit(batch).await.map_err(|error| commit_failed(name, &error))?;
        // The function's own document is the last write of the batch.
        let revision = revisions.last().copied().unwrap_or_default();
        self.put(name, new.map(|function| Stored { function, revision }));
        Ok(())
    }

    /// Makes what is stored visible.
    fn put(&self, name: &str, new: Option<Stored>) {
        let added = new.as_ref().map(|stored| Arc::clone(&stored.function));
        let mut functions = self.write();
        let old = match new {
            Some(stored) => functions.insert(name.to_owned(), stored),
            None => functions.remove(name),
        };
        // While the table is held, so that the count never belongs to another state of it.
        self.usage().replace(old.as_ref().map(|stored| stored.function.as_ref()), added.as_deref());
    }

    /// What all functions together hold. Not to be held while the table is asked for.
    pub fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a commit whose outcome is open: memory follows the store again.
    async fn reload(&self, name: &str) {
        match tables::load_one(self.metadata.as_ref(), name).await {
            Ok(stored) => self.put(name, stored),
            Err(error) => tracing::error!(function = name, %error, "cannot read a function back from the store"),
        }
    }

    async fn collect_blobs(&self, candidates: HashSet<Digest>) {
        let _alone = self.blob_gate.write().await;
        let unused: Vec<Digest> = {
            let layers = self.layers.all();
            let layers: HashSet<Digest> = layers.iter().flat_map(|(_, layer)| layer.digests()).collect();
            let usage = self.usage();
            candidates.into_iter().filter(|digest| !usage.refers_to(digest) && !layers.contains(digest)).collect()
        };
        for digest in unused {
            if let Err(error) = self.blobs.delete(&digest).await {
                tracing::warn!(%digest, %error, "an unused code package stays on the disk");
            }
        }
    }
}

/// The version that a qualifier is the number of; none for the name of an alias, see [`Function::named`].
pub(crate) fn version_id(qualifier: Option<&Qualifier>) -> Option<VersionId> {
    match qualifier {
        None | Some(Qualifier::Latest) => Some(VersionId::Latest),
        Some(Qualifier::Version(number)) => Some(VersionId::Number(*number)),
        Some(Qualifier::LatestPublished | Qualifier::Alias(_)) => None,
    }
}

pub(crate) fn commit_failed(name: &str, error: &CommitError) -> ApiError {
    match error {
        CommitError::Conflict { .. } => {
            ApiError::resource_conflict(format!("{name} was changed by another server at the same time."))
        }
        CommitError::Store(StoreError::Full { .. }) => {
            tracing::error!(item = name, %error, "a change was not stored");
            ApiError::service("The server has no disk space left.")
        }
        CommitError::DuplicateKey { .. } | CommitError::NotJson { .. } | CommitError::Store(_) => {
            store_failed(name, error)
        }
    }
}

pub(crate) fn store_failed(name: &str, error: &dyn std::error::Error) -> ApiError {
    tracing::error!(item = name, %error, source = error.source().map(tracing::field::display), "a change was not stored");
    ApiError::service("The change could not be stored.")
}

//! The runtimes that environments on this host can have.

use std::sync::{Arc, PoisonError};

use runtimes::{Catalog, Resolved};

use super::{Inner, StartError, chain};

impl Inner {
    /// The runtime for a name. What was added since the start of the server is found, too.
    pub(crate) async fn resolve(self: &Arc<Self>, runtime: &str) -> Result<Arc<Resolved>, StartError> {
        if let Some(resolved) = self.resolved(runtime) {
            return Ok(resolved);
        }
        // One at a time, on a thread that may wait: this reads directories and may run interpreters to learn their age.
        let _turn = self.resolving.lock().await;
        if let Some(resolved) = self.resolved(runtime) {
            return Ok(resolved);
        }
        let (inner, name) = (Arc::clone(self), runtime.to_owned());
        let work = tokio::task::spawn_blocking(move || inner.look_for(&name));
        work.await.unwrap_or_else(|panic| Err(StartError::Runtime(format!("looking for {runtime} failed: {panic}"))))
    }

    fn resolved(&self, runtime: &str) -> Option<Arc<Resolved>> {
        self.resolved.read().unwrap_or_else(PoisonError::into_inner).get(runtime).cloned()
    }

    fn look_for(&self, runtime: &str) -> Result<Arc<Resolved>, StartError> {
        let first = self.catalog.read().unwrap_or_else(PoisonError::into_inner).resolve(runtime);
        let resolved = match first {
            Ok(resolved) => resolved,
            Err(_) => {
                let catalog = Catalog::discover(&self.catalog_options);
                let again = catalog.resolve(runtime).map_err(|error| StartError::Runtime(chain(&error)));
                *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
                again?
            }
        };
        if let Some(warning) = &resolved.warning {
            tracing::warn!(runtime, "{warning}");
        }
        let resolved = Arc::new(resolved);
        self.resolved.write().unwrap_or_else(PoisonError::into_inner).insert(runtime.to_owned(), Arc::clone(&resolved));
        Ok(resolved)
    }
}

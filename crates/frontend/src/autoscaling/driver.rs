//! The clock of scaling: what is due is carried out, and provisioned environments that could not be initialized are tried
//! again after a while. In between it sleeps, for ever where nothing scales and nothing has failed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control_plane::autoscaling::Scaler;
use control_plane::record::Timestamp;
use tokio::time::Instant;

use super::now;
use crate::app::App;
use crate::provision::Retries;

/// Moments are of a clock that may be set; it is looked at again after so long.
const LONGEST: Duration = Duration::from_secs(60);

/// Scales until the server stops.
pub(crate) async fn drive(app: Arc<App>) {
    let (mut scaler, mut retries) = (Scaler::default(), Retries::default());
    let stopping = app.stopping();
    tokio::pin!(stopping);
    loop {
        let scaled = app.control_plane.scale(&mut scaler, now(), |version| app.live(version)).await;
        for provision in &scaled.provisions {
            app.tell_concurrency(&provision.version.function);
        }
        app.provision_all(&scaled.provisions);
        app.retry_failed(&mut retries, Instant::now().into_std());
        let moment = scaled.next.map(|moment| Instant::now() + until(moment));
        let due = moment.into_iter().chain(retries.next().map(Instant::from_std)).min();
        tokio::select! {
            () = sleep_until(due) => {}
            () = app.control_plane.scaling_changed() => {}
            () = app.workers.fell_short() => {}
            () = &mut stopping => return,
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// From now on, by the clock as it is set.
fn until(moment: Timestamp) -> Duration {
    let now = Timestamp::from(SystemTime::now());
    Duration::from_millis(u64::try_from(moment.0.saturating_sub(now.0)).unwrap_or_default()).min(LONGEST)
}

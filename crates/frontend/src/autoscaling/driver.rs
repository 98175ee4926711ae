//! The clock of scaling: once a second what is due is carried out, and provisioned environments that could not be
//! initialized are tried again after a while.

use std::sync::Arc;
use std::time::Duration;

use control_plane::autoscaling::Scaler;
use tokio::time::MissedTickBehavior;

use super::now;
use crate::app::App;
use crate::provision::Retries;

const EVERY: Duration = Duration::from_secs(1);

/// Scales until the server stops.
pub(crate) async fn drive(app: Arc<App>) {
    let (mut scaler, mut retries) = (Scaler::default(), Retries::default());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stopping = app.stopping();
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = &mut stopping => return,
        }
        let provisions = app.control_plane.scale(&mut scaler, now(), |version| app.live(version)).await;
        for provision in &provisions {
            app.tell_concurrency(&provision.version.function);
        }
        app.provision_all(&provisions);
        app.retry_failed(&mut retries, tokio::time::Instant::now().into_std());
    }
}

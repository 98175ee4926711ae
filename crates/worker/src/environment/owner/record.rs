//! What the platform writes about an environment and its invocations.

use std::time::{Duration, Instant};

use telemetry::lines::{self, InitPhase, InitType, PlatformEvent, Report, RuntimeVersion};

use super::Owner;
use crate::capture::now_ms;
use crate::lifecycle::{Before, Phase, Status};

impl Owner {
    /// INIT_START.
    pub(super) fn announce(&mut self) {
        let arn = self.spec.runtime_version_arn.clone().unwrap_or_default();
        let version = self.launched.resolved.runtime_version.clone();
        self.capture.platform(&PlatformEvent::InitStart {
            init_type: self.initialization_type,
            phase: self.first_phase(),
            runtime: Some(RuntimeVersion { version, arn }),
            function_name: self.spec.function_name.clone(),
            function_version: self.spec.version.clone(),
            instance_id: self.log_stream.clone(),
            instance_max_memory: u64::from(self.spec.memory_mb) << 20,
        });
    }

    fn first_phase(&self) -> InitPhase {
        match self.initialization_type {
            InitType::SnapStart => InitPhase::SnapStart,
            InitType::OnDemand | InitType::Provisioned => InitPhase::Init,
        }
    }

    /// RESTORE_START, with the time at which the restore began: what the hooks say has the machine's time, which may be a
    /// little behind.
    pub(super) fn announce_restore(&mut self, began: Instant) {
        let began_ms = now_ms().saturating_sub(i64::try_from(began.elapsed().as_millis()).unwrap_or_default());
        let arn = self.spec.runtime_version_arn.clone().unwrap_or_default();
        let version = self.launched.resolved.runtime_version.clone();
        let event = PlatformEvent::RestoreStart {
            runtime: Some(RuntimeVersion { version, arn }),
            function_name: self.spec.function_name.clone(),
            function_version: self.spec.version.clone(),
        };
        self.capture.platform_at(&event, began_ms);
    }

    /// RESTORE_REPORT, after everything that the hooks have said.
    pub(super) fn report_restore(&mut self, duration: Duration, status: &Status) {
        self.capture.drain();
        let status = logged(status);
        self.capture.platform(&PlatformEvent::RestoreRuntimeDone { status: status.clone() });
        self.capture.platform(&PlatformEvent::RestoreReport { status, duration });
    }

    /// One EXTENSION line for each extension, then INIT_REPORT.
    pub(super) fn report_init(&mut self, phase: Phase, duration: Duration, status: &Status) {
        self.capture.drain();
        self.report_extensions();
        let phase = match phase {
            Phase::Init => self.first_phase(),
            Phase::Invoke => InitPhase::Invoke,
        };
        let init_type = self.initialization_type;
        let status = logged(status);
        self.capture.platform(&PlatformEvent::InitRuntimeDone { init_type, phase, status: status.clone() });
        self.capture.platform(&PlatformEvent::InitReport { init_type, phase, status, duration });
    }

    fn report_extensions(&mut self) {
        let known = self.launched.api.extensions();
        for extension in known.external.into_iter().chain(known.internal) {
            let not_launched = self.processes.not_launched.as_ref() == Some(&extension.name);
            let (state, error_type) = match not_launched {
                true => ("LaunchError", Some("Extension.LaunchError".to_owned())),
                false => (extension.state, extension.error_type),
            };
            let events = [("INVOKE", extension.invoke), ("SHUTDOWN", extension.shutdown)];
            let events = events.into_iter().filter(|(_, wanted)| *wanted).map(|(event, _)| event.to_owned()).collect();
            self.capture.platform(&PlatformEvent::Extension {
                name: extension.name,
                state: state.to_owned(),
                events,
                error_type,
            });
        }
    }

    /// START.
    pub(super) fn log_start(&mut self) {
        let Some(current) = &mut self.current else { return };
        current.open_since = Some(Instant::now());
        if current.request.tail {
            self.capture.start_tail();
        }
        self.capture.platform(&PlatformEvent::Start {
            request_id: current.request.request_id.clone(),
            version: self.spec.version.clone(),
            trace: None,
        });
    }

    /// END and REPORT, after everything that the function has said.
    pub(super) async fn log_end(&mut self, duration: Duration, before: Option<Before>, status: &Status) {
        let Some(current) = &mut self.current else { return };
        if current.open_since.take().is_none() {
            return;
        }
        let request_id = current.request.request_id.clone();
        let produced_bytes = current.produced_bytes;
        let failed = current.failed || *status != Status::Success;
        self.capture.drain();
        let usage = self.launched.sandbox.usage().await;
        self.presence.entry.served(usage.memory_bytes, duration, failed);
        let status = logged(status);
        self.capture.platform(&PlatformEvent::RuntimeDone {
            request_id: request_id.clone(),
            status: status.clone(),
            duration,
            produced_bytes,
            spans: vec![],
            trace: None,
        });
        let (init, restore) = match before {
            None => (None, None),
            Some(Before::Init(took)) => (Some(took), None),
            Some(Before::Restore { took, billed }) => (None, Some((took, billed))),
        };
        let max_memory_mb = usage.memory_peak_bytes.div_ceil(1 << 20).min(u64::from(self.spec.memory_mb));
        self.capture.platform(&PlatformEvent::Report(Report {
            request_id,
            status,
            duration,
            memory_mb: self.spec.memory_mb,
            max_memory_mb: u32::try_from(max_memory_mb).unwrap_or(self.spec.memory_mb),
            init,
            restore,
            trace: None,
            spans: vec![],
        }));
    }
}

fn logged(status: &Status) -> lines::Status {
    match status {
        Status::Success => lines::Status::Success,
        Status::Error(error_type) => lines::Status::error(error_type),
        Status::Timeout => lines::Status::Timeout,
    }
}

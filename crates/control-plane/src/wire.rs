//! Records as the API shows them.

use aws_model::arn::Realm;
use aws_model::types;

use crate::capacity;
use crate::code;
use crate::record::{FunctionVersion, LayerUse, LogFormat, State, UpdateStatus};
use crate::runtime;

/// Where the reason of a state is only that it has not ended yet.
const CREATING: &str = "The function is being created.";

/// How the ARN of a version is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArnForm {
    Unqualified,
    Qualified,
}

/// A version as single reads and changes answer it.
pub(crate) fn configuration(realm: &Realm, version: &FunctionVersion, form: ArnForm) -> types::FunctionConfiguration {
    let (state_reason, state_reason_code) = match &version.state {
        State::Pending => (Some(CREATING.to_owned()), Some("Creating".to_owned())),
        State::Active => (None, None),
        State::Failed { code, reason } => (Some(reason.clone()), Some(code.clone())),
    };
    let (status, status_reason, status_code) = match &version.update {
        UpdateStatus::None => (None, None, None),
        UpdateStatus::InProgress => (Some("InProgress"), Some(CREATING.to_owned()), Some("Creating".to_owned())),
        UpdateStatus::Successful => (Some("Successful"), None, None),
        UpdateStatus::Failed { code, reason } => (Some("Failed"), Some(reason.clone()), Some(code.clone())),
    };
    types::FunctionConfiguration {
        state: Some(version.state_name().to_owned()),
        state_reason,
        state_reason_code,
        last_update_status: status.map(str::to_owned),
        last_update_status_reason: status_reason,
        last_update_status_reason_code: status_code,
        runtime_version_config: Some(types::RuntimeVersionConfig {
            runtime_version_arn: Some(runtime::version_arn(&realm.region, &version.settings.runtime)),
            error: None,
        }),
        ..listed(version, form)
    }
}

/// A version as lists answer it: without its states.
pub(crate) fn listed(version: &FunctionVersion, form: ArnForm) -> types::FunctionConfiguration {
    let settings = &version.settings;
    let arn = match form {
        ArnForm::Unqualified => version.arn.clone(),
        ArnForm::Qualified => version.qualified_arn(),
    };
    let (log_format, application_log_level, system_log_level) = match &settings.logging.format {
        LogFormat::Text => ("Text", None, None),
        LogFormat::Json { application_level, system_level } => {
            ("JSON", Some(application_level.clone()), Some(system_level.clone()))
        }
    };
    types::FunctionConfiguration {
        function_name: Some(version.function.clone()),
        function_arn: Some(arn),
        runtime: Some(settings.runtime.clone()),
        role: Some(settings.role.clone()),
        handler: Some(settings.handler.clone()),
        code_size: Some(i64::try_from(version.code.size).unwrap_or(i64::MAX)),
        description: Some(settings.description.clone()),
        timeout: Some(int(settings.timeout_secs)),
        memory_size: Some(int(settings.memory_mib)),
        last_modified: Some(version.last_modified.to_string()),
        code_sha256: Some(code::sha256(&version.code)),
        version: Some(version.id.to_string()),
        vpc_config: settings.vpc.as_ref().map(|vpc| types::VpcConfigResponse {
            subnet_ids: Some(vpc.subnets.clone()),
            security_group_ids: Some(vpc.security_groups.clone()),
            vpc_id: Some(String::new()),
            ipv6_allowed_for_dual_stack: Some(vpc.ipv6),
        }),
        dead_letter_config: settings
            .dead_letter_arn
            .clone()
            .map(|target_arn| types::DeadLetterConfig { target_arn: Some(target_arn) }),
        environment: settings
            .environment
            .clone()
            .map(|variables| types::EnvironmentResponse { variables: Some(variables.0), error: None }),
        kms_key_arn: settings.kms_key_arn.clone(),
        tracing_config: Some(types::TracingConfigResponse {
            mode: Some(if settings.tracing_active { "Active" } else { "PassThrough" }.to_owned()),
        }),
        revision_id: Some(version.revision_id.clone()),
        layers: Some(settings.layers.iter().map(layer).collect()).filter(|layers: &Vec<_>| !layers.is_empty()),
        package_type: Some("Zip".to_owned()),
        architectures: Some(vec![settings.architecture.name().to_owned()]),
        ephemeral_storage: Some(types::EphemeralStorage { size: Some(int(settings.ephemeral_mib)) }),
        snap_start: Some(types::SnapStartResponse {
            apply_on: Some(if settings.snap_start { "PublishedVersions" } else { "None" }.to_owned()),
            optimization_status: Some(if version.optimized { "On" } else { "Off" }.to_owned()),
        }),
        logging_config: Some(types::LoggingConfig {
            log_format: Some(log_format.to_owned()),
            application_log_level,
            system_log_level,
            log_group: Some(settings.logging.group.clone()),
        }),
        capacity_provider_config: capacity::config(version),
        ..types::FunctionConfiguration::default()
    }
}

fn layer(layer: &LayerUse) -> types::Layer {
    types::Layer {
        arn: Some(layer.arn.clone()),
        code_size: Some(i64::try_from(layer.code.size).unwrap_or(i64::MAX)),
        ..types::Layer::default()
    }
}

/// Numbers that the rules keep far below the limit of the wire's type.
pub(crate) fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

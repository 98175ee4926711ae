//! The semantic rules of a function's settings, checked after the shapes: limits of ordinary functions, reserved
//! variables, log levels, layers. One place for create and update.

use std::collections::BTreeMap;

use aws_model::{ApiError, types};

use crate::plane::ControlPlane;
use crate::record::{Architecture, FunctionSettings, LogFormat, Logging, Variables, Vpc};
use crate::{capacity, runtime};

const MOST_MEMORY_MIB: i32 = 10_240;
const LONGEST_TIMEOUT_SECS: i32 = 900;
/// Bytes of all variables as one JSON object.
const MOST_ENVIRONMENT: usize = 4_096;
/// Largest `/tmp` of a function with SnapStart.
const SNAP_START_EPHEMERAL_MIB: u32 = 512;
const MOST_TAGS: usize = 50;

/// Variables that Lambda sets itself.
const RESERVED_VARIABLES: &[&str] = &[
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_MAX_CONCURRENCY",
    "AWS_LAMBDA_METADATA_API",
    "AWS_LAMBDA_METADATA_TOKEN",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
];

/// The error for a part of Lambda that is not there yet, if the request uses it.
pub(crate) fn unsupported(used: bool, what: &str) -> Result<(), ApiError> {
    if used {
        return Err(ApiError::invalid_parameter_value(format!(
            "{what} is not supported yet by this version of Firelet."
        )));
    }
    Ok(())
}

/// The settings of a new function.
pub(crate) fn of_create(
    plane: &ControlPlane,
    name: &str,
    request: &types::CreateFunctionRequest,
) -> Result<FunctionSettings, ApiError> {
    unsupported(request.package_type.as_deref() == Some("Image"), "PackageType Image")?;
    check_no_image(request.image_config.is_some(), "ImageConfig", "creating")?;
    let uri = request.code.as_ref().is_some_and(|code| code.image_uri.is_some());
    check_no_image(uri, "ImageUri", "creating")?;
    unsupported(request.publish_to.is_some(), "PublishTo")?;
    unsupported(request.durable_config.is_some(), "DurableConfig")?;
    unsupported(request.tenancy_config.is_some(), "TenancyConfig")?;
    check_tags(request.tags.as_ref())?;
    let (Some(runtime), Some(handler)) = (&request.runtime, &request.handler) else {
        return Err(ApiError::invalid_parameter_value(
            "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
        ));
    };
    let several = request.capacity_provider_config.is_some();
    let level = || "INFO".to_owned();
    let format = match several {
        true => LogFormat::Json { application_level: level(), system_level: level() },
        false => LogFormat::Text,
    };
    let defaults = FunctionSettings {
        runtime: runtime.clone(),
        handler: handler.clone(),
        // The shape requires a role.
        role: request.role.clone().unwrap_or_default(),
        description: String::new(),
        timeout_secs: 3,
        memory_mib: 128,
        ephemeral_mib: 512,
        environment: None,
        architecture: architecture(request.architectures.as_deref()).unwrap_or(Architecture::X86_64),
        tracing_active: false,
        logging: Logging { group: format!("/aws/lambda/{name}"), format },
        vpc: None,
        dead_letter_arn: None,
        kms_key_arn: None,
        source_kms_key_arn: request.code.as_ref().and_then(|code| key(code.source_kms_key_arn.as_deref())),
        snap_start: false,
        capacity: None,
        layers: Vec::new(),
    };
    apply(plane, defaults, Change::of_create(request))
}

/// The settings after an update: what the request names is replaced, the rest stays.
pub(crate) fn of_update(
    plane: &ControlPlane,
    current: &FunctionSettings,
    request: &types::UpdateFunctionConfigurationRequest,
) -> Result<FunctionSettings, ApiError> {
    check_no_image(request.image_config.is_some(), "ImageConfig", "updating")?;
    unsupported(request.durable_config.is_some(), "DurableConfig")?;
    apply(plane, current.clone(), Change::of_update(request))
}

/// The architecture that a request names; the shape allows one.
pub(crate) fn architecture(names: Option<&[String]>) -> Option<Architecture> {
    names?.first().map(|name| if name == "arm64" { Architecture::Arm64 } else { Architecture::X86_64 })
}

/// What create and update have in common.
struct Change<'a> {
    runtime: Option<&'a str>,
    handler: Option<&'a str>,
    role: Option<&'a str>,
    description: Option<&'a str>,
    timeout: Option<i32>,
    memory: Option<i32>,
    ephemeral: Option<&'a types::EphemeralStorage>,
    environment: Option<&'a types::Environment>,
    layers: Option<&'a [String]>,
    file_systems: bool,
    tracing: Option<&'a types::TracingConfig>,
    logging: Option<&'a types::LoggingConfig>,
    vpc: Option<&'a types::VpcConfig>,
    dead_letter: Option<&'a types::DeadLetterConfig>,
    kms_key_arn: Option<&'a str>,
    snap_start: Option<&'a types::SnapStart>,
    capacity: Option<&'a types::CapacityProviderConfig>,
}

/// The two requests share these members by name and type, but not as a Rust type.
macro_rules! change_of {
    ($request:expr) => {
        Change {
            runtime: $request.runtime.as_deref(),
            handler: $request.handler.as_deref(),
            role: $request.role.as_deref(),
            description: $request.description.as_deref(),
            timeout: $request.timeout,
            memory: $request.memory_size,
            ephemeral: $request.ephemeral_storage.as_ref(),
            environment: $request.environment.as_ref(),
            layers: $request.layers.as_deref(),
            file_systems: $request.file_system_configs.as_ref().is_some_and(|configs| !configs.is_empty()),
            tracing: $request.tracing_config.as_ref(),
            logging: $request.logging_config.as_ref(),
            vpc: $request.vpc_config.as_ref(),
            dead_letter: $request.dead_letter_config.as_ref(),
            kms_key_arn: $request.kms_key_arn.as_deref(),
            snap_start: $request.snap_start.as_ref(),
            capacity: $request.capacity_provider_config.as_ref(),
        }
    };
}

impl<'a> Change<'a> {
    fn of_create(request: &'a types::CreateFunctionRequest) -> Self {
        change_of!(request)
    }

    fn of_update(request: &'a types::UpdateFunctionConfigurationRequest) -> Self {
        change_of!(request)
    }
}

fn apply(
    plane: &ControlPlane,
    mut settings: FunctionSettings,
    change: Change<'_>,
) -> Result<FunctionSettings, ApiError> {
    unsupported(change.file_systems, "FileSystemConfigs")?;
    if let Some(runtime) = change.runtime {
        runtime::check(runtime)?;
        settings.runtime = runtime.to_owned();
    }
    if let Some(memory) = change.memory {
        settings.memory_mib = within("MemorySize", memory, MOST_MEMORY_MIB)?;
    }
    if let Some(timeout) = change.timeout {
        settings.timeout_secs = within("Timeout", timeout, LONGEST_TIMEOUT_SECS)?;
    }
    if let Some(size) = change.ephemeral.and_then(|storage| storage.size) {
        settings.ephemeral_mib = size.unsigned_abs();
    }
    if let Some(environment) = change.environment {
        let variables = environment.variables.clone().unwrap_or_default();
        check_variables(&variables)?;
        settings.environment = Some(Variables(variables));
    }
    if let Some(layers) = change.layers {
        settings.layers = plane.layer_uses(layers)?;
    }
    if let Some(logging) = change.logging {
        settings.logging = merge_logging(&settings.logging, logging)?;
    }
    if let Some(handler) = change.handler {
        settings.handler = handler.to_owned();
    }
    if let Some(role) = change.role {
        settings.role = role.to_owned();
    }
    if let Some(description) = change.description {
        settings.description = description.to_owned();
    }
    if let Some(tracing) = change.tracing {
        settings.tracing_active = tracing.mode.as_deref() == Some("Active");
    }
    if let Some(vpc) = change.vpc {
        settings.vpc = Some(merge_vpc(settings.vpc.as_ref(), vpc)?);
    }
    if let Some(dead_letter) = change.dead_letter {
        settings.dead_letter_arn = dead_letter.target_arn.clone().filter(|arn| !arn.is_empty());
        check_dead_letter(settings.dead_letter_arn.as_deref())?;
    }
    if let Some(key) = change.kms_key_arn {
        settings.kms_key_arn = self::key(Some(key));
    }
    if let Some(snap_start) = change.snap_start {
        settings.snap_start = snap_start.apply_on.as_deref() == Some("PublishedVersions");
    }
    if let Some(capacity) = change.capacity {
        settings.capacity = plane.capacity_asked_for(capacity)?;
    }
    check_snap_start(&settings)?;
    capacity::check(&settings)?;
    Ok(settings)
}

/// An empty name of a key stands for Lambda's own.
pub(crate) fn key(arn: Option<&str>) -> Option<String> {
    arn.filter(|arn| !arn.is_empty()).map(str::to_owned)
}

/// Members of container images in a request on a function of a zip. The sentence was recorded for `ImageUri` in an
/// update; the others follow it.
fn check_no_image(used: bool, member: &str, doing: &str) -> Result<(), ApiError> {
    if used {
        return Err(ApiError::invalid_parameter_value(format!(
            "Please don't provide {member} when {doing} a function with packageType Zip."
        )));
    }
    Ok(())
}

/// What the request leaves out stays; two empty lists take the function out of its network.
fn merge_vpc(current: Option<&Vpc>, request: &types::VpcConfig) -> Result<Vpc, ApiError> {
    let ids =
        |given: &Option<Vec<String>>, kept: Option<&Vec<String>>| given.as_ref().or(kept).cloned().unwrap_or_default();
    let subnets = ids(&request.subnet_ids, current.map(|vpc| &vpc.subnets));
    let security_groups = ids(&request.security_group_ids, current.map(|vpc| &vpc.security_groups));
    if subnets.is_empty() != security_groups.is_empty() {
        return Err(ApiError::invalid_parameter_value("SubnetIds and SecurityIds must coexist or be both empty list."));
    }
    let ipv6 = request.ipv6_allowed_for_dual_stack.or(current.map(|vpc| vpc.ipv6)).unwrap_or(false);
    Ok(Vpc { subnets, security_groups, ipv6 })
}

/// Only queues and topics can be dead-letter targets; the shape takes every ARN. The words are ours.
fn check_dead_letter(arn: Option<&str>) -> Result<(), ApiError> {
    let service = arn.and_then(|arn| arn.split(':').nth(2));
    match service {
        None | Some("sqs" | "sns") => Ok(()),
        Some(_) => Err(ApiError::invalid_parameter_value(format!(
            "The dead letter target {} is neither an SQS queue nor an SNS topic.",
            arn.unwrap_or_default()
        ))),
    }
}

/// The second sentence is ours.
fn check_snap_start(settings: &FunctionSettings) -> Result<(), ApiError> {
    if settings.snap_start && !runtime::has_snap_start(&settings.runtime) {
        return Err(ApiError::invalid_parameter_value(format!(
            "{} is not supported for SnapStart enabled functions.",
            settings.runtime
        )));
    }
    if settings.snap_start && settings.ephemeral_mib > SNAP_START_EPHEMERAL_MIB {
        return Err(ApiError::invalid_parameter_value(format!(
            "EphemeralStorage over {SNAP_START_EPHEMERAL_MIB} MB is not supported for SnapStart enabled functions."
        )));
    }
    Ok(())
}

/// The shapes allow more than an ordinary function may have.
fn within(name: &str, value: i32, most: i32) -> Result<u32, ApiError> {
    if value > most {
        return Err(ApiError::invalid_parameter_value(format!(
            "'{name}' value failed to satisfy constraint: Member must have value less than or equal to {most}"
        )));
    }
    // The shapes forbid what is below one.
    Ok(value.unsigned_abs())
}

fn check_variables(variables: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let reserved: Vec<&str> =
        variables.keys().map(String::as_str).filter(|name| RESERVED_VARIABLES.contains(name)).collect();
    if !reserved.is_empty() {
        return Err(ApiError::invalid_parameter_value(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have \
             provided contains reserved keys that are currently not supported for modification. Reserved keys used in \
             this request: {}",
            reserved.join(", ")
        )));
    }
    let measured = serde_json::to_string(variables).map_err(|error| ApiError::service(error.to_string()))?;
    if measured.len() > MOST_ENVIRONMENT {
        return Err(ApiError::invalid_parameter_value(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have \
             provided exceeded the 4KB limit. String measured: {measured}"
        )));
    }
    Ok(())
}

fn merge_logging(current: &Logging, request: &types::LoggingConfig) -> Result<Logging, ApiError> {
    let group = request.log_group.clone().unwrap_or_else(|| current.group.clone());
    let json = match request.log_format.as_deref() {
        Some(format) => format == "JSON",
        None => matches!(current.format, LogFormat::Json { .. }),
    };
    if !json {
        if request.application_log_level.is_some() || request.system_log_level.is_some() {
            return Err(ApiError::invalid_parameter_value(
                "Log Level is not supported when LogFormat is set to \"Text\". Remove log level from your request or \
                 change the LogFormat to \"JSON\" and try again.",
            ));
        }
        return Ok(Logging { group, format: LogFormat::Text });
    }
    let (application, system) = match &current.format {
        LogFormat::Json { application_level, system_level } => (application_level.as_str(), system_level.as_str()),
        LogFormat::Text => ("INFO", "INFO"),
    };
    let application_level = request.application_log_level.clone().unwrap_or_else(|| application.to_owned());
    let system_level = request.system_log_level.clone().unwrap_or_else(|| system.to_owned());
    Ok(Logging { group, format: LogFormat::Json { application_level, system_level } })
}

pub(crate) fn check_tags(tags: Option<&BTreeMap<String, String>>) -> Result<(), ApiError> {
    if tags.is_some_and(|tags| tags.len() > MOST_TAGS) {
        return Err(ApiError::invalid_parameter_value("Number of tags exceeds resource tag limit."));
    }
    Ok(())
}

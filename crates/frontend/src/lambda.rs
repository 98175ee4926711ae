//! The Lambda API: from a routed request to the operation's handler and back.

mod account;
mod aliases;
mod capacity;
mod code_signing;
mod concurrency;
mod durable;
mod event_invoke;
mod functions;
mod invoke;
mod layers;
pub(crate) mod mappings;
mod payload;
mod permissions;
mod provisioned;
mod recursion;
mod runtime_management;
mod scaling;
mod tags;
mod urls;
mod versions;

use std::sync::Arc;

use aws_model::{ApiError, Labels, Operation, Routed, route};
use bytes::Bytes;
use hyper::header::{HOST, HeaderMap};
use hyper::{Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::auth::permit;
use crate::body::{self, BodyError, RequestBody};
use crate::reply::{self, INTERNAL_ERROR, Reply};

/// Largest request that carries code, in bytes: a zip of 50 MiB in base64, and room for the rest.
const MAX_CODE_BODY: u64 = 70_167_211;

/// Largest other request, in bytes.
const MAX_BODY: u64 = 6_291_456;

/// An operation's request, its body read.
struct Input {
    operation: Operation,
    labels: Labels,
    query: Option<String>,
    headers: HeaderMap,
    body: Bytes,
}

impl Input {
    /// The operation's input, checked against the model.
    fn decode<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let header = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        aws_model::decode(self.operation, &self.labels, self.query.as_deref(), header, &self.body)
    }

    /// How the caller reached this server: what links in answers begin with.
    fn base(&self) -> String {
        let host = self.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        format!("http://{host}")
    }

    /// The operation's output with its status.
    fn answer(&self, output: &impl Serialize) -> Reply {
        let status = StatusCode::from_u16(self.operation.success_status()).unwrap_or(StatusCode::OK);
        if status == StatusCode::NO_CONTENT { reply::empty(status) } else { reply::json(status, output) }
    }
}

pub(crate) async fn dispatch(app: &Arc<App>, request: Request<RequestBody>, request_id: &str) -> Reply {
    let routed = route(request.method().as_str(), request.uri().path(), request.uri().query());
    let permitted = routed.map_err(ApiError::from).and_then(|routed| {
        permit::lambda(app, &routed, &request)?;
        Ok(routed)
    });
    let result = match permitted {
        Err(error) => {
            body::discard(request.into_body()).await;
            Err(error)
        }
        Ok(routed) if routed.operation == Operation::Invoke => invoke::invoke(app, routed, request, request_id).await,
        Ok(routed) => manage(app, routed, request).await,
    };
    result.unwrap_or_else(|error| {
        tracing::debug!(%error, request_id, "refused");
        reply::api_error(&error)
    })
}

/// Largest body that an operation takes, in bytes.
pub(crate) fn body_limit(operation: Operation) -> u64 {
    match operation {
        Operation::CreateFunction | Operation::UpdateFunctionCode | Operation::PublishLayerVersion => MAX_CODE_BODY,
        _ => MAX_BODY,
    }
}

/// The answer to a larger one.
pub(crate) fn too_large(operation: Operation, size: u64) -> ApiError {
    let limit = body_limit(operation);
    if operation == Operation::Invoke {
        return ApiError::request_too_large(format!(
            "{size} byte payload is too large for the RequestResponse invocation type (limit {limit} bytes)"
        ));
    }
    ApiError::request_entity_too_large(format!(
        "Request must be smaller than {limit} bytes for the {operation} operation"
    ))
}

/// Everything but Invoke.
async fn manage(app: &Arc<App>, routed: Routed, request: Request<RequestBody>) -> Result<Reply, ApiError> {
    let operation = routed.operation;
    let limit = body_limit(operation);
    let (head, body) = request.into_parts();
    let body = body::read(body, limit).await.map_err(|error| match error {
        BodyError::TooLarge { size } => too_large(operation, size),
        BodyError::Broken(error) => ApiError::serialization(format!("The request could not be read: {error}")),
    })?;
    let query = head.uri.query().map(str::to_owned);
    let input = Input { operation, labels: routed.labels, query, headers: head.headers, body };
    let app = Arc::clone(app);
    // In a task of its own: a caller who goes away between a change and what has to follow it must not stop either.
    match tokio::spawn(async move { operate(&app, &input).await }).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, %operation, "a handler died");
            Err(ApiError::service(INTERNAL_ERROR))
        }
    }
}

async fn operate(app: &Arc<App>, input: &Input) -> Result<Reply, ApiError> {
    match input.operation {
        // Functions and versions
        Operation::CreateFunction => functions::create(app, input).await,
        Operation::GetFunction => functions::get(app, input),
        Operation::GetFunctionConfiguration => functions::get_configuration(app, input),
        Operation::UpdateFunctionCode => functions::update_code(app, input).await,
        Operation::UpdateFunctionConfiguration => functions::update_configuration(app, input).await,
        Operation::ListFunctions => functions::list(app, input),
        Operation::DeleteFunction => functions::delete(app, input).await,
        Operation::PublishVersion => versions::publish(app, input).await,
        Operation::ListVersionsByFunction => versions::list(app, input),
        // Aliases
        Operation::CreateAlias => aliases::create(app, input).await,
        Operation::GetAlias => aliases::get(app, input),
        Operation::UpdateAlias => aliases::update(app, input).await,
        Operation::ListAliases => aliases::list(app, input),
        Operation::DeleteAlias => aliases::delete(app, input).await,

        // Concurrency
        Operation::PutFunctionConcurrency => concurrency::put(app, input).await,
        Operation::GetFunctionConcurrency => concurrency::get(app, input),
        Operation::DeleteFunctionConcurrency => concurrency::delete(app, input).await,
        Operation::PutProvisionedConcurrencyConfig => provisioned::put(app, input).await,
        Operation::GetProvisionedConcurrencyConfig => provisioned::get(app, input),
        Operation::ListProvisionedConcurrencyConfigs => provisioned::list(app, input),
        Operation::DeleteProvisionedConcurrencyConfig => provisioned::delete(app, input).await,
        Operation::GetAccountSettings => account::settings(app, input),
        Operation::PutFunctionScalingConfig => scaling::put(app, input).await,
        Operation::GetFunctionScalingConfig => scaling::get(app, input),
        // Layers
        Operation::PublishLayerVersion => layers::publish(app, input).await,
        Operation::GetLayerVersion => layers::get(app, input),
        Operation::GetLayerVersionByArn => layers::get_by_arn(app, input),
        Operation::ListLayers => layers::list(app, input),
        Operation::ListLayerVersions => layers::list_versions(app, input),
        Operation::DeleteLayerVersion => layers::delete(app, input).await,
        Operation::AddLayerVersionPermission => layers::add_permission(app, input).await,
        Operation::RemoveLayerVersionPermission => layers::remove_permission(app, input).await,
        Operation::GetLayerVersionPolicy => layers::get_policy(app, input),

        // Permissions
        Operation::AddPermission => permissions::add(app, input).await,
        Operation::RemovePermission => permissions::remove(app, input).await,
        Operation::GetPolicy => permissions::get(app, input),

        // Function URLs and event-invoke configs
        Operation::CreateFunctionUrlConfig => urls::create(app, input).await,
        Operation::GetFunctionUrlConfig => urls::get(app, input),
        Operation::UpdateFunctionUrlConfig => urls::update(app, input).await,
        Operation::DeleteFunctionUrlConfig => urls::delete(app, input).await,
        Operation::ListFunctionUrlConfigs => urls::list(app, input),
        Operation::PutFunctionEventInvokeConfig => event_invoke::put(app, input).await,
        Operation::UpdateFunctionEventInvokeConfig => event_invoke::update(app, input).await,
        Operation::GetFunctionEventInvokeConfig => event_invoke::get(app, input),
        Operation::DeleteFunctionEventInvokeConfig => event_invoke::delete(app, input).await,
        Operation::ListFunctionEventInvokeConfigs => event_invoke::list(app, input),

        // Event source mappings
        Operation::CreateEventSourceMapping => mappings::create(app, input).await,
        Operation::GetEventSourceMapping => mappings::get(app, input),
        Operation::UpdateEventSourceMapping => mappings::update(app, input).await,
        Operation::ListEventSourceMappings => mappings::list(app, input),
        Operation::DeleteEventSourceMapping => mappings::delete(app, input).await,

        // Tags, recursion, runtime management, code signing
        Operation::TagResource => tags::tag(app, input).await,
        Operation::UntagResource => tags::untag(app, input).await,
        Operation::ListTags => tags::list(app, input),
        Operation::PutFunctionRecursionConfig => recursion::put(app, input).await,
        Operation::GetFunctionRecursionConfig => recursion::get(app, input),
        Operation::PutRuntimeManagementConfig => runtime_management::put(app, input).await,
        Operation::GetRuntimeManagementConfig => runtime_management::get(app, input),
        Operation::CreateCodeSigningConfig => code_signing::create(app, input).await,
        Operation::GetCodeSigningConfig => code_signing::get(app, input),
        Operation::UpdateCodeSigningConfig => code_signing::update(app, input).await,
        Operation::DeleteCodeSigningConfig => code_signing::delete(app, input).await,
        Operation::ListCodeSigningConfigs => code_signing::list(app, input),
        Operation::ListFunctionsByCodeSigningConfig => code_signing::functions(app, input),
        Operation::PutFunctionCodeSigningConfig => code_signing::put_for_function(app, input).await,
        Operation::GetFunctionCodeSigningConfig => code_signing::get_for_function(app, input),
        Operation::DeleteFunctionCodeSigningConfig => code_signing::delete_for_function(app, input).await,

        // Durable executions and capacity providers
        Operation::ListDurableExecutionsByFunction => durable::list(app, input),
        Operation::GetDurableExecution => durable::get(app, input),
        Operation::GetDurableExecutionHistory => durable::history(app, input),
        Operation::GetDurableExecutionState => durable::state(app, input),
        Operation::StopDurableExecution => durable::stop(app, input),
        Operation::ListCapacityProviders => capacity::list(app, input),
        Operation::GetCapacityProvider => capacity::get(app, input),
        Operation::UpdateCapacityProvider => capacity::update(app, input),
        Operation::DeleteCapacityProvider => capacity::delete(app, input),
        Operation::ListFunctionVersionsByCapacityProvider => capacity::versions(app, input),
        operation => {
            // A request that Lambda would refuse is refused in Lambda's words here too.
            input.decode::<serde_json::Value>()?;
            Err(ApiError::not_implemented(operation))
        }
    }
}

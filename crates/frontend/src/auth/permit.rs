//! What an authenticated caller may do: from a request to the action and resource that policies speak of.

use std::sync::Arc;

use aws_model::arn::{NameParts, Realm};
use aws_model::{ApiError, Operation, Routed, query_pairs};
use control_plane::authorization::{Access, Context, Who};
use control_plane::autoscaling::record::Resource;
use control_plane::record::{Function, Scope};
use control_plane::roles::Role;
use hyper::Request;
use serde::Deserialize;

use super::{Caller, Denial, Identity};
use crate::app::App;
use crate::autoscaling::{SERVICE, TARGET_PREFIX};
use crate::body::RequestBody;
use crate::query::Form;

/// The service that functions' roles are passed to.
const LAMBDA: &str = "lambda.amazonaws.com";

/// Members of a body that decide about permissions.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Named {
    function_name: Option<String>,
    role: Option<String>,
}

/// Members of a request to Logs that name its resource.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LogNames {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_name: Option<String>,
}

/// Members of a request to Application Auto Scaling that name its resource.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ScalingNames {
    resource_id: Option<String>,
    #[serde(rename = "ResourceARN")]
    resource_arn: Option<String>,
}

impl Identity {
    pub(crate) fn who(&self) -> Who<'_> {
        match self {
            Self::Root => Who::Root,
            Self::Session(session) => Who::Session(session),
        }
    }
}

/// Whether the caller may do what a request to Lambda asks for.
pub(crate) fn lambda(app: &App, routed: &Routed, request: &Request<RequestBody>) -> Result<(), ApiError> {
    // Nothing is asked of anybody where requests are not authenticated.
    let Some(caller) = request.extensions().get::<Caller>() else { return Ok(()) };
    let named = match routed.operation {
        Operation::CreateFunction | Operation::UpdateFunctionConfiguration => match request.body() {
            // What is no JSON names nothing, and is refused where it is decoded.
            RequestBody::Read(body) => serde_json::from_slice(body).unwrap_or_default(),
            RequestBody::Wire(_) => Named::default(),
        },
        _ => Named::default(),
    };
    if let Identity::Session(_) = caller.identity {
        let (resource, function) = resource(app, routed, request.uri().query(), &named);
        let action = action(routed.operation);
        let policy = function.as_ref().and_then(|(function, scope)| function.attached.policies.get(scope));
        let access =
            Access { who: caller.identity.who(), action: &action, resource: &resource, context: Context::new() };
        app.control_plane.authorize(&access, policy).map_err(|denied| ApiError::access_denied(denied.to_string()))?;
    }
    match &named.role {
        Some(role) => pass_role(app, &caller.identity, role),
        None => Ok(()),
    }
}

/// Whether the caller may give a role to a function, and Lambda may take it.
fn pass_role(app: &App, identity: &Identity, arn: &str) -> Result<(), ApiError> {
    let context = Context::from([("iam:passedtoservice".to_owned(), vec![LAMBDA.to_owned()])]);
    let access = Access { who: identity.who(), action: "iam:PassRole", resource: arn, context };
    app.control_plane.authorize(&access, None).map_err(|denied| ApiError::access_denied(denied.to_string()))?;
    let trusted = role(app, arn).is_none_or(|role| app.control_plane.trusts(&role, Who::Service(LAMBDA)));
    if trusted {
        return Ok(());
    }
    Err(ApiError::invalid_parameter_value("The role defined for the function cannot be assumed by Lambda."))
}

/// A role by its ARN.
pub(crate) fn role(app: &App, arn: &str) -> Option<Arc<Role>> {
    let name = arn.rsplit('/').next()?;
    app.control_plane.roles().get(name).ok().filter(|role| role.arn == arn)
}

/// `lambda:InvokeFunction`
fn action(operation: Operation) -> String {
    match operation {
        Operation::Invoke | Operation::InvokeWithResponseStream => "lambda:InvokeFunction".to_owned(),
        Operation::GetLayerVersionByArn => "lambda:GetLayerVersion".to_owned(),
        operation => format!("lambda:{operation}"),
    }
}

/// The ARN that a request is about, and the function with the scope whose policy counts. `*` where there is none.
fn resource(
    app: &App,
    routed: &Routed,
    query: Option<&str>,
    named: &Named,
) -> (String, Option<(Arc<Function>, Scope)>) {
    let realm = app.control_plane.realm();
    let value = |key: &str| {
        query.and_then(|query| query_pairs(query).find(|(name, _)| name == key).map(|(_, value)| value.into_owned()))
    };
    let label = |name: &str| routed.labels.get(name);
    if let Some(name) = label("FunctionName").or(named.function_name.as_deref()) {
        let qualifier = value("Qualifier").or_else(|| label("Name").map(str::to_owned));
        let Ok(target) = realm.resolve(name, qualifier.as_deref()) else { return ("*".to_owned(), None) };
        let scope = Scope::of(target.qualifier.as_ref());
        let function = app.control_plane.function(&target.name).filter(|_| target.account == realm.account);
        return (realm.arn_of(&target), function.map(|function| (function, scope)));
    }
    let own = |resource: &str| format!("arn:aws:lambda:{}:{}:{resource}", realm.region, realm.account);
    let arn = if let Some(layer) = label("LayerName") {
        match label("VersionNumber") {
            Some(version) => layer_arn(realm, layer) + ":" + version,
            None => layer_arn(realm, layer),
        }
    } else if let Some(uuid) = label("UUID") {
        own(&format!("event-source-mapping:{uuid}"))
    } else if let Some(name) = label("CapacityProviderName") {
        own(&format!("capacity-provider:{name}"))
    } else if routed.operation == Operation::GetLayerVersionByArn {
        value("Arn").unwrap_or_else(|| "*".to_owned())
    } else {
        let whole = ["Resource", "CodeSigningConfigArn", "DurableExecutionArn"].into_iter().find_map(label);
        whole.unwrap_or("*").to_owned()
    };
    (arn, None)
}

fn layer_arn(realm: &Realm, layer: &str) -> String {
    if layer.starts_with("arn:") {
        return layer.to_owned();
    }
    format!("arn:aws:lambda:{}:{}:layer:{}", realm.region, realm.account, NameParts::parse(layer).name)
}

/// Whether the caller may do what a request to IAM asks for.
pub(crate) fn iam(app: &App, caller: Option<&Caller>, action: &str, form: &Form) -> Result<(), Denial> {
    let account = &app.control_plane.realm().account;
    let resource = match (form.get("RoleName"), form.get("PolicyArn")) {
        (Some(name), _) => match app.control_plane.roles().get(name) {
            Ok(role) => role.arn.clone(),
            Err(_) => format!("arn:aws:iam::{account}:role{}{name}", form.get("Path").unwrap_or("/")),
        },
        (None, Some(arn)) => arn.to_owned(),
        (None, None) => "*".to_owned(),
    };
    side(app, caller, &format!("iam:{action}"), &resource)
}

/// Whether the caller may have a request to STS forwarded: there it is the operator's, not the caller's.
pub(crate) fn sts(app: &App, caller: Option<&Caller>, action: &str, form: &Form) -> Result<(), Denial> {
    side(app, caller, &format!("sts:{action}"), form.get("RoleArn").unwrap_or("*"))
}

/// Whether the caller may do what a request to Logs asks for.
pub(crate) fn logs(app: &App, caller: Option<&Caller>, operation: &str, body: &[u8]) -> Result<(), Denial> {
    let names: LogNames = serde_json::from_slice(body).unwrap_or_default();
    let realm = app.control_plane.realm();
    let group = match (&names.log_group_name, &names.log_group_identifier) {
        (Some(name), _) => name.as_str(),
        (None, Some(identifier)) => identifier.split_once(":log-group:").map_or(identifier.as_str(), |(_, name)| name),
        (None, None) => "",
    };
    let stream = names.log_stream_name.unwrap_or_default();
    let resource = format!("arn:aws:logs:{}:{}:log-group:{group}:log-stream:{stream}", realm.region, realm.account);
    side(app, caller, &format!("logs:{operation}"), &resource)
}

/// Whether the caller may do what a request to Application Auto Scaling asks for. Who registers a target also needs to be
/// allowed what the target will do.
pub(crate) fn autoscaling(app: &App, caller: Option<&Caller>, target: &str, body: &[u8]) -> Result<(), Denial> {
    let operation = target.strip_prefix(TARGET_PREFIX).unwrap_or_default();
    let names: ScalingNames = serde_json::from_slice(body).unwrap_or_default();
    let resource = names.resource_id.as_deref().and_then(Resource::parse);
    let plane = &app.control_plane;
    let registered = resource.as_ref().and_then(|resource| plane.scalable_target(resource));
    let arn = registered.map(|target| plane.scalable_target_arn(&target)).or(names.resource_arn);
    side(app, caller, &format!("{SERVICE}:{operation}"), arn.as_deref().unwrap_or("*"))?;
    match resource.filter(|_| operation == "RegisterScalableTarget") {
        Some(Resource { function, qualifier }) => {
            let arn = plane.realm().function_arn(&function, Some(&qualifier));
            side(app, caller, "lambda:PutProvisionedConcurrencyConfig", &arn)
        }
        None => Ok(()),
    }
}

fn side(app: &App, caller: Option<&Caller>, action: &str, resource: &str) -> Result<(), Denial> {
    let Some(caller) = caller else { return Ok(()) };
    let access = Access { who: caller.identity.who(), action, resource, context: Context::new() };
    app.control_plane.authorize(&access, None).map_err(|denied| Denial::Forbidden(denied.to_string()))
}

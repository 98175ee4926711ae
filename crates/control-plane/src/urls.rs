//! Function URLs: their configuration, of functions and of aliases.

use aws_model::arn::FunctionRef;
use aws_model::{ApiError, types};
use uuid::Uuid;

use crate::page::page;
use crate::plane::ControlPlane;
use crate::record::{Cors, Function, InvokeMode, Scope, Timestamp, UrlAuth, UrlConfig};
use crate::scoped;

impl ControlPlane {
    /// CreateFunctionUrlConfig. `address` makes the URL of an id.
    ///
    /// # Errors
    /// ResourceNotFoundException, ResourceConflictException where there is one already.
    pub async fn create_function_url_config(
        &self,
        request: &types::CreateFunctionUrlConfigRequest,
        now: Timestamp,
        address: impl Fn(&str) -> String,
    ) -> Result<types::CreateFunctionUrlConfigResponse, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let scope = Scope::of(target.qualifier.as_ref());
        let arn = self.realm().arn_of(&target);
        let config = UrlConfig {
            id: new_id(),
            auth: auth(request.auth_type.as_deref()).unwrap_or(UrlAuth::AwsIam),
            cors: cors(request.cors.as_ref()),
            mode: mode(request.invoke_mode.as_deref()).unwrap_or(InvokeMode::Buffered),
            created: now,
            modified: now,
        };
        let judge = |found: Option<&Function>| {
            let mut function = self.with_scope(found, &target, &scope)?.clone();
            if function.attached.urls.contains_key(&scope) {
                return Err(ApiError::resource_conflict(format!(
                    "Failed to create function url config for [functionArn = {arn}]. Error message:  FunctionUrlConfig \
                     exists for this Lambda function"
                )));
            }
            function.attached.urls.insert(scope.clone(), config.clone());
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        Ok(types::CreateFunctionUrlConfigResponse {
            function_url: Some(address(&config.id)),
            function_arn: Some(arn.clone()),
            auth_type: Some(config.auth.name().to_owned()),
            cors: config.cors.as_ref().map(show_cors),
            creation_time: Some(iso(config.created)),
            // Changes tell the mode only to those who named one; reads always do.
            invoke_mode: request.invoke_mode.clone(),
        })
    }

    /// GetFunctionUrlConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub fn get_function_url_config(
        &self,
        request: &types::GetFunctionUrlConfigRequest,
        address: impl Fn(&str) -> String,
    ) -> Result<types::GetFunctionUrlConfigResponse, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let function = self.function_of(&target).ok_or_else(absent)?;
        let scope = Scope::of(target.qualifier.as_ref());
        let config = function.attached.urls.get(&scope).ok_or_else(absent)?;
        let shown = self.show_url(&function.name, &scope, config, &address);
        Ok(types::GetFunctionUrlConfigResponse {
            function_url: shown.function_url,
            function_arn: shown.function_arn,
            auth_type: shown.auth_type,
            cors: shown.cors,
            creation_time: shown.creation_time,
            last_modified_time: shown.last_modified_time,
            invoke_mode: shown.invoke_mode,
        })
    }

    /// UpdateFunctionUrlConfig: what the request does not name stays.
    ///
    /// # Errors
    /// ResourceNotFoundException, in other words for the function than for its URL.
    pub async fn update_function_url_config(
        &self,
        request: &types::UpdateFunctionUrlConfigRequest,
        now: Timestamp,
        address: impl Fn(&str) -> String,
    ) -> Result<types::UpdateFunctionUrlConfigResponse, ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let scope = Scope::of(target.qualifier.as_ref());
        let judge = |found: Option<&Function>| {
            let mut function = self.with_scope(found, &target, &scope)?.clone();
            let config = function.attached.urls.get_mut(&scope).ok_or_else(absent)?;
            if let Some(auth) = auth(request.auth_type.as_deref()) {
                config.auth = auth;
            }
            if request.cors.is_some() {
                config.cors = cors(request.cors.as_ref());
            }
            if let Some(mode) = mode(request.invoke_mode.as_deref()) {
                config.mode = mode;
            }
            config.modified = now;
            Ok(Some(function))
        };
        let after = self.mutate(&target.name, None, judge).await?.after;
        let config = after.as_ref().and_then(|function| function.attached.urls.get(&scope)).ok_or_else(absent)?;
        let shown = self.show_url(&target.name, &scope, config, &address);
        Ok(types::UpdateFunctionUrlConfigResponse {
            function_url: shown.function_url,
            function_arn: shown.function_arn,
            auth_type: shown.auth_type,
            cors: shown.cors,
            creation_time: shown.creation_time,
            last_modified_time: shown.last_modified_time,
            invoke_mode: request.invoke_mode.clone(),
        })
    }

    /// DeleteFunctionUrlConfig.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub async fn delete_function_url_config(
        &self,
        request: &types::DeleteFunctionUrlConfigRequest,
    ) -> Result<(), ApiError> {
        let target = self.target(request.function_name.as_deref(), request.qualifier.as_deref())?;
        let scope = Scope::of(target.qualifier.as_ref());
        let ours = target.account == self.realm().account;
        let judge = |found: Option<&Function>| {
            let mut function = found.filter(|_| ours).ok_or_else(absent)?.clone();
            function.attached.urls.remove(&scope).ok_or_else(absent)?;
            Ok(Some(function))
        };
        self.mutate(&target.name, None, judge).await?;
        Ok(())
    }

    /// ListFunctionUrlConfigs: the function's own, then those of its aliases.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a marker that is none.
    pub fn list_function_url_configs(
        &self,
        request: &types::ListFunctionUrlConfigsRequest,
        address: impl Fn(&str) -> String,
    ) -> Result<types::ListFunctionUrlConfigsResponse, ApiError> {
        let target = self.target(request.function_name.as_deref(), None)?;
        let function = self.function_of(&target).ok_or_else(no_function)?;
        let items = function.attached.urls.iter().map(|(scope, config)| (scoped::list_key(scope), (scope, config)));
        let (configs, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        let shown = configs.into_iter().map(|(scope, config)| self.show_url(&function.name, scope, config, &address));
        Ok(types::ListFunctionUrlConfigsResponse { function_url_configs: Some(shown.collect()), next_marker })
    }

    /// The function, if it is there and has what the scope names.
    fn with_scope<'a>(
        &self,
        found: Option<&'a Function>,
        target: &FunctionRef,
        scope: &Scope,
    ) -> Result<&'a Function, ApiError> {
        found
            .filter(|function| target.account == self.realm().account && scoped::has(function, scope))
            .ok_or_else(no_function)
    }

    fn show_url(
        &self,
        name: &str,
        scope: &Scope,
        config: &UrlConfig,
        address: &impl Fn(&str) -> String,
    ) -> types::FunctionUrlConfig {
        types::FunctionUrlConfig {
            function_url: Some(address(&config.id)),
            function_arn: Some(scoped::arn(self.realm(), name, scope)),
            creation_time: Some(iso(config.created)),
            last_modified_time: Some(iso(config.modified)),
            cors: config.cors.as_ref().map(show_cors),
            auth_type: Some(config.auth.name().to_owned()),
            invoke_mode: Some(config.mode.name().to_owned()),
        }
    }
}

fn no_function() -> ApiError {
    ApiError::resource_not_found("Function does not exist")
}

fn absent() -> ApiError {
    ApiError::resource_not_found("The resource you requested does not exist.")
}

/// 32 letters and digits out of 244 random bits.
fn new_id() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bytes = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat();
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

/// Times of URLs are printed as `2026-01-02T03:04:05.678Z`.
fn iso(moment: Timestamp) -> String {
    moment.to_string().replace("+0000", "Z")
}

// The shapes allow the known words alone.

fn auth(name: Option<&str>) -> Option<UrlAuth> {
    name.map(|name| if name == "NONE" { UrlAuth::None } else { UrlAuth::AwsIam })
}

fn mode(name: Option<&str>) -> Option<InvokeMode> {
    name.map(|name| if name == "RESPONSE_STREAM" { InvokeMode::ResponseStream } else { InvokeMode::Buffered })
}

/// An empty one is none.
fn cors(request: Option<&types::Cors>) -> Option<Cors> {
    let given = request?;
    let cors = Cors {
        allow_credentials: given.allow_credentials,
        allow_headers: given.allow_headers.clone(),
        allow_methods: given.allow_methods.clone(),
        allow_origins: given.allow_origins.clone(),
        expose_headers: given.expose_headers.clone(),
        max_age: given.max_age,
    };
    Some(cors).filter(|cors| *cors != Cors::default())
}

fn show_cors(cors: &Cors) -> types::Cors {
    types::Cors {
        allow_credentials: cors.allow_credentials,
        allow_headers: cors.allow_headers.clone(),
        allow_methods: cors.allow_methods.clone(),
        allow_origins: cors.allow_origins.clone(),
        expose_headers: cors.expose_headers.clone(),
        max_age: cors.max_age,
    }
}

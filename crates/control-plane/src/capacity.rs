//! Capacity providers of managed instances. There is one, `firelet`: this host. A function that names it has several
//! invocations in one environment at a time; everything else of it is as without.

use aws_model::{ApiError, types};

use crate::page::page;
use crate::plane::ControlPlane;
use crate::record::{Capacity, FunctionSettings, FunctionVersion, LogFormat, VersionId};
use crate::wire::int;

/// The name of the one provider.
const THIS_HOST: &str = "firelet";

impl ControlPlane {
    /// ListCapacityProviders.
    pub fn list_capacity_providers(
        &self,
        _: &types::ListCapacityProvidersRequest,
    ) -> types::ListCapacityProvidersResponse {
        let providers = vec![self.this_host()];
        types::ListCapacityProvidersResponse { capacity_providers: Some(providers), next_marker: None }
    }

    /// GetCapacityProvider.
    ///
    /// # Errors
    /// ResourceNotFoundException for any but the one.
    pub fn get_capacity_provider(
        &self,
        request: &types::GetCapacityProviderRequest,
    ) -> Result<types::GetCapacityProviderResponse, ApiError> {
        self.check_capacity_provider(request.capacity_provider_name.as_deref())?;
        Ok(types::GetCapacityProviderResponse { capacity_provider: Some(self.this_host()) })
    }

    /// What UpdateCapacityProvider and DeleteCapacityProvider answer: this host stays as it is.
    pub fn keep_capacity_provider(&self, name: Option<&str>) -> ApiError {
        match self.check_capacity_provider(name) {
            Ok(()) => ApiError::invalid_parameter_value(format!(
                "The capacity provider {THIS_HOST} is this host. It cannot be changed or deleted."
            )),
            Err(absent) => absent,
        }
    }

    /// ListFunctionVersionsByCapacityProvider.
    ///
    /// # Errors
    /// ResourceNotFoundException for any but the one; InvalidParameterValueException for a marker that is none.
    pub fn list_function_versions_by_capacity_provider(
        &self,
        request: &types::ListFunctionVersionsByCapacityProviderRequest,
    ) -> Result<types::ListFunctionVersionsByCapacityProviderResponse, ApiError> {
        self.check_capacity_provider(request.capacity_provider_name.as_deref())?;
        let functions = self.functions();
        let items = functions.iter().flat_map(|function| {
            function.records().filter(|version| version.settings.capacity.is_some()).map(|version| {
                let number = if let VersionId::Number(number) = version.id { number } else { 0 };
                let item = types::FunctionVersionsByCapacityProviderListItem {
                    function_arn: Some(version.qualified_arn()),
                    state: Some(version.state_name().to_owned()),
                };
                (format!("{} {number:020}", version.function), item)
            })
        });
        let (versions, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        Ok(types::ListFunctionVersionsByCapacityProviderResponse {
            capacity_provider_arn: Some(self.provider_arn(THIS_HOST)),
            function_versions: Some(versions),
            next_marker,
        })
    }

    /// The capacity that a function's configuration asks for.
    ///
    /// # Errors
    /// ResourceNotFoundException for another provider than the one; InvalidParameterValueException for what it does not have.
    pub(crate) fn capacity_asked_for(
        &self,
        request: &types::CapacityProviderConfig,
    ) -> Result<Option<Capacity>, ApiError> {
        let Some(config) = &request.lambda_managed_instances_capacity_provider_config else { return Ok(None) };
        self.check_capacity_provider(config.capacity_provider_arn.as_deref())?;
        if config.execution_environment_memory_gib_per_vcpu.is_some() {
            return Err(ApiError::invalid_parameter_value(format!(
                "ExecutionEnvironmentMemoryGiBPerVCpu is not supported by the capacity provider {THIS_HOST}: processors \
                 follow from the memory size."
            )));
        }
        // The shape has its bounds.
        Ok(Some(Capacity { max_concurrency: config.per_execution_environment_max_concurrency.map(i32::unsigned_abs) }))
    }

    fn this_host(&self) -> types::CapacityProvider {
        types::CapacityProvider {
            capacity_provider_arn: Some(self.provider_arn(THIS_HOST)),
            state: Some("Active".to_owned()),
            ..types::CapacityProvider::default()
        }
    }

    fn check_capacity_provider(&self, name: Option<&str>) -> Result<(), ApiError> {
        let name = name.unwrap_or_default();
        let bare = name.rsplit(':').next().unwrap_or(name);
        if bare == THIS_HOST && (name == bare || name == self.provider_arn(bare)) {
            return Ok(());
        }
        let arn = if name == bare { self.provider_arn(bare) } else { name.to_owned() };
        Err(ApiError::resource_not_found(format!("Capacity provider not found: {arn}")))
    }

    fn provider_arn(&self, name: &str) -> String {
        let realm = self.realm();
        format!("arn:aws:lambda:{}:{}:capacity-provider:{name}", realm.region, realm.account)
    }
}

/// What the API shows of a version's capacity.
pub(crate) fn config(version: &FunctionVersion) -> Option<types::CapacityProviderConfig> {
    version.settings.capacity.as_ref()?;
    let realm = version.arn.split(":function:").next().unwrap_or_default();
    let config = types::LambdaManagedInstancesCapacityProviderConfig {
        capacity_provider_arn: Some(format!("{realm}:capacity-provider:{THIS_HOST}")),
        per_execution_environment_max_concurrency: Some(int(version.settings.max_concurrency())),
        execution_environment_memory_gib_per_vcpu: None,
    };
    Some(types::CapacityProviderConfig { lambda_managed_instances_capacity_provider_config: Some(config) })
}

/// What cannot be had together. The words are ours.
pub(crate) fn check(settings: &FunctionSettings) -> Result<(), ApiError> {
    if settings.capacity.is_none() {
        return Ok(());
    }
    if settings.logging.format == LogFormat::Text {
        return Err(ApiError::invalid_parameter_value(
            "Functions with a capacity provider log in the JSON format: set LoggingConfig.LogFormat to JSON.",
        ));
    }
    if settings.snap_start {
        return Err(ApiError::invalid_parameter_value(
            "SnapStart is not supported for functions with a capacity provider.",
        ));
    }
    Ok(())
}

impl FunctionSettings {
    /// Invocations that one environment serves at once. Where the caller names no number, one that suits the language: what
    /// Lambda gives for each processor, and one where the runtime may not know of it.
    pub fn max_concurrency(&self) -> u32 {
        let Some(capacity) = &self.capacity else { return 1 };
        let suits = || {
            let families = [("nodejs", 64), ("java", 32), ("python", 16)];
            families.iter().find(|(family, _)| self.runtime.starts_with(family)).map_or(1, |(_, number)| *number)
        };
        capacity.max_concurrency.unwrap_or_else(suits)
    }
}

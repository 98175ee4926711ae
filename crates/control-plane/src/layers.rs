//! Layers: published versions, and what a function takes of them.
//!
//! A function keeps the package of each layer version that it names, not the version: it goes on working when the
//! version is deleted, and the package stays for as long as either needs it.

mod permissions;

use aws_model::arn::LayerParts;
use aws_model::{ApiError, types};

use crate::code::{self, Source, Taken};
use crate::objects::ObjectRef;
use crate::page::page;
use crate::plane::ControlPlane;
use crate::record::{Code, Layer, LayerUse, LayerVersion, Timestamp};

const MOST_LAYERS: usize = 5;

/// A layer version as a request names it, in this account and region.
struct Target {
    name: String,
    version: u64,
}

impl ControlPlane {
    /// PublishLayerVersion. `location` makes the URL under which the package of a layer version can be fetched.
    ///
    /// # Errors
    /// As CreateFunction of its package; AccessDeniedException for a layer of another account.
    pub async fn publish_layer_version(
        &self,
        request: &types::PublishLayerVersionRequest,
        now: Timestamp,
        location: impl Fn(&str, u64) -> String,
    ) -> Result<types::PublishLayerVersionResponse, ApiError> {
        let name = self.layer_name(request.layer_name.as_deref(), "PublishLayerVersion")?;
        let source = request.content.as_ref().map(Source::of_layer);
        let package = source.map_or_else(|| Err(code::missing()), |source| source.package())?;
        let (Taken { code, reference }, guard) = self.store_code(&package).await?;
        let published = LayerVersion {
            description: request.description.clone().unwrap_or_default(),
            runtimes: request.compatible_runtimes.clone(),
            architectures: request.compatible_architectures.clone(),
            license: request.license_info.clone(),
            code,
            reference,
            created: now,
            policy: None,
        };
        let judge = |found: Option<&Layer>| {
            let mut layer = found.cloned().unwrap_or_default();
            layer.versions.insert(layer.next_version, published);
            layer.next_version += 1;
            Ok(Some(layer))
        };
        let outcome = match self.check_total_code(code.unzipped_size) {
            Ok(()) => self.inner.layers.mutate(&name, guard, judge).await,
            Err(error) => {
                drop(guard);
                Err(error)
            }
        };
        match outcome.map(|change| change.after) {
            Ok(Some(layer)) => match layer.versions.last_key_value() {
                Some((number, version)) => Ok(published_answer(self.shown(&name, *number, version, location))),
                None => Err(ApiError::service("The layer version was not published.")),
            },
            Ok(None) => Err(ApiError::service("The layer version was not published.")),
            Err(error) => {
                self.collect_blobs([code.digest].into()).await;
                Err(error)
            }
        }
    }

    /// GetLayerVersion.
    ///
    /// # Errors
    /// ResourceNotFoundException; InvalidParameterValueException for a number below one.
    pub fn get_layer_version(
        &self,
        request: &types::GetLayerVersionRequest,
        location: impl Fn(&str, u64) -> String,
    ) -> Result<types::GetLayerVersionResponse, ApiError> {
        let target = self.layer_target(request.layer_name.as_deref(), request.version_number, "GetLayerVersion")?;
        self.layer_version(&target, location)
    }

    /// GetLayerVersionByArn.
    ///
    /// # Errors
    /// As [`Self::get_layer_version`].
    pub fn get_layer_version_by_arn(
        &self,
        request: &types::GetLayerVersionByArnRequest,
        location: impl Fn(&str, u64) -> String,
    ) -> Result<types::GetLayerVersionResponse, ApiError> {
        let arn = request.arn.as_deref().unwrap_or_default();
        let number = LayerParts::parse(arn).and_then(|parts| parts.version?.parse::<i64>().ok());
        // A number that does not fit is one that nothing has.
        let number = number.or(Some(i64::MAX));
        let name = arn.rsplit_once(':').map(|(layer, _)| layer);
        let target = self.layer_target(name, number, "GetLayerVersion")?;
        self.layer_version(&target, location)
    }

    /// ListLayers: each layer that has a version as asked for, with the newest such version.
    ///
    /// # Errors
    /// InvalidParameterValueException for a marker that is none.
    pub fn list_layers(&self, request: &types::ListLayersRequest) -> Result<types::ListLayersResponse, ApiError> {
        let wanted = Wanted { runtime: &request.compatible_runtime, architecture: &request.compatible_architecture };
        let layers = self.inner.layers.all();
        let items = layers.iter().filter_map(|(name, layer)| {
            let (number, version) = layer.versions.iter().rev().find(|(_, version)| wanted.takes(version))?;
            Some((name.clone(), (name, *number, version)))
        });
        let (layers, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        let layers = layers.into_iter().map(|(name, number, version)| types::LayersListItem {
            layer_name: Some(name.clone()),
            layer_arn: Some(self.realm().layer_arn(name)),
            latest_matching_version: Some(self.listed_layer(name, number, version)),
        });
        Ok(types::ListLayersResponse { layers: Some(layers.collect()), next_marker })
    }

    /// ListLayerVersions, the newest first. A layer that was never published has none.
    ///
    /// # Errors
    /// InvalidParameterValueException for a marker that is none; AccessDeniedException for another account's layer.
    pub fn list_layer_versions(
        &self,
        request: &types::ListLayerVersionsRequest,
    ) -> Result<types::ListLayerVersionsResponse, ApiError> {
        let name = self.layer_name(request.layer_name.as_deref(), "ListLayerVersions")?;
        let wanted = Wanted { runtime: &request.compatible_runtime, architecture: &request.compatible_architecture };
        let layer = self.inner.layers.get(&name);
        let versions = layer.iter().flat_map(|layer| layer.versions.iter().rev());
        let items = versions.filter(|(_, version)| wanted.takes(version)).map(|(number, version)| {
            // Counted down, so that the order of the keys is that of the list.
            (format!("{:020}", u64::MAX - number), self.listed_layer(&name, *number, version))
        });
        let (versions, next_marker) = page(items, request.marker.as_deref(), request.max_items)?;
        Ok(types::ListLayerVersionsResponse { layer_versions: Some(versions), next_marker })
    }

    /// DeleteLayerVersion. What is not there is as good as deleted.
    ///
    /// # Errors
    /// InvalidParameterValueException for a number below one; AccessDeniedException for another account's layer.
    pub async fn delete_layer_version(&self, request: &types::DeleteLayerVersionRequest) -> Result<(), ApiError> {
        let target = self.layer_target(request.layer_name.as_deref(), request.version_number, "DeleteLayerVersion")?;
        let judge = |found: Option<&Layer>| {
            let mut layer = found.cloned();
            if let Some(layer) = &mut layer {
                layer.versions.remove(&target.version);
            }
            Ok(layer)
        };
        let change = self.inner.layers.mutate(&target.name, (), judge).await?;
        let gone = change.before.and_then(|layer| layer.versions.get(&target.version).map(|gone| gone.code.digest));
        self.collect_blobs(gone.into_iter().collect()).await;
        Ok(())
    }

    /// The package of a layer version of this account.
    pub fn layer_code(&self, name: &str, version: u64) -> Option<Code> {
        self.inner.layers.get(name)?.versions.get(&version).map(|version| version.code)
    }

    /// What a function takes of the layer versions that a request names. Whoever calls this holds
    /// [`Self::keep_blobs`] until the function is visible.
    pub(crate) fn layer_uses(&self, arns: &[String]) -> Result<Vec<LayerUse>, ApiError> {
        if arns.len() > MOST_LAYERS {
            return Err(ApiError::invalid_parameter_value(format!("Cannot reference more than {MOST_LAYERS} layers.")));
        }
        let mut uses: Vec<LayerUse> = Vec::with_capacity(arns.len());
        for arn in arns {
            let absent = || ApiError::invalid_parameter_value(format!("Layer version {arn} does not exist."));
            let parts = LayerParts::parse(arn).ok_or_else(absent)?;
            let realm = self.realm();
            if parts.region.is_some_and(|region| region != realm.region) {
                return Err(ApiError::invalid_parameter_value(format!(
                    "Layers are not in the same region as the function. Layers are expected to be in region {}.",
                    realm.region
                )));
            }
            if parts.account.is_some_and(|account| account != realm.account) {
                return Err(self.foreign_layer("GetLayerVersion", arn));
            }
            let number = parts.version.and_then(|version| version.parse().ok()).ok_or_else(absent)?;
            let code = self.layer_code(parts.name, number).ok_or_else(absent)?;
            let layer = realm.layer_arn(parts.name);
            let same = |one: &&LayerUse| one.arn.rsplit_once(':').is_some_and(|(other, _)| other == layer);
            if let Some(other) = uses.iter().find(same) {
                return Err(ApiError::invalid_parameter_value(format!(
                    "Two different versions of the same layer are not allowed to be referenced in the same function. \
                     {} and {arn} are versions of the same layer.",
                    other.arn
                )));
            }
            uses.push(LayerUse { arn: realm.layer_version_arn(parts.name, number), code });
        }
        Ok(uses)
    }

    /// Refuses code and layers that are too large together.
    pub(crate) fn check_unzipped(&self, code: &Code, layers: &[LayerUse]) -> Result<(), ApiError> {
        let limit = self.limits().unzipped_code;
        let opt = layers.iter().map(|layer| layer.code.unzipped_size).fold(0, u64::saturating_add);
        if opt > limit {
            return Err(ApiError::invalid_parameter_value(format!(
                "Layers consume more than the available size of {limit} bytes"
            )));
        }
        let both = opt.saturating_add(code.unzipped_size);
        // Without layers the package alone counts, which was judged already.
        if opt > 0 && both > limit {
            return Err(ApiError::invalid_parameter_value(format!(
                "Function code combined with layers exceeds the maximum allowed size of {limit} bytes. The actual size \
                 is {both} bytes."
            )));
        }
        Ok(())
    }

    /// The bare name of the layer that a request names.
    fn layer_name(&self, given: Option<&str>, action: &str) -> Result<String, ApiError> {
        let given = given.unwrap_or_default();
        let realm = self.realm();
        match LayerParts::parse(given) {
            Some(LayerParts { region: Some(region), .. }) if region != realm.region => Err(not_there()),
            Some(LayerParts { account: Some(account), .. }) if account != realm.account => {
                Err(self.foreign_layer(action, given))
            }
            Some(parts) => Ok(parts.name.to_owned()),
            None => Err(not_there()),
        }
    }

    fn layer_target(&self, name: Option<&str>, number: Option<i64>, action: &str) -> Result<Target, ApiError> {
        // The shape requires a number.
        let version = u64::try_from(number.unwrap_or_default()).ok().filter(|number| *number > 0);
        let Some(version) = version else {
            return Err(ApiError::invalid_parameter_value("Layer Version Cannot be less than 1"));
        };
        Ok(Target { name: self.layer_name(name, action)?, version })
    }

    /// Nothing of other accounts is here, so none of them can have allowed anything.
    fn foreign_layer(&self, action: &str, arn: &str) -> ApiError {
        ApiError::access_denied(format!(
            "User: arn:aws:iam::{}:root is not authorized to perform: lambda:{action} on resource: {arn} because no \
             resource-based policy allows the lambda:{action} action",
            self.realm().account
        ))
    }

    fn layer_version(
        &self,
        target: &Target,
        location: impl Fn(&str, u64) -> String,
    ) -> Result<types::GetLayerVersionResponse, ApiError> {
        let layer = self.inner.layers.get(&target.name).ok_or_else(not_there)?;
        let version = layer.versions.get(&target.version).ok_or_else(not_there)?;
        Ok(self.shown(&target.name, target.version, version, location))
    }

    fn shown(
        &self,
        name: &str,
        number: u64,
        version: &LayerVersion,
        location: impl Fn(&str, u64) -> String,
    ) -> types::GetLayerVersionResponse {
        let listed = self.listed_layer(name, number, version);
        types::GetLayerVersionResponse {
            content: Some(types::LayerVersionContentOutput {
                location: Some(location(name, number)),
                code_sha256: Some(code::sha256(&version.code)),
                code_size: Some(i64::try_from(version.code.size).unwrap_or(i64::MAX)),
                resolved_s3_object: version.reference.as_ref().map(ObjectRef::resolved),
                ..types::LayerVersionContentOutput::default()
            }),
            layer_arn: Some(self.realm().layer_arn(name)),
            layer_version_arn: listed.layer_version_arn,
            description: listed.description,
            created_date: listed.created_date,
            version: listed.version,
            compatible_runtimes: listed.compatible_runtimes,
            license_info: listed.license_info,
            compatible_architectures: listed.compatible_architectures,
        }
    }

    fn listed_layer(&self, name: &str, number: u64, version: &LayerVersion) -> types::LayerVersionsListItem {
        types::LayerVersionsListItem {
            layer_version_arn: Some(self.realm().layer_version_arn(name, number)),
            version: Some(i64::try_from(number).unwrap_or(i64::MAX)),
            description: Some(version.description.clone()),
            created_date: Some(version.created.to_string()),
            compatible_runtimes: version.runtimes.clone(),
            license_info: version.license.clone(),
            compatible_architectures: version.architectures.clone(),
        }
    }
}

/// What a list is restricted to. A version that does not say what it is for is not found by what it could be for.
struct Wanted<'a> {
    runtime: &'a Option<String>,
    architecture: &'a Option<String>,
}

impl Wanted<'_> {
    fn takes(&self, version: &LayerVersion) -> bool {
        let has = |wanted: &Option<String>, declared: &Option<Vec<String>>| {
            wanted.as_ref().is_none_or(|wanted| declared.as_ref().is_some_and(|declared| declared.contains(wanted)))
        };
        has(self.runtime, &version.runtimes) && has(self.architecture, &version.architectures)
    }
}

fn not_there() -> ApiError {
    ApiError::resource_not_found("The resource you requested does not exist.")
}

/// The same members under another name.
fn published_answer(read: types::GetLayerVersionResponse) -> types::PublishLayerVersionResponse {
    types::PublishLayerVersionResponse {
        content: read.content,
        layer_arn: read.layer_arn,
        layer_version_arn: read.layer_version_arn,
        description: read.description,
        created_date: read.created_date,
        version: read.version,
        compatible_architectures: read.compatible_architectures,
        compatible_runtimes: read.compatible_runtimes,
        license_info: read.license_info,
    }
}

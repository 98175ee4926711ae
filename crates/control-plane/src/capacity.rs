//! Capacity providers of managed instances. There are none: reads answer as on an account without them.

use aws_model::{ApiError, types};

use crate::plane::ControlPlane;

impl ControlPlane {
    /// ListCapacityProviders.
    pub fn list_capacity_providers(
        &self,
        _: &types::ListCapacityProvidersRequest,
    ) -> types::ListCapacityProvidersResponse {
        types::ListCapacityProvidersResponse { capacity_providers: Some(Vec::new()), next_marker: None }
    }

    /// What every operation on one provider answers.
    pub fn absent_capacity_provider(&self, name: Option<&str>) -> ApiError {
        let name = name.unwrap_or_default();
        let bare = name.rsplit(':').next().unwrap_or(name);
        let realm = self.realm();
        ApiError::resource_not_found(format!(
            "Capacity provider not found: arn:aws:lambda:{}:{}:capacity-provider:{bare}",
            realm.region, realm.account
        ))
    }
}

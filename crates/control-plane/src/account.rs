//! What the account may use and uses.

use aws_model::types;

use crate::plane::ControlPlane;
use crate::wire::int;

impl ControlPlane {
    /// GetAccountSettings.
    pub fn get_account_settings(&self) -> types::GetAccountSettingsResponse {
        let limits = self.limits();
        let size = |bytes: u64| Some(i64::try_from(bytes).unwrap_or(i64::MAX));
        let functions = i64::try_from(self.function_count()).unwrap_or(i64::MAX);
        types::GetAccountSettingsResponse {
            account_limit: Some(types::AccountLimit {
                total_code_size: size(limits.total_code),
                code_size_unzipped: size(limits.unzipped_code),
                code_size_zipped: size(limits.zipped_code),
                concurrent_executions: Some(int(limits.concurrent_executions)),
                unreserved_concurrent_executions: Some(int(self.unreserved())),
            }),
            account_usage: Some(types::AccountUsage {
                total_code_size: size(self.total_code()),
                function_count: Some(functions),
            }),
        }
    }
}

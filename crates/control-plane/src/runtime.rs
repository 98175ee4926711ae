//! The names of runtimes: which may be used, which Lambda no longer takes, and the ARN of a runtime's version.

use aws_model::ApiError;
use sha2::{Digest, Sha256};

/// Runtimes that functions may be created with.
const CURRENT: &[&str] = &[
    "nodejs18.x",
    "nodejs20.x",
    "nodejs22.x",
    "nodejs24.x",
    "nodejs26.x",
    "python3.9",
    "python3.10",
    "python3.11",
    "python3.12",
    "python3.13",
    "python3.14",
    "python3.15",
    "java8.al2",
    "java8.al2023",
    "java11",
    "java11.al2023",
    "java17",
    "java17.al2023",
    "java21",
    "java25",
    "dotnet8",
    "dotnet10",
    "ruby3.2",
    "ruby3.3",
    "ruby3.4",
    "ruby4.0",
    "provided.al2",
    "provided.al2023",
];

/// Names of the model's enum that are refused as no longer supported.
const DEPRECATED: &[&str] = &[
    "nodejs",
    "nodejs4.3",
    "nodejs4.3-edge",
    "nodejs6.10",
    "nodejs8.10",
    "nodejs10.x",
    "nodejs12.x",
    "nodejs14.x",
    "nodejs16.x",
    "python2.7",
    "python3.6",
    "python3.7",
    "python3.8",
    "java8",
    "dotnetcore1.0",
    "dotnetcore2.0",
    "dotnetcore2.1",
    "dotnetcore3.1",
    "dotnet6",
    "go1.x",
    "ruby2.5",
    "ruby2.7",
    "provided",
];

/// Refuses what Lambda refuses.
pub(crate) fn check(runtime: &str) -> Result<(), ApiError> {
    if CURRENT.contains(&runtime) {
        return Ok(());
    }
    if DEPRECATED.contains(&runtime) {
        return Err(ApiError::invalid_parameter_value(format!(
            "The runtime parameter of {runtime} is no longer supported for creating or updating AWS Lambda functions. \
             We recommend you use a supported runtime while creating or updating functions."
        )));
    }
    Err(ApiError::invalid_parameter_value(format!(
        "Value {runtime} at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [{}] or be a \
         valid ARN",
        CURRENT.join(", ")
    )))
}

/// Whether functions of this runtime can be started from snapshots: of Lambda's managed runtimes those that can there, and
/// the others that Lambda takes as container images, whose runtimes implement `restore/next` or do without.
pub(crate) fn has_snap_start(runtime: &str) -> bool {
    const FAMILIES: &[(&str, u32, u32)] =
        &[("java", 11, 0), ("python", 3, 12), ("dotnet", 8, 0), ("nodejs", 0, 0), ("ruby", 0, 0), ("provided.", 0, 0)];
    FAMILIES.iter().any(|(family, major, minor)| {
        let Some(version) = runtime.strip_prefix(family) else { return false };
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
        (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()) >= (*major, *minor)
    })
}

/// `arn:aws:lambda:REGION::runtime:HASH`; the hash is the same for a runtime name wherever and whenever it is asked.
pub(crate) fn version_arn(region: &str, runtime: &str) -> String {
    use std::fmt::Write;
    let mut arn = format!("arn:aws:lambda:{region}::runtime:");
    for byte in Sha256::digest(runtime.as_bytes()) {
        // Writing to a String cannot fail.
        let _ = write!(arn, "{byte:02x}");
    }
    arn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_lambda_judges_them() {
        assert!(check("python3.12").is_ok());
        let message = check("java8").unwrap_err().message;
        assert!(message.starts_with("The runtime parameter of java8 is no longer supported for creating or updating"));
        let error = check("cobol85").unwrap_err();
        assert_eq!(error.name, "InvalidParameterValueException");
        assert!(error.message.starts_with("Value cobol85 at 'runtime' failed to satisfy constraint: Member must"));
        assert!(error.message.ends_with("provided.al2, provided.al2023] or be a valid ARN"));
    }

    #[test]
    fn snapshots_are_for_some_runtimes() {
        for runtime in [
            "java11",
            "java17.al2023",
            "java25",
            "python3.12",
            "python3.14",
            "dotnet8",
            "nodejs22.x",
            "ruby3.4",
            "provided.al2",
        ] {
            assert!(check(runtime).is_ok() && has_snap_start(runtime), "{runtime}");
        }
        for runtime in ["java8.al2", "java8.al2023", "python3.11"] {
            assert!(check(runtime).is_ok() && !has_snap_start(runtime), "{runtime}");
        }
    }

    #[test]
    fn version_arns_are_stable_and_differ() {
        let arn = version_arn("eu-west-1", "python3.12");
        assert_eq!(arn, version_arn("eu-west-1", "python3.12"));
        assert_ne!(arn, version_arn("eu-west-1", "python3.13"));
        assert_eq!(arn.len(), "arn:aws:lambda:eu-west-1::runtime:".len() + 64);
    }
}

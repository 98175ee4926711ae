//! The services that Firelet calls, and their names: in the configuration, in the environment, in signatures, in DNS.

use serde::{Deserialize, Serialize};

/// A service of AWS. In a configuration it is named in snake case: `s3`, `dynamodb_streams`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    S3,
    Sqs,
    Sns,
    Kinesis,
    #[serde(rename = "dynamodb_streams")]
    DynamoDbStreams,
    Logs,
    Iam,
    Sts,
    Ecr,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::S3,
        Self::Sqs,
        Self::Sns,
        Self::Kinesis,
        Self::DynamoDbStreams,
        Self::Logs,
        Self::Iam,
        Self::Sts,
        Self::Ecr,
    ];

    /// As a configuration names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Sqs => "sqs",
            Self::Sns => "sns",
            Self::Kinesis => "kinesis",
            Self::DynamoDbStreams => "dynamodb_streams",
            Self::Logs => "logs",
            Self::Iam => "iam",
            Self::Sts => "sts",
            Self::Ecr => "ecr",
        }
    }

    /// The variable in which the SDKs look for its endpoint ("Service-specific endpoints" of the SDK reference guide).
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Self::S3 => "AWS_ENDPOINT_URL_S3",
            Self::Sqs => "AWS_ENDPOINT_URL_SQS",
            Self::Sns => "AWS_ENDPOINT_URL_SNS",
            Self::Kinesis => "AWS_ENDPOINT_URL_KINESIS",
            Self::DynamoDbStreams => "AWS_ENDPOINT_URL_DYNAMODB_STREAMS",
            Self::Logs => "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS",
            Self::Iam => "AWS_ENDPOINT_URL_IAM",
            Self::Sts => "AWS_ENDPOINT_URL_STS",
            Self::Ecr => "AWS_ENDPOINT_URL_ECR",
        }
    }

    /// As the scope of a signature names it.
    #[must_use]
    pub fn signing_name(self) -> &'static str {
        match self {
            Self::DynamoDbStreams => "dynamodb",
            other => other.name(),
        }
    }

    /// The region of a signature: IAM is one for all regions and signs for this one.
    #[must_use]
    pub fn signing_region(self, region: &str) -> &str {
        match self {
            Self::Iam => "us-east-1",
            _ => region,
        }
    }

    /// AWS's own endpoint in a region.
    pub(crate) fn aws_host(self, region: &str) -> String {
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        match self {
            Self::Iam => format!("iam.{domain}"),
            Self::DynamoDbStreams => format!("streams.dynamodb.{region}.{domain}"),
            Self::Ecr => format!("api.ecr.{region}.{domain}"),
            other => format!("{}.{region}.{domain}", other.name()),
        }
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

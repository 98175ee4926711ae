//! The kinds of event sources, and what each takes.

use serde::{Deserialize, Serialize};

/// A kind of event source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    Sqs,
    SqsFifo,
    Kinesis,
    DynamoDb,
    /// Kafka that AWS runs.
    Msk,
    /// Kafka of one's own.
    Kafka,
    /// ActiveMQ or RabbitMQ.
    Mq,
    DocumentDb,
}

/// A member of a request that not every kind of source takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Member {
    /// DestinationConfig.OnFailure.
    OnFailure,
    /// MaximumRecordAgeInSeconds, MaximumRetryAttempts, BisectBatchOnFunctionError.
    Retries,
    /// ParallelizationFactor, TumblingWindowInSeconds.
    Shards,
    FunctionResponseTypes,
    Topics,
    Queues,
    SourceAccess,
    ScalingConfig,
    Pollers,
    Logging,
    AmazonManagedKafka,
    SelfManagedKafka,
    DocumentDb,
}

impl SourceKind {
    /// The kind of an ARN; `None` for what is no event source.
    pub(crate) fn of_arn(arn: &str) -> Option<Self> {
        let mut parts = arn.splitn(6, ':');
        let (head, _partition, service) = (parts.next()?, parts.next()?, parts.next()?);
        let (_region, _account, resource) = (parts.next()?, parts.next()?, parts.next()?);
        if head != "arn" || resource.is_empty() {
            return None;
        }
        let path: Vec<&str> = resource.split('/').collect();
        match (service, path.as_slice()) {
            ("sqs", [name]) if name.ends_with(".fifo") => Some(Self::SqsFifo),
            ("sqs", [_]) => Some(Self::Sqs),
            ("kinesis", ["stream", _] | ["stream", _, "consumer", _]) => Some(Self::Kinesis),
            ("dynamodb", ["table", _, "stream", _]) => Some(Self::DynamoDb),
            ("kafka", ["cluster", _, _]) => Some(Self::Msk),
            ("mq", [broker]) if broker.starts_with("broker:") => Some(Self::Mq),
            ("rds", [cluster]) if cluster.starts_with("cluster:") => Some(Self::DocumentDb),
            _ => None,
        }
    }

    pub(crate) fn is_queue(self) -> bool {
        matches!(self, Self::Sqs | Self::SqsFifo)
    }

    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Kinesis | Self::DynamoDb)
    }

    pub(crate) fn is_kafka(self) -> bool {
        matches!(self, Self::Msk | Self::Kafka)
    }

    /// Whether requests may name this member.
    pub(crate) fn takes(self, member: Member) -> bool {
        match member {
            Member::OnFailure | Member::Retries => self.is_stream() || self.is_kafka(),
            Member::Shards => self.is_stream(),
            Member::FunctionResponseTypes => self.is_queue() || self.is_stream() || self.is_kafka(),
            Member::Topics | Member::Logging => self.is_kafka(),
            Member::Queues => self == Self::Mq,
            Member::SourceAccess => self.is_kafka() || matches!(self, Self::Mq | Self::DocumentDb),
            Member::ScalingConfig => self.is_queue(),
            Member::Pollers => self.is_queue() || self.is_kafka(),
            Member::AmazonManagedKafka => self == Self::Msk,
            Member::SelfManagedKafka => self == Self::Kafka,
            Member::DocumentDb => self == Self::DocumentDb,
        }
    }

    /// BatchSize where none is given.
    pub(crate) fn default_batch(self) -> u32 {
        if self.is_queue() { 10 } else { 100 }
    }

    /// Largest BatchSize.
    pub(crate) fn largest_batch(self) -> u32 {
        if self == Self::SqsFifo { 10 } else { 10_000 }
    }

    /// MaximumBatchingWindowInSeconds where none is given. The others wait 500 ms, which no whole second says.
    pub(crate) fn default_window(self) -> Option<u32> {
        (self.is_queue() || self.is_stream()).then_some(0)
    }

    /// `StateTransitionReason` of what a caller asked for.
    pub(crate) fn user_action(self) -> &'static str {
        if self.is_stream() { "User action" } else { "USER_INITIATED" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_tell_the_kind() {
        let kinds = [
            ("arn:aws:sqs:us-east-1:000000000000:queue", Some(SourceKind::Sqs)),
            ("arn:aws:sqs:us-east-1:000000000000:queue.fifo", Some(SourceKind::SqsFifo)),
            ("arn:aws:kinesis:us-east-1:000000000000:stream/s", Some(SourceKind::Kinesis)),
            ("arn:aws:kinesis:us-east-1:000000000000:stream/s/consumer/c:1", Some(SourceKind::Kinesis)),
            (
                "arn:aws:dynamodb:us-east-1:000000000000:table/t/stream/2026-01-01T00:00:00.000",
                Some(SourceKind::DynamoDb),
            ),
            ("arn:aws:kafka:us-east-1:000000000000:cluster/c/uuid-1", Some(SourceKind::Msk)),
            ("arn:aws:mq:us-east-1:000000000000:broker:b:b-1", Some(SourceKind::Mq)),
            ("arn:aws:rds:us-east-1:000000000000:cluster:docs", Some(SourceKind::DocumentDb)),
            ("arn:aws:dynamodb:us-east-1:000000000000:table/t", None),
            ("arn:aws:sns:us-east-1:000000000000:topic", None),
            ("arn:aws:sqs:us-east-1:000000000000:", None),
            ("queue", None),
        ];
        for (arn, kind) in kinds {
            assert_eq!(SourceKind::of_arn(arn), kind, "{arn}");
        }
    }
}

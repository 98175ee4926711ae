//! The policies that AWS manages and tools attach to the roles of functions, as far as they bear on what Firelet serves.
//! One that is not here can be attached, and allows nothing.

/// CloudWatch Logs: what a function writes.
const WRITE_LOGS: &str =
    r#"{"Effect":"Allow","Action":["logs:CreateLogGroup","logs:CreateLogStream","logs:PutLogEvents"],"Resource":"*"}"#;

/// The document of a policy of AWS's by its ARN.
pub fn managed(arn: &str) -> Option<String> {
    let path = arn.strip_prefix("arn:aws:iam::aws:policy/")?;
    let name = path.rsplit('/').next()?;
    let statements = match name {
        "AdministratorAccess" => r#"{"Effect":"Allow","Action":"*","Resource":"*"}"#.to_owned(),
        "PowerUserAccess" => {
            r#"{"Effect":"Allow","NotAction":["iam:*","organizations:*","account:*"],"Resource":"*"},{"Effect":"Allow","Action":["iam:ListRoles"],"Resource":"*"}"#.to_owned()
        }
        "IAMFullAccess" => r#"{"Effect":"Allow","Action":["iam:*"],"Resource":"*"}"#.to_owned(),
        "ReadOnlyAccess" => {
            r#"{"Effect":"Allow","Action":["lambda:Get*","lambda:List*","iam:Get*","iam:List*","logs:Describe*","logs:Filter*","logs:Get*","sts:GetCallerIdentity"],"Resource":"*"}"#.to_owned()
        }
        "AWSLambda_FullAccess" => {
            r#"{"Effect":"Allow","Action":["lambda:*","logs:DescribeLogGroups","iam:GetPolicy","iam:GetPolicyVersion","iam:GetRole","iam:GetRolePolicy","iam:ListAttachedRolePolicies","iam:ListRolePolicies","iam:ListRoles"],"Resource":"*"},{"Effect":"Allow","Action":"iam:PassRole","Resource":"*","Condition":{"StringEquals":{"iam:PassedToService":"lambda.amazonaws.com"}}},{"Effect":"Allow","Action":["logs:DescribeLogStreams","logs:GetLogEvents","logs:FilterLogEvents","logs:StartLiveTail","logs:StopLiveTail"],"Resource":"arn:aws:logs:*:*:log-group:/aws/lambda/*"}"#.to_owned()
        }
        "AWSLambda_ReadOnlyAccess" => {
            r#"{"Effect":"Allow","Action":["lambda:Get*","lambda:List*","logs:DescribeLogGroups","iam:GetPolicy","iam:GetPolicyVersion","iam:GetRole","iam:GetRolePolicy","iam:ListAttachedRolePolicies","iam:ListRolePolicies","iam:ListRoles"],"Resource":"*"},{"Effect":"Allow","Action":["logs:DescribeLogStreams","logs:GetLogEvents","logs:FilterLogEvents"],"Resource":"arn:aws:logs:*:*:log-group:/aws/lambda/*"}"#.to_owned()
        }
        "AWSLambdaRole" => r#"{"Effect":"Allow","Action":["lambda:InvokeFunction"],"Resource":["*"]}"#.to_owned(),
        "AWSLambdaBasicExecutionRole" => WRITE_LOGS.to_owned(),
        "AWSLambdaBasicDurableExecutionRolePolicy" => format!(
            r#"{WRITE_LOGS},{{"Effect":"Allow","Action":["lambda:CheckpointDurableExecution","lambda:GetDurableExecutionState"],"Resource":"*"}}"#
        ),
        "AWSLambdaVPCAccessExecutionRole" => format!(
            r#"{WRITE_LOGS},{{"Effect":"Allow","Action":["ec2:CreateNetworkInterface","ec2:DescribeNetworkInterfaces","ec2:DescribeSubnets","ec2:DeleteNetworkInterface","ec2:AssignPrivateIpAddresses","ec2:UnassignPrivateIpAddresses"],"Resource":"*"}}"#
        ),
        "AWSLambdaSQSQueueExecutionRole" => format!(
            r#"{WRITE_LOGS},{{"Effect":"Allow","Action":["sqs:ReceiveMessage","sqs:DeleteMessage","sqs:GetQueueAttributes"],"Resource":"*"}}"#
        ),
        "AWSLambdaKinesisExecutionRole" => format!(
            r#"{WRITE_LOGS},{{"Effect":"Allow","Action":["kinesis:DescribeStream","kinesis:DescribeStreamSummary","kinesis:GetRecords","kinesis:GetShardIterator","kinesis:ListShards","kinesis:ListStreams","kinesis:SubscribeToShard"],"Resource":"*"}}"#
        ),
        "AWSLambdaDynamoDBExecutionRole" => format!(
            r#"{WRITE_LOGS},{{"Effect":"Allow","Action":["dynamodb:DescribeStream","dynamodb:GetRecords","dynamodb:GetShardIterator","dynamodb:ListStreams"],"Resource":"*"}}"#
        ),
        "AWSLambdaInvocation-DynamoDB" => {
            r#"{"Effect":"Allow","Action":["lambda:InvokeFunction"],"Resource":["*"]},{"Effect":"Allow","Action":["dynamodb:DescribeStream","dynamodb:GetRecords","dynamodb:GetShardIterator","dynamodb:ListStreams"],"Resource":["*"]}"#.to_owned()
        }
        "AWSLambdaExecute" => {
            r#"{"Effect":"Allow","Action":["logs:*"],"Resource":"arn:aws:logs:*:*:*"},{"Effect":"Allow","Action":["s3:GetObject","s3:PutObject"],"Resource":"arn:aws:s3:::*"}"#.to_owned()
        }
        "AWSXRayDaemonWriteAccess" => {
            r#"{"Effect":"Allow","Action":["xray:PutTraceSegments","xray:PutTelemetryRecords","xray:GetSamplingRules","xray:GetSamplingTargets","xray:GetSamplingStatisticSummaries"],"Resource":["*"]}"#.to_owned()
        }
        "CloudWatchLogsFullAccess" => r#"{"Effect":"Allow","Action":["logs:*"],"Resource":"*"}"#.to_owned(),
        _ => return None,
    };
    Some(format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#))
}

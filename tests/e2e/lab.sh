#!/usr/bin/env bash
# A first session with Lambda, as a beginner types it: create, cold start, parallel, warm, provisioned, tear down.
# Runs against $AWS_ENDPOINT_URL in the current directory and leaves the invocations' results in it.
set -euo pipefail

cat > index.py <<'PYTHON'
import time, os, json
INIT_TS = time.time()
def handler(event, context):
    return {
        "init_ts": INIT_TS,
        "now": time.time(),
        "container_id": os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
    }
PYTHON
zip -q fn.zip index.py

ROLE_ARN=$(aws iam create-role --role-name lab-lambda \
    --assume-role-policy-document '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}' \
    --query 'Role.Arn' --output text)
aws iam attach-role-policy --role-name lab-lambda \
    --policy-arn arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole

aws lambda create-function --function-name lab-fn \
    --runtime python3.12 --role "$ROLE_ARN" \
    --handler index.handler --zip-file fileb://fn.zip \
    --memory-size 512 --timeout 30 > created.json

# Once: a cold start.
aws lambda invoke --function-name lab-fn --invocation-type RequestResponse out.json > invoked.json

# Ten in parallel: several environments.
for i in $(seq 1 10); do aws lambda invoke --function-name lab-fn "out-$i.json" > /dev/null & done
wait
jq -r '.container_id' out-*.json | sort -u > parallel.txt

# Five in series: one environment, warm.
for i in $(seq 1 5); do
    aws lambda invoke --function-name lab-fn "warm-$i.json" > /dev/null
    jq -r '.container_id' "warm-$i.json"
done > serial.txt

# Provisioned concurrency.
aws lambda publish-version --function-name lab-fn > published.json
aws lambda put-provisioned-concurrency-config --function-name lab-fn --qualifier 1 \
    --provisioned-concurrent-executions 2 > provisioned.json
for _ in $(seq 1 100); do
    aws lambda get-provisioned-concurrency-config --function-name lab-fn --qualifier 1 > provisioned-later.json
    [ "$(jq -r .Status provisioned-later.json)" = IN_PROGRESS ] || break
done

# Tear down.
aws lambda delete-function --function-name lab-fn
aws iam detach-role-policy --role-name lab-lambda \
    --policy-arn arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole
aws iam delete-role --role-name lab-lambda

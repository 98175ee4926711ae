"""Event source mappings as a user of boto3 meets them: their life, their lists, a restart."""

import signal

import pytest
from botocore.exceptions import ClientError
from server import REGION, eventually

QUEUE = f"arn:aws:sqs:{REGION}:000000000000:orders"


@pytest.fixture
def function(firelet):
    return make(firelet)


def make(server):
    function = server.deploy({"app.py": "def handler(event, context): return event"})
    server.lambda_.get_waiter("function_active_v2").wait(FunctionName=function.name)
    return function


def settled(server, uuid, state):
    return eventually(
        lambda: (found := server.lambda_.get_event_source_mapping(UUID=uuid))["State"] == state and found, what=state
    )


def test_a_mapping_is_created_changed_and_deleted(firelet, function):
    client = firelet.lambda_
    queue = f"{QUEUE}-{function.name}"
    created = client.create_event_source_mapping(
        FunctionName=function.name,
        EventSourceArn=queue,
        FilterCriteria={"Filters": [{"Pattern": '{"body": {"kind": ["order"]}}'}]},
        FunctionResponseTypes=["ReportBatchItemFailures"],
        ScalingConfig={"MaximumConcurrency": 4},
    )
    uuid = created["UUID"]
    assert created["State"] == "Creating"
    with pytest.raises(client.exceptions.ResourceInUseException):
        client.update_event_source_mapping(UUID=uuid, BatchSize=5)
    settled(firelet, uuid, "Enabled")
    changed = client.update_event_source_mapping(UUID=uuid, Enabled=False, BatchSize=5)
    assert (changed["State"], changed["BatchSize"]) == ("Disabling", 5)
    disabled = settled(firelet, uuid, "Disabled")
    assert disabled["FilterCriteria"] == created["FilterCriteria"]
    assert disabled["ScalingConfig"] == {"MaximumConcurrency": 4}
    listed = client.list_event_source_mappings(FunctionName=function.name)["EventSourceMappings"]
    assert [mapping["UUID"] for mapping in listed] == [uuid]
    assert client.delete_event_source_mapping(UUID=uuid)["State"] == "Deleting"

    def gone():
        try:
            client.get_event_source_mapping(UUID=uuid)
        except client.exceptions.ResourceNotFoundException:
            return True
        return False

    eventually(gone, what="the mapping's end")
    assert client.list_event_source_mappings(FunctionName=function.name)["EventSourceMappings"] == []


def test_a_mapping_survives_a_kill_and_goes_on_moving(start_firelet):
    server = start_firelet()
    function = make(server)
    kept = server.lambda_.create_event_source_mapping(FunctionName=function.name, EventSourceArn=QUEUE)
    server.stop(signal.SIGKILL)
    server = start_firelet()
    assert settled(server, kept["UUID"], "Enabled")["EventSourceArn"] == QUEUE


def test_mappings_are_listed_in_pages(firelet, function):
    client = firelet.lambda_
    for number in range(5):
        client.create_event_source_mapping(
            FunctionName=function.name,
            EventSourceArn=f"arn:aws:kinesis:{REGION}:000000000000:stream/{function.name}-{number}",
            StartingPosition="TRIM_HORIZON",
        )
    pages = client.get_paginator("list_event_source_mappings").paginate(
        FunctionName=function.name, PaginationConfig={"PageSize": 2}
    )
    pages = [page["EventSourceMappings"] for page in pages]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert len({mapping["UUID"] for page in pages for mapping in page}) == 5


@pytest.fixture
def asking(start_firelet, elsewhere):
    """A Firelet that knows where queues and streams are kept, and a function that may take 31 seconds."""
    variables = ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_KINESIS", "AWS_ENDPOINT_URL_DYNAMODB_STREAMS"]
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    server = start_firelet(environment={**dict.fromkeys(variables, elsewhere.url), **keys})
    function = server.deploy({"app.py": "def handler(event, context): return event"}, Timeout=31)
    server.lambda_.get_waiter("function_active_v2").wait(FunctionName=function.name)

    def create(arn, **members):
        return server.lambda_.create_event_source_mapping(FunctionName=function.name, EventSourceArn=arn, **members)

    def refusal(arn, **members):
        with pytest.raises(ClientError) as refused:
            create(arn, **members)
        return refused.value.response["Error"]["Code"], refused.value.response["Error"]["Message"]

    return create, refusal


def test_a_queue_has_to_be_there_and_to_hide_messages_long_enough(asking, elsewhere):
    create, refusal = asking
    code, message = refusal(QUEUE)
    assert code == "InvalidParameterValueException"
    assert message.startswith(
        "Error occurred while ReceiveMessage. SQS Error Code: AWS.SimpleQueueService.NonExistentQueue. SQS Error Message: "
    )
    queues = elsewhere.client("sqs")
    url = queues.create_queue(QueueName="work")["QueueUrl"]
    arn = queues.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    too_short = "Queue visibility timeout: 30 seconds is less than Function timeout: 31 seconds"
    assert refusal(arn) == ("InvalidParameterValueException", too_short)
    queues.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "31"})
    assert create(arn)["State"] == "Creating"


def test_a_stream_has_to_be_there(asking, elsewhere):
    create, refusal = asking
    for absent in (
        f"arn:aws:kinesis:{REGION}:123456789012:stream/absent",
        f"arn:aws:dynamodb:{REGION}:123456789012:table/absent/stream/2026-01-02T03:04:05.678",
    ):
        found = refusal(absent, StartingPosition="LATEST")
        assert found == ("InvalidParameterValueException", f"Stream not found: {absent}")
    streams = elsewhere.client("kinesis")
    streams.create_stream(StreamName="clicks", ShardCount=1)
    arn = streams.describe_stream_summary(StreamName="clicks")["StreamDescriptionSummary"]["StreamARN"]
    assert create(arn, StartingPosition="LATEST")["State"] == "Creating"
    table = elsewhere.client("dynamodb").create_table(
        TableName="orders",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
    )["TableDescription"]
    assert create(table["LatestStreamArn"], StartingPosition="LATEST")["State"] == "Creating"

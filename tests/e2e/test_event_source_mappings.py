"""Event source mappings as a user of boto3 meets them: their life, their lists, a restart."""

import signal

import pytest
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

"""Resource policies as a user of an SDK meets them."""

import json

import pytest
from botocore.exceptions import ClientError

ECHO = "def handler(event, context):\n    return event\n"


def statements(client, name, **qualifier):
    return json.loads(client.get_policy(FunctionName=name, **qualifier)["Policy"])["Statement"]


def test_a_bucket_and_a_topic_may_invoke_until_they_may_not(firelet):
    client = firelet.lambda_
    name = firelet.deploy(ECHO).name
    added = client.add_permission(
        FunctionName=name, StatementId="bucket", Action="lambda:InvokeFunction", Principal="s3.amazonaws.com",
        SourceArn="arn:aws:s3:::uploads", SourceAccount="000000000000",
    )
    client.add_permission(
        FunctionName=name, StatementId="topic", Action="lambda:InvokeFunction", Principal="sns.amazonaws.com"
    )
    assert [statement["Sid"] for statement in statements(client, name)] == ["bucket", "topic"]
    assert statements(client, name)[0] == json.loads(added["Statement"])
    client.remove_permission(FunctionName=name, StatementId="bucket")
    assert [statement["Sid"] for statement in statements(client, name)] == ["topic"]
    client.remove_permission(FunctionName=name, StatementId="topic")
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_policy(FunctionName=name)


def test_a_policy_is_guarded_by_its_revision(firelet):
    client = firelet.lambda_
    name = firelet.deploy(ECHO).name
    arguments = dict(FunctionName=name, Action="lambda:InvokeFunction", Principal="events.amazonaws.com")
    seen = client.get_function_configuration(FunctionName=name)["RevisionId"]
    client.add_permission(StatementId="one", RevisionId=seen, **arguments)
    with pytest.raises(ClientError) as refused:
        client.add_permission(StatementId="two", RevisionId=seen, **arguments)
    assert refused.value.response["Error"]["Code"] == "PreconditionFailedException"
    current = client.get_policy(FunctionName=name)["RevisionId"]
    client.add_permission(StatementId="two", RevisionId=current, **arguments)
    assert len(statements(client, name)) == 2


def test_a_policy_change_keeps_warm_environments(firelet):
    function = firelet.deploy("import uuid\nME = str(uuid.uuid4())\n\ndef handler(event, context):\n    return ME\n")
    before = function()
    firelet.lambda_.add_permission(
        FunctionName=function.name, StatementId="s", Action="lambda:InvokeFunction", Principal="s3.amazonaws.com"
    )
    assert function() == before

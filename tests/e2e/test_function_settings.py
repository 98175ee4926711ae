"""What hangs on a function beside its configuration: URLs, tags, asynchronous invocation, code signing and the rest."""

import signal
from urllib.parse import urlsplit

import pytest

ECHO = "def handler(event, context):\n    return event\n"
PUBLISHERS = {"SigningProfileVersionArns": ["arn:aws:signer:us-east-1:000000000000:/signing-profiles/team"]}


def test_a_url_has_a_host_of_its_own_below_the_servers(firelet):
    client = firelet.lambda_
    name = firelet.deploy(ECHO).name
    created = client.create_function_url_config(FunctionName=name, AuthType="NONE", Cors={"AllowOrigins": ["*"]})
    url = urlsplit(created["FunctionUrl"])
    assert (url.scheme, url.path, url.port) == ("http", "/", urlsplit(firelet.url).port)
    assert url.hostname.endswith(".lambda-url.us-east-1.localhost")
    other = client.create_function_url_config(FunctionName=firelet.deploy(ECHO).name, AuthType="AWS_IAM")
    assert urlsplit(other["FunctionUrl"]).hostname != url.hostname
    assert client.get_function_url_config(FunctionName=name)["FunctionUrl"] == created["FunctionUrl"]
    client.delete_function_url_config(FunctionName=name)
    assert client.list_function_url_configs(FunctionName=name)["FunctionUrlConfigs"] == []


def test_tags_are_kept_with_the_function(firelet):
    client = firelet.lambda_
    name = firelet.deploy(ECHO, Tags={"team": "a"}).name
    arn = client.get_function_configuration(FunctionName=name)["FunctionArn"]
    client.tag_resource(Resource=arn, Tags={"stage": "test", "team": "b"})
    assert client.get_function(FunctionName=name)["Tags"] == {"stage": "test", "team": "b"}
    client.untag_resource(Resource=arn, TagKeys=["team", "absent"])
    assert client.list_tags(Resource=arn)["Tags"] == {"stage": "test"}


def test_what_infrastructure_tools_read_of_a_plain_function(firelet):
    client = firelet.lambda_
    name = firelet.deploy(ECHO).name
    assert "CodeSigningConfigArn" not in client.get_function_code_signing_config(FunctionName=name)
    assert client.get_function_recursion_config(FunctionName=name)["RecursiveLoop"] == "Terminate"
    assert client.get_runtime_management_config(FunctionName=name)["UpdateRuntimeOn"] == "Auto"
    assert client.list_function_event_invoke_configs(FunctionName=name)["FunctionEventInvokeConfigs"] == []
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_function_event_invoke_config(FunctionName=name)


def test_settings_survive_a_kill(start_firelet):
    server = start_firelet()
    client = server.lambda_
    name = server.deploy(ECHO).name
    client.put_function_event_invoke_config(FunctionName=name, MaximumRetryAttempts=0, MaximumEventAgeInSeconds=60)
    client.put_function_recursion_config(FunctionName=name, RecursiveLoop="Allow")
    client.add_permission(FunctionName=name, StatementId="s", Action="lambda:InvokeFunction", Principal="s3.amazonaws.com")
    url = client.create_function_url_config(FunctionName=name, AuthType="NONE")["FunctionUrl"]
    csc = client.create_code_signing_config(AllowedPublishers=PUBLISHERS)["CodeSigningConfig"]["CodeSigningConfigArn"]
    client.put_function_code_signing_config(FunctionName=name, CodeSigningConfigArn=csc)
    policy = client.get_policy(FunctionName=name)
    server.stop(signal.SIGKILL)
    client = start_firelet().lambda_
    assert client.get_function_event_invoke_config(FunctionName=name)["MaximumEventAgeInSeconds"] == 60
    assert client.get_function_recursion_config(FunctionName=name)["RecursiveLoop"] == "Allow"
    again = client.get_policy(FunctionName=name)
    assert (again["Policy"], again["RevisionId"]) == (policy["Policy"], policy["RevisionId"])
    host = urlsplit(client.get_function_url_config(FunctionName=name)["FunctionUrl"]).hostname
    assert host == urlsplit(url).hostname
    assert client.get_function_code_signing_config(FunctionName=name)["CodeSigningConfigArn"] == csc


def test_a_function_that_enforces_signatures_keeps_its_code(firelet):
    client = firelet.lambda_
    function = firelet.deploy(ECHO)
    csc = client.create_code_signing_config(
        AllowedPublishers=PUBLISHERS, CodeSigningPolicies={"UntrustedArtifactOnDeployment": "Enforce"}
    )["CodeSigningConfig"]["CodeSigningConfigArn"]
    client.put_function_code_signing_config(FunctionName=function.name, CodeSigningConfigArn=csc)
    with pytest.raises(client.exceptions.CodeVerificationFailedException):
        client.update_function_code(FunctionName=function.name, ZipFile=b"never looked at")
    assert function({"still": "there"}) == {"still": "there"}
    client.delete_function_code_signing_config(FunctionName=function.name)

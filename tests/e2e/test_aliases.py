"""Aliases as a user of an SDK meets them: deployments behind a name that stays, and traffic that shifts by weight."""

import pytest
from botocore.exceptions import ClientError
from server import eventually, zipped

VERSIONED = "def handler(event, context):\n    return [{0!r}, context.function_version, context.invoked_function_arn]\n"


@pytest.fixture
def released(firelet):
    """A function with the versions 1 and 2, whose code answers `one` and `two`, and the alias `live` of version 1."""
    function = firelet.deploy(VERSIONED.format("one"), Publish=True)
    firelet.lambda_.update_function_code(
        FunctionName=function.name, ZipFile=zipped({"app.py": VERSIONED.format("two")}), Publish=True
    )
    firelet.lambda_.get_waiter("published_version_active").wait(FunctionName=f"{function.name}:2", WaiterConfig={"Delay": 0.05})
    firelet.lambda_.create_alias(FunctionName=function.name, Name="live", FunctionVersion="1")
    return function


def test_an_alias_runs_its_version_under_its_own_arn(firelet, released):
    answer = released.call(Qualifier="live")
    code, version, arn = answer.ok()
    assert (code, version, answer.version) == ("one", "1", "1")
    assert arn.endswith(f":function:{released.name}:live")


def test_a_moved_alias_runs_the_new_version_at_once(firelet, released):
    assert released(Qualifier="live")[0] == "one"
    firelet.lambda_.update_alias(FunctionName=released.name, Name="live", FunctionVersion="2")
    assert released(Qualifier="live")[:2] == ["two", "2"]
    assert firelet.lambda_.get_function(FunctionName=f"{released.name}:live")["Configuration"]["Version"] == "2"


def test_weights_send_invocations_to_both_versions(firelet, released):
    firelet.lambda_.update_alias(
        FunctionName=released.name, Name="live", RoutingConfig={"AdditionalVersionWeights": {"2": 0.5}}
    )
    versions = [released.call(Qualifier="live").version for _ in range(40)]
    # Fails by chance less than once in 10**11 runs.
    assert set(versions) == {"1", "2"}
    firelet.lambda_.update_alias(FunctionName=released.name, Name="live", RoutingConfig={})
    assert {released.call(Qualifier="live").version for _ in range(5)} == {"1"}


def test_a_deployment_is_rolled_back_by_the_revision_it_was_seen_with(firelet, released):
    seen = firelet.lambda_.get_alias(FunctionName=released.name, Name="live")
    firelet.lambda_.update_alias(FunctionName=released.name, Name="live", FunctionVersion="2", RevisionId=seen["RevisionId"])
    with pytest.raises(ClientError) as refused:
        firelet.lambda_.update_alias(FunctionName=released.name, Name="live", FunctionVersion="1", RevisionId=seen["RevisionId"])
    assert refused.value.response["Error"]["Code"] == "PreconditionFailedException"
    firelet.lambda_.delete_alias(FunctionName=released.name, Name="live")
    with pytest.raises(firelet.lambda_.exceptions.ResourceNotFoundException):
        released.call(Qualifier="live")


def test_provisioned_environments_of_an_alias_move_with_it(firelet):
    code = "import os\ndef handler(event, context):\n    return os.environ['AWS_LAMBDA_INITIALIZATION_TYPE'], context.function_version\n"
    function = firelet.deploy(code, Publish=True)
    firelet.lambda_.update_function_code(FunctionName=function.name, ZipFile=zipped({"app.py": code + "# two\n"}), Publish=True)
    firelet.lambda_.get_waiter("published_version_active").wait(FunctionName=f"{function.name}:2", WaiterConfig={"Delay": 0.05})
    alias = {"FunctionName": function.name, "Name": "live"}
    provided = {"FunctionName": function.name, "Qualifier": "live"}
    firelet.lambda_.create_alias(FunctionVersion="1", **alias)
    firelet.lambda_.put_provisioned_concurrency_config(ProvisionedConcurrentExecutions=1, **provided)

    def ready():
        return firelet.lambda_.get_provisioned_concurrency_config(**provided)["Status"] == "READY"

    eventually(ready, what="the environment of version 1")
    assert function(Qualifier="live") == ["provisioned-concurrency", "1"]
    firelet.lambda_.update_alias(FunctionVersion="2", **alias)
    eventually(ready, what="the environment of version 2")
    assert function(Qualifier="live") == ["provisioned-concurrency", "2"]
    firelet.lambda_.delete_alias(**alias)
    assert function(Qualifier="2")[1] == "2"
    assert firelet.lambda_.list_provisioned_concurrency_configs(FunctionName=function.name)["ProvisionedConcurrencyConfigs"] == []

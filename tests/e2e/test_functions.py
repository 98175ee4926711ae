"""The Lambda API around functions: states, updates, versions, lists, refusals."""

import base64
import hashlib
import json
import re

import pytest
from botocore.exceptions import ClientError
from server import ROLE, eventually, zipped

ECHO = "def handler(event, context): return event\n"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def returns(value):
    return zipped({"app.py": f"def handler(event, context): return {value!r}\n"})


def refusal(call, **arguments):
    """(status, error code, message) of a call that must be refused."""
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    response = refused.value.response
    message = response.get("message") or response.get("Message") or response["Error"]["Message"]
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"], message


def wait_updated(firelet, name):
    firelet.lambda_.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05})


def create(firelet, name, **changes):
    arguments = {
        "FunctionName": name,
        "Runtime": "python3.12",
        "Handler": "app.handler",
        "Role": ROLE,
        "Code": {"ZipFile": zipped({"app.py": ECHO})},
        **changes,
    }
    return firelet.lambda_.create_function(**arguments)


def test_create_answers_pending_with_the_defaults(firelet):
    package = zipped({"app.py": ECHO})
    created = create(firelet, "create-defaults", Code={"ZipFile": package})
    assert created.pop("ResponseMetadata")["HTTPStatusCode"] == 201
    assert re.fullmatch(UUID, created.pop("RevisionId"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000", created.pop("LastModified"))
    assert created.pop("RuntimeVersionConfig")["RuntimeVersionArn"].startswith("arn:aws:lambda:us-east-1::runtime:")
    assert created == {
        "FunctionName": "create-defaults",
        "FunctionArn": "arn:aws:lambda:us-east-1:000000000000:function:create-defaults",
        "Runtime": "python3.12",
        "Role": ROLE,
        "Handler": "app.handler",
        "CodeSize": len(package),
        "CodeSha256": base64.b64encode(hashlib.sha256(package).digest()).decode(),
        "Description": "",
        "Timeout": 3,
        "MemorySize": 128,
        "Version": "$LATEST",
        "TracingConfig": {"Mode": "PassThrough"},
        "State": "Pending",
        "StateReason": "The function is being created.",
        "StateReasonCode": "Creating",
        "PackageType": "Zip",
        "Architectures": ["x86_64"],
        "EphemeralStorage": {"Size": 512},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/create-defaults"},
    }


def test_a_function_becomes_active_with_a_new_revision(firelet):
    revision = create(firelet, "create-active")["RevisionId"]
    firelet.lambda_.get_waiter("function_active_v2").wait(FunctionName="create-active", WaiterConfig={"Delay": 0.05})
    found = firelet.lambda_.get_function(FunctionName="create-active")
    configuration = found["Configuration"]
    assert (configuration["State"], configuration["LastUpdateStatus"]) == ("Active", "Successful")
    assert not {"StateReason", "StateReasonCode"} & set(configuration)
    assert configuration["RevisionId"] != revision
    assert found["Code"]["RepositoryType"] == "S3"
    assert "Tags" not in found and "Concurrency" not in found


def test_a_new_function_can_be_invoked_at_once(firelet):
    create(firelet, "create-invoke")
    answer = firelet.lambda_.invoke(FunctionName="create-invoke", Payload=b'{"a": 1}')
    assert json.load(answer["Payload"]) == {"a": 1}


def test_a_name_can_be_taken_once(firelet):
    create(firelet, "create-twice")
    status, code, message = refusal(lambda: create(firelet, "create-twice"))
    assert (status, code, message) == (409, "ResourceConflictException", "Function already exist: create-twice")


def test_shape_failures_are_validation_exceptions(firelet):
    status, code, message = refusal(firelet.lambda_.get_function, FunctionName="bad name!")
    assert (status, code) == (400, "ValidationException")
    assert message.startswith(
        "1 validation error detected: Value 'bad name!' at 'functionName' failed to satisfy constraint: "
        "Member must satisfy regular expression pattern: (arn:"
    )
    status, code, message = refusal(lambda: create(firelet, "bad-memory", MemorySize=64, Timeout=0))
    assert (status, code) == (400, "ValidationException")
    assert message.startswith("2 validation errors detected: ")
    assert (
        "Value '64' at 'memorySize' failed to satisfy constraint: Member must have value greater than or equal to 128"
        in message
    )
    assert "; Value '0' at 'timeout' failed" in message or message.index("'timeout'") < message.index("'memorySize'")


def test_semantic_failures_are_invalid_parameter_values(firelet):
    invalid = 400, "InvalidParameterValueException"
    status, code, message = refusal(lambda: create(firelet, "bad-runtime", Runtime="python9.9"))
    assert (status, code) == invalid
    assert message.startswith(
        "Value python9.9 at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: ["
    )
    assert message.endswith("] or be a valid ARN")

    big = {"Variables": {"BIG": "x" * 4100}}
    status, code, message = refusal(lambda: create(firelet, "big-environment", Environment=big))
    assert (status, code) == invalid
    assert message.startswith(
        "Lambda was unable to configure your environment variables because the environment variables you have "
        "provided exceeded the 4KB limit. String measured: {"
    )

    status, code, message = refusal(lambda: create(firelet, "not-a-zip", Code={"ZipFile": b"this is no zip"}))
    assert (status, code) == invalid
    assert message == "Could not unzip uploaded file. Please check your file, then try to upload again."


def test_a_package_that_escapes_its_folder_is_refused(firelet):
    package = zipped({"../../escape.py": "x = 1"})
    status, code, _ = refusal(lambda: create(firelet, "zip-slip", Code={"ZipFile": package}))
    assert (status, code) == (400, "InvalidParameterValueException")


def test_new_code_is_served_and_old_environments_are_left(firelet):
    function = firelet.deploy({"app.py": "def handler(event, context): return 'old'\n"})
    assert function() == "old"
    updated = firelet.lambda_.update_function_code(FunctionName=function.name, ZipFile=returns("new"))
    assert updated["LastUpdateStatus"] == "InProgress"
    assert updated["LastUpdateStatusReasonCode"] == "Creating"
    wait_updated(firelet, function.name)
    assert [function() for _ in range(3)] == ["new"] * 3


def test_new_configuration_is_served(firelet):
    function = firelet.deploy("import os\ndef handler(event, context): return os.environ.get('COLOUR')\n")
    assert function() is None
    firelet.lambda_.update_function_configuration(
        FunctionName=function.name, Environment={"Variables": {"COLOUR": "red"}}, Timeout=9
    )
    wait_updated(firelet, function.name)
    assert function() == "red"
    found = firelet.lambda_.get_function_configuration(FunctionName=function.name)
    assert (found["Timeout"], found["Environment"]) == (9, {"Variables": {"COLOUR": "red"}})


def test_a_stale_revision_is_refused(firelet):
    function = firelet.deploy(ECHO)
    wrong = "00000000-0000-0000-0000-000000000000"
    found = refusal(
        firelet.lambda_.update_function_configuration, FunctionName=function.name, Timeout=5, RevisionId=wrong
    )
    assert found == (
        412,
        "PreconditionFailedException",
        "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve "
        "the latest Revision Id",
    )


def test_versions_are_numbered_frozen_and_reused_when_nothing_changed(firelet):
    function = firelet.deploy({"app.py": "def handler(event, context): return 'one'\n"})
    publish = firelet.lambda_.publish_version
    assert publish(FunctionName=function.name)["Version"] == "1"
    assert publish(FunctionName=function.name)["Version"] == "1"
    firelet.lambda_.update_function_code(FunctionName=function.name, ZipFile=returns("two"))
    wait_updated(firelet, function.name)
    second = publish(FunctionName=function.name, Description="the second")
    assert (second["Version"], second["Description"]) == ("2", "the second")
    assert second["FunctionArn"].endswith(f":function:{function.name}:2")
    assert function(Qualifier="1") == "one"
    assert function(Qualifier="2") == function() == "two"
    listed = firelet.lambda_.list_versions_by_function(FunctionName=function.name)["Versions"]
    assert [version["Version"] for version in listed] == ["$LATEST", "1", "2"]
    assert listed[0]["FunctionArn"].endswith(":$LATEST")
    assert "State" not in listed[0]


def test_a_version_may_be_named_in_the_function_name(firelet):
    function = firelet.deploy("def handler(event, context): return context.invoked_function_arn\n")
    firelet.lambda_.publish_version(FunctionName=function.name)
    arn = f"arn:aws:lambda:us-east-1:000000000000:function:{function.name}"
    invoke = firelet.lambda_.invoke
    for name, expected in ((arn, arn), (f"{arn}:1", f"{arn}:1"), (f"{function.name}:1", f"{arn}:1")):
        assert invoke(FunctionName=name)["Payload"].read().decode() == f'"{expected}"'
    assert invoke(FunctionName=function.name, Qualifier="1")["ExecutedVersion"] == "1"
    status, code, message = refusal(invoke, FunctionName=f"{function.name}:1", Qualifier="2")
    assert (status, code) == (400, "InvalidParameterValueException")
    assert message == "The derived qualifier from the function name does not match the specified qualifier."


def test_versions_have_pools_of_their_own(firelet):
    function = firelet.deploy("import os\ndef handler(event, context): return os.environ['AWS_LAMBDA_LOG_STREAM_NAME']\n")
    firelet.lambda_.publish_version(FunctionName=function.name)
    latest, first = function(), function(Qualifier="1")
    assert "[$LATEST]" in latest and "[1]" in first
    assert (function(), function(Qualifier="1")) == (latest, first)


def test_a_dry_run_runs_nothing(firelet):
    function = firelet.deploy("raise RuntimeError('ran')\n")
    answer = function.call(InvocationType="DryRun", LogType="None")
    assert (answer.status, answer.raw) == (204, b"")


def test_a_deleted_function_is_gone(firelet):
    function = firelet.deploy(ECHO)
    assert function(1) == 1
    firelet.lambda_.delete_function(FunctionName=function.name)
    arn = f"arn:aws:lambda:us-east-1:000000000000:function:{function.name}"
    missing = 404, "ResourceNotFoundException"
    assert refusal(firelet.lambda_.get_function, FunctionName=function.name) == (*missing, f"Function not found: {arn}")
    assert refusal(firelet.lambda_.invoke, FunctionName=function.name) == (*missing, f"Function not found: {arn}:$LATEST")
    names = [found["FunctionName"] for found in firelet.lambda_.list_functions()["Functions"]]
    assert function.name not in names


def test_functions_are_listed_in_pages(start_firelet):
    server = start_firelet()
    names = [f"page-{index:02}" for index in range(55)]
    for name in names:
        create(server, name)
    pages = list(server.lambda_.get_paginator("list_functions").paginate())
    assert [len(page["Functions"]) for page in pages] == [50, 5]
    listed = [found for page in pages for found in page["Functions"]]
    assert sorted(found["FunctionName"] for found in listed) == names
    assert not any({"State", "LastUpdateStatus", "RuntimeVersionConfig"} & set(found) for found in listed)


def test_account_settings_count_the_functions(firelet):
    function = firelet.deploy(ECHO)
    settings = firelet.lambda_.get_account_settings()
    limits = settings["AccountLimit"]
    assert (limits["CodeSizeUnzipped"], limits["CodeSizeZipped"]) == (262144000, 52428800)
    assert limits["ConcurrentExecutions"] == 1000
    before = settings["AccountUsage"]["FunctionCount"]
    firelet.lambda_.delete_function(FunctionName=function.name)
    assert firelet.lambda_.get_account_settings()["AccountUsage"]["FunctionCount"] == before - 1


def test_an_operation_that_is_not_there_yet_says_so(firelet):
    function = firelet.deploy(ECHO)
    status, code, message = refusal(firelet.lambda_.invoke_with_response_stream, FunctionName=function.name)
    assert (status, code) == (501, "NotImplementedException")
    assert "InvokeWithResponseStream" in message
    status, code, message = refusal(firelet.lambda_.invoke, FunctionName=function.name, InvocationType="Event")
    assert (status, code) == (501, "NotImplementedException")


def test_provisioned_environments_are_initialized_before_the_first_invocation(firelet):
    function = firelet.deploy(
        "import os\ndef handler(event, context): return os.environ['AWS_LAMBDA_INITIALIZATION_TYPE']\n"
    )
    firelet.lambda_.publish_version(FunctionName=function.name)
    where = {"FunctionName": function.name, "Qualifier": "1"}
    asked = firelet.lambda_.put_provisioned_concurrency_config(**where, ProvisionedConcurrentExecutions=2)
    assert asked["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert (asked["Status"], asked["AllocatedProvisionedConcurrentExecutions"]) == ("IN_PROGRESS", 0)

    def ready():
        found = firelet.lambda_.get_provisioned_concurrency_config(**where)
        return found["Status"] == "READY" and found

    assert eventually(ready)["AvailableProvisionedConcurrentExecutions"] == 2
    answer = function.call(Qualifier="1")
    assert answer.ok() == "provisioned-concurrency"
    assert function() == "on-demand"

    listed = firelet.lambda_.list_provisioned_concurrency_configs(FunctionName=function.name)
    (config,) = listed["ProvisionedConcurrencyConfigs"]
    assert config["FunctionArn"].endswith(f":function:{function.name}:1")
    firelet.lambda_.delete_provisioned_concurrency_config(**where)
    status, code, _ = refusal(firelet.lambda_.get_provisioned_concurrency_config, **where)
    assert (status, code) == (404, "ProvisionedConcurrencyConfigNotFoundException")


def test_provisioned_concurrency_whose_init_fails_is_failed(firelet):
    function = firelet.deploy("raise RuntimeError('never starts')\n")
    firelet.lambda_.publish_version(FunctionName=function.name)
    where = {"FunctionName": function.name, "Qualifier": "1"}
    firelet.lambda_.put_provisioned_concurrency_config(**where, ProvisionedConcurrentExecutions=1)

    def ended():
        found = firelet.lambda_.get_provisioned_concurrency_config(**where)
        return found["Status"] != "IN_PROGRESS" and found

    found = eventually(ended)
    assert (found["Status"], found["StatusReason"]) == ("FAILED", "FUNCTION_ERROR_INIT_FAILURE")


def test_provisioned_concurrency_is_refused_for_latest(firelet):
    function = firelet.deploy(ECHO)
    found = refusal(
        firelet.lambda_.put_provisioned_concurrency_config,
        FunctionName=function.name,
        Qualifier="$LATEST",
        ProvisionedConcurrentExecutions=1,
    )
    assert found == (
        400,
        "InvalidParameterValueException",
        "Provisioned Concurrency Configs cannot be applied to unpublished function versions.",
    )


def test_packages_over_the_limits_are_refused(firelet):
    def create(package):
        settings = {"Runtime": "provided.al2023", "Handler": "h", "Role": ROLE}
        return refusal(firelet.lambda_.create_function, FunctionName="too-large", Code={"ZipFile": package}, **settings)

    # Size is judged before content.
    zipped_size = "Zipped size must be smaller than 52428800 bytes"
    assert create(bytes(52_428_801)) == (413, "RequestEntityTooLargeException", zipped_size)
    request_size = "Request must be smaller than 70167211 bytes for the CreateFunction operation"
    assert create(bytes(52_625_500)) == (413, "RequestEntityTooLargeException", request_size)
    unzipped_size = "Unzipped size must be smaller than 262144000 bytes"
    assert create(zipped({"zeros": bytes(262_144_001)})) == (400, "InvalidParameterValueException", unzipped_size)


def test_roles_and_identity_are_served_beside_lambda(firelet):
    trust = '{"Version":"2012-10-17","Statement":[]}'
    role = firelet.iam.create_role(RoleName="beside", AssumeRolePolicyDocument=trust, Description="a <b> & c")["Role"]
    assert role["Arn"] == "arn:aws:iam::000000000000:role/beside"
    assert firelet.iam.get_role(RoleName="beside")["Role"]["Description"] == "a <b> & c"
    policy = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
    firelet.iam.attach_role_policy(RoleName="beside", PolicyArn=policy)
    attached = firelet.iam.list_attached_role_policies(RoleName="beside")["AttachedPolicies"]
    assert attached == [{"PolicyName": "AWSLambdaBasicExecutionRole", "PolicyArn": policy}]
    status, code, _ = refusal(firelet.iam.delete_role, RoleName="beside")
    assert (status, code) == (409, "DeleteConflict")
    firelet.iam.detach_role_policy(RoleName="beside", PolicyArn=policy)
    firelet.iam.delete_role(RoleName="beside")
    status, code, _ = refusal(firelet.iam.get_role, RoleName="beside")
    assert (status, code) == (404, "NoSuchEntity")
    assert firelet.sts.get_caller_identity()["Account"] == "000000000000"


def test_the_account_and_region_are_settings(start_firelet):
    server = start_firelet("--account-id", "123456789012", "--region", "eu-west-1")
    function = server.deploy("import os\ndef handler(event, context): return os.environ['AWS_REGION']\n")
    assert function() == "eu-west-1"
    arn = server.lambda_.get_function(FunctionName=function.name)["Configuration"]["FunctionArn"]
    assert arn == f"arn:aws:lambda:eu-west-1:123456789012:function:{function.name}"
    status, code, message = refusal(
        server.lambda_.get_function, FunctionName=arn.replace("eu-west-1", "ap-southeast-1")
    )
    assert (status, code) == (404, "ResourceNotFoundException")
    assert message == "Functions from 'ap-southeast-1' are not reachable in this region ('eu-west-1')"

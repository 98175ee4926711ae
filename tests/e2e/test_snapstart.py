"""SnapStart through the API, on a host whose sandboxes cannot be kept in snapshots: versions are initialized when they are
published, which finds out whether they can be, and then as any others. What is restored is checked in the lab."""

import json
import re

import pytest
from server import ROLE, eventually, zipped

SNAP_START = {"ApplyOn": "PublishedVersions"}

# Initializes slowly, and says what for and what it finds.
CODE = """
import json, os, time, urllib.request

KIND = os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"]
print("initialized as", KIND)
if KIND == "snap-start":
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    print("keys among the variables:", sorted(set(names) & set(os.environ)))
    ask = urllib.request.Request(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
    ask.add_header("Authorization", os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"])
    print("credentials:", json.dumps(sorted(json.load(urllib.request.urlopen(ask)))))
    time.sleep(float(os.environ.get("SECONDS_TO_PUBLISH", "0")))

def handler(event, context):
    return {"kind": KIND, "keys": "AWS_ACCESS_KEY_ID" in os.environ, "version": context.function_version}
"""

FAILING = """
import os
if os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"] == "snap-start":
    raise RuntimeError("no snapshot of me")
def handler(event, context):
    return 1
"""

HOOKED = """
from snapshot_restore_py import register_before_snapshot

@register_before_snapshot
def put_away():
    print("put away")

def handler(event, context):
    return "hooked"
"""


def version(server, function, qualifier="1"):
    return server.lambda_.get_function_configuration(FunctionName=function.name, Qualifier=qualifier)


def settled(server, function, qualifier="1"):
    """The version, as it is when it is no longer pending."""

    def found():
        shown = version(server, function, qualifier)
        return shown["State"] != "Pending" and shown

    return eventually(found, what=f"{function.name}:{qualifier} out of Pending")


def test_a_published_version_is_pending_while_it_is_initialized(firelet):
    function = firelet.deploy(CODE, SnapStart=SNAP_START, variables={"SECONDS_TO_PUBLISH": "1.5"})
    published = firelet.lambda_.publish_version(FunctionName=function.name)
    assert (published["Version"], published["State"], published["StateReasonCode"]) == ("1", "Pending", "Creating")
    assert published["StateReason"] == "The function is being created."
    assert published["SnapStart"] == {"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}
    with pytest.raises(firelet.lambda_.exceptions.SnapStartNotReadyException) as refused:
        function.call(Qualifier="1")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 409
    # What is unpublished is neither, and changes nothing of the version.
    assert function()["kind"] == "on-demand"
    firelet.lambda_.get_waiter("published_version_active").wait(
        FunctionName=function.name, Qualifier="1", WaiterConfig={"Delay": 0.1}
    )
    active = version(firelet, function)
    assert (active["State"], active["LastUpdateStatus"]) == ("Active", "Successful")
    assert active["RevisionId"] != published["RevisionId"]
    # Not On: these sandboxes share a kernel, and nothing was kept.
    assert active["SnapStart"]["OptimizationStatus"] == "Off"
    assert function(Qualifier="1") == {"kind": "on-demand", "keys": True, "version": "1"}
    function.wait_for_log(r"^INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: snap-start\n$")
    said = [message.strip() for message in function.log_messages()]
    assert "initialized as snap-start" in said and said.count("initialized as snap-start") == 1, said
    assert "keys among the variables: []" in said, said
    assert 'credentials: ["AccessKeyId", "Expiration", "SecretAccessKey", "Token"]' in said, said
    assert "SnapStart: sandboxes that share the host's kernel cannot be kept" in firelet.log()


def test_a_version_that_cannot_be_initialized_has_failed_with_its_reason(firelet):
    function = firelet.deploy(FAILING, SnapStart=SNAP_START)
    firelet.lambda_.publish_version(FunctionName=function.name)
    failed = settled(firelet, function)
    assert (failed["State"], failed["StateReasonCode"]) == ("Failed", "FunctionError.RuntimeInitError")
    assert failed["StateReason"] == "Runtime.Unknown: no snapshot of me" or "no snapshot of me" in failed["StateReason"]
    with pytest.raises(firelet.lambda_.exceptions.ResourceConflictException, match="no snapshot of me"):
        function.call(Qualifier="1")
    assert function() == 1
    function.wait_for_log(r"^INIT_REPORT .*\tPhase: snap-start\tStatus: error\tError Type: \S+\n$")


def test_hooks_before_the_snapshot_run_and_their_failure_is_the_versions(firelet):
    function = firelet.deploy(HOOKED, SnapStart=SNAP_START)
    firelet.lambda_.publish_version(FunctionName=function.name)
    assert settled(firelet, function)["State"] == "Active"
    function.wait_for_log("^put away")
    assert function(Qualifier="1") == "hooked"
    assert sum(message.startswith("put away") for message in function.log_messages()) == 1

    broken = firelet.deploy(HOOKED.replace('print("put away")', 'raise OSError("nowhere to put it")'), SnapStart=SNAP_START)
    firelet.lambda_.publish_version(FunctionName=broken.name)
    failed = settled(firelet, broken)
    assert failed["State"] == "Failed" and "nowhere to put it" in failed["StateReason"], failed
    assert failed["StateReason"].startswith("Runtime.BeforeSnapshotError"), failed


def test_versions_that_are_published_with_a_change_are_initialized_too(firelet):
    function = firelet.deploy(CODE, SnapStart=SNAP_START, Publish=True)
    assert settled(firelet, function)["State"] == "Active"
    code = zipped({"app.py": CODE + "\n# changed\n"})
    updated = firelet.lambda_.update_function_code(FunctionName=function.name, ZipFile=code, Publish=True)
    assert (updated["Version"], updated["State"]) == ("2", "Pending")
    assert settled(firelet, function, "2")["State"] == "Active"
    assert function(Qualifier="2")["version"] == "2"

    def initialized():
        return sum(message.startswith("initialized as snap-start") for message in function.log_messages()) == 2

    eventually(initialized, what="one initialization for each version")


def test_a_version_goes_on_being_prepared_by_the_next_server(start_firelet):
    first = start_firelet()
    function = first.deploy(CODE, name="restarted", SnapStart=SNAP_START, variables={"SECONDS_TO_PUBLISH": "6"})
    first.lambda_.publish_version(FunctionName=function.name)
    function.wait_for_log("^initialized as snap-start")
    first.close()
    second = start_firelet(data_dir=first.data_dir)
    again = second.lambda_.get_function_configuration(FunctionName=function.name, Qualifier="1")
    assert again["State"] in ("Pending", "Active"), again
    assert settled(second, function)["State"] == "Active"


def test_snap_start_is_refused_where_it_cannot_be(firelet):
    def refused(**settings):
        request = {"Runtime": "python3.12", "Handler": "app.handler", "Role": ROLE, "Code": {"ZipFile": zipped({"app.py": CODE})}}
        with pytest.raises(firelet.lambda_.exceptions.InvalidParameterValueException) as error:
            firelet.lambda_.create_function(FunctionName="refused", SnapStart=SNAP_START, **(request | settings))
        return error.value.response["Error"]["Message"]

    assert refused(Runtime="python3.11") == "python3.11 is not supported for SnapStart enabled functions."
    assert "EphemeralStorage" in refused(EphemeralStorage={"Size": 1024})
    function = firelet.deploy(CODE, SnapStart=SNAP_START, Publish=True)
    settled(firelet, function)
    with pytest.raises(firelet.lambda_.exceptions.InvalidParameterValueException) as error:
        firelet.lambda_.put_provisioned_concurrency_config(
            FunctionName=function.name, Qualifier="1", ProvisionedConcurrentExecutions=1
        )
    text = "Provisioned Concurrency is not supported for SnapStart enabled functions."
    assert error.value.response["Error"]["Message"] == text


def test_a_custom_runtime_may_have_hooks_of_its_own(firelet):
    bootstrap = """#!/bin/sh
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime"
if [ "$AWS_LAMBDA_INITIALIZATION_TYPE" = snap-start ]; then
    echo "waits for its restore"
    curl -s "$api/restore/next"
fi
while true; do
    id=$(curl -sD - -o /tmp/event "$api/invocation/next" | tr -d '\\r' | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //Ip')
    curl -s -X POST --data-binary @/tmp/event "$api/invocation/$id/response" > /dev/null
done
"""
    function = firelet.deploy({"bootstrap": bootstrap}, runtime="provided.al2023", handler="any", SnapStart=SNAP_START)
    firelet.lambda_.publish_version(FunctionName=function.name)
    assert settled(firelet, function)["State"] == "Active"
    assert function({"a": 1}, Qualifier="1") == {"a": 1}
    function.wait_for_log("^waits for its restore")
    assert not any(re.search("RESTORE_START", message) for message in function.log_messages())
    assert json.dumps(version(firelet, function)["SnapStart"]) == '{"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}'

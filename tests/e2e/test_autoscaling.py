"""Provisioned concurrency that scales by schedule, and that stays what it shall be whatever becomes of its environments."""

import datetime
import json
import os
import re
import signal
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from server import REGION, Function, eventually
from test_auth import Guarded, assume, deploy, make_role, refused

TYPE = (
    "import os, subprocess, sys, time\n"
    "time.sleep(float(os.environ.get('INIT_SECONDS', 0)))\n"
    "def handler(event, context):\n"
    "    time.sleep(event.get('seconds', 0))\n"
    "    if 'marker' in event: subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(999)', event['marker'], '.'])\n"
    "    return os.environ['AWS_LAMBDA_INITIALIZATION_TYPE'], os.environ['AWS_LAMBDA_LOG_STREAM_NAME']\n"
)
DIMENSION = "lambda:function:ProvisionedConcurrency"
TRACKING = {
    "TargetValue": 0.7,
    "PredefinedMetricSpecification": {"PredefinedMetricType": "LambdaProvisionedConcurrencyUtilization"},
}


def scaling_of(server):
    session = boto3.Session("test", "test", region_name=REGION)
    return session.client(
        "application-autoscaling", endpoint_url=server.url, config=Config(retries={"total_max_attempts": 1})
    )


def place(function, qualifier="live"):
    resource = f"function:{function.name}:{qualifier}"
    return {"ServiceNamespace": "lambda", "ResourceId": resource, "ScalableDimension": DIMENSION}


def released(server, **settings):
    """A function with version 1 and the alias `live` on it."""
    function = server.deploy(TYPE, Publish=True, **settings)
    server.lambda_.create_alias(FunctionName=function.name, Name="live", FunctionVersion="1")
    return function


def second_version(server, function, **settings):
    server.lambda_.update_function_configuration(FunctionName=function.name, Description="two", **settings)
    server.lambda_.get_waiter("function_updated_v2").wait(FunctionName=function.name, WaiterConfig={"Delay": 0.05})
    version = server.lambda_.publish_version(FunctionName=function.name)["Version"]
    server.lambda_.get_waiter("published_version_active").wait(
        FunctionName=f"{function.name}:{version}", WaiterConfig={"Delay": 0.05}
    )
    return version


def provisioned(server, function, count, qualifier="live", seconds=30):
    """Waits until so many environments are ready; returns the setting."""

    def ready():
        try:
            found = server.lambda_.get_provisioned_concurrency_config(FunctionName=function.name, Qualifier=qualifier)
        except server.lambda_.exceptions.ProvisionedConcurrencyConfigNotFoundException:
            return count == 0
        shown = (found["Status"], found["RequestedProvisionedConcurrentExecutions"])
        return shown == ("READY", count) and found["AllocatedProvisionedConcurrentExecutions"] == count and found

    return eventually(ready, seconds, f"{count} environments of {function.name}")


def provide(server, function, count, qualifier="live"):
    server.lambda_.put_provisioned_concurrency_config(
        FunctionName=function.name, Qualifier=qualifier, ProvisionedConcurrentExecutions=count
    )
    return provisioned(server, function, count, qualifier)


def test_a_target_keeps_its_bounds_and_a_schedule_moves_them(start_firelet):
    server = start_firelet()
    function, scaling = released(server), scaling_of(server)
    where = place(function)
    arn = scaling.register_scalable_target(**where, MinCapacity=1, MaxCapacity=4, Tags={"team": "a"})["ScalableTargetARN"]
    provisioned(server, function, 1)
    assert function.call(Qualifier="live").ok()[0] == "provisioned-concurrency"

    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=4)
    scaling.put_scheduled_action(
        **where,
        ScheduledActionName="up",
        Schedule=f"at({soon:%Y-%m-%dT%H:%M:%S})",
        ScalableTargetAction={"MinCapacity": 3},
    )
    scaling.put_scaling_policy(
        **where, PolicyName="hold", PolicyType="TargetTrackingScaling", TargetTrackingScalingPolicyConfiguration=TRACKING
    )
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="lambda")["ScalableTargets"]
    assert (target["ScalableTargetARN"], target["MinCapacity"], target["MaxCapacity"]) == (arn, 1, 4)
    provisioned(server, function, 3)

    def told():
        pages = scaling.get_paginator("describe_scaling_activities").paginate(
            ServiceNamespace="lambda", ResourceId=where["ResourceId"], PaginationConfig={"PageSize": 1}
        )
        found = [(one["Cause"], one["Description"], one["StatusCode"]) for page in pages for one in page["ScalingActivities"]]
        return len(found) == 3 and found[0][2] == "Successful" and found

    assert eventually(told) == [
        ("minimum capacity was set to 3", "Setting desired concurrency to 3.", "Successful"),
        ("scheduled action name up was triggered", "Setting min capacity to 3", "Successful"),
        ("minimum capacity was set to 1", "Setting desired concurrency to 1.", "Successful"),
    ]

    # All of it survives a restart, and what was carried out is not carried out again.
    server.close()
    server = start_firelet()
    scaling = scaling_of(server)
    provisioned(server, function, 3)
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="lambda")["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (3, 4)
    assert len(scaling.describe_scheduled_actions(ServiceNamespace="lambda")["ScheduledActions"]) == 1
    (policy,) = scaling.describe_scaling_policies(ServiceNamespace="lambda")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"] == TRACKING
    assert scaling.list_tags_for_resource(ResourceARN=arn)["Tags"] == {"team": "a"}
    assert len(scaling.describe_scaling_activities(ServiceNamespace="lambda")["ScalingActivities"]) == 3

    # To nothing, and away.
    scaling.register_scalable_target(**where, MinCapacity=0, MaxCapacity=0)
    provisioned(server, function, 0)
    scaling.deregister_scalable_target(**where)
    assert scaling.describe_scalable_targets(ServiceNamespace="lambda")["ScalableTargets"] == []
    assert scaling.describe_scaling_policies(ServiceNamespace="lambda")["ScalingPolicies"] == []


def test_the_aws_cli_scales(firelet):
    function = released(firelet)
    name = f"function:{function.name}:live"
    where = ("--service-namespace", "lambda", "--resource-id", name, "--scalable-dimension", DIMENSION)

    def cli(operation, *arguments):
        return firelet.aws("application-autoscaling", operation, *arguments)

    cli("register-scalable-target", *where, "--min-capacity", "0", "--max-capacity", "5")
    (target,) = cli("describe-scalable-targets", "--service-namespace", "lambda", "--resource-ids", name)["ScalableTargets"]
    assert target["RoleARN"].endswith("/AWSServiceRoleForApplicationAutoScaling_LambdaConcurrency")
    every = ("--schedule", "cron(0 8 ? * MON-FRI *)", "--timezone", "Europe/Berlin", "--start-time", "2030-01-01T00:00:00")
    cli(
        *("put-scheduled-action", *where, "--scheduled-action-name", "morning", *every),
        *("--scalable-target-action", "MinCapacity=2,MaxCapacity=5"),
    )
    (action,) = cli("describe-scheduled-actions", "--service-namespace", "lambda", "--resource-id", name)["ScheduledActions"]
    assert (action["Schedule"], action["Timezone"]) == ("cron(0 8 ? * MON-FRI *)", "Europe/Berlin")
    assert action["ScalableTargetAction"] == {"MinCapacity": 2, "MaxCapacity": 5}
    assert action["StartTime"] == 1893456000.0
    put = cli(
        *("put-scaling-policy", *where, "--policy-name", "hold", "--policy-type", "TargetTrackingScaling"),
        *("--target-tracking-scaling-policy-configuration", json.dumps(TRACKING)),
    )
    assert [alarm["AlarmName"].rsplit("-", 5)[0] for alarm in put["Alarms"]] == [
        f"TargetTracking-{name}-AlarmHigh",
        f"TargetTracking-{name}-AlarmLow",
    ]
    (policy,) = cli("describe-scaling-policies", "--service-namespace", "lambda", "--resource-id", name)["ScalingPolicies"]
    assert policy["PolicyARN"] == put["PolicyARN"]
    assert cli("describe-scaling-activities", "--service-namespace", "lambda", "--resource-id", name) == {"ScalingActivities": []}
    cli("delete-scaling-policy", *where, "--policy-name", "hold")
    cli("delete-scheduled-action", *where, "--scheduled-action-name", "morning")
    cli("deregister-scalable-target", *where)
    with pytest.raises(ClientError) as error:
        scaling_of(firelet).deregister_scalable_target(**place(function))
    assert error.value.response["Error"]["Code"] == "ObjectNotFoundException"


def sandbox_of(server, marker):
    """The first process of the sandbox in which a process has `marker` among its arguments."""

    def read(pid, name):
        try:
            return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
        except OSError:
            return ""

    def space(pid):
        try:
            return os.readlink(f"/proc/{pid}/ns/pid")
        except OSError:
            return None

    pids = server.descendants()
    (marked,) = (pid for pid in pids if f"\0{marker}\0" in read(pid, "cmdline"))
    inside = (pid for pid in pids if space(pid) == space(marked))
    (first,) = (pid for pid in inside if re.search(r"^NSpid:.*\s1$", read(pid, "status"), re.M))
    return int(first)


def test_an_environment_that_ends_is_replaced(firelet, root):
    function = released(firelet)
    provide(firelet, function, 2)
    live = Function(firelet, f"{function.name}:live")

    def streams():
        """The log streams of both environments, where both are provisioned and answer."""
        answers = live.parallel(2, {"seconds": 1})
        kinds, streams = zip(*(answer.payload if not answer.error else ("broken", "") for answer in answers))
        return set(streams) if set(kinds) == {"provisioned-concurrency"} else set()

    before = streams()
    assert len(before) == 2
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    live({"marker": marker})
    os.kill(sandbox_of(firelet, marker), signal.SIGKILL)

    after = eventually(lambda: (now := streams()) != before and now, what="two environments, one of them new")
    assert len(after & before) == 1
    provisioned(firelet, function, 2)


def test_more_invocations_than_are_provided_for_spill_over(firelet):
    function = released(firelet)
    provide(firelet, function, 1)
    both = Function(firelet, f"{function.name}:live")
    kinds = sorted(answer.ok()[0] for answer in both.parallel(2, {"seconds": 2}))
    assert kinds == ["on-demand", "provisioned-concurrency"]
    assert both()[0] == "provisioned-concurrency", "what is provided comes before what happens to be there"


def test_new_environments_are_ready_before_the_old_ones_of_a_moved_alias_go(firelet):
    function = released(firelet)
    version = second_version(firelet, function, Environment={"Variables": {"INIT_SECONDS": "3"}})
    provide(firelet, function, 1)
    firelet.lambda_.update_alias(FunctionName=function.name, Name="live", FunctionVersion=version)
    started = time.monotonic()
    shown = firelet.lambda_.get_provisioned_concurrency_config(FunctionName=function.name, Qualifier="live")
    assert (shown["Status"], shown["AllocatedProvisionedConcurrentExecutions"]) == ("IN_PROGRESS", 0)
    assert function.call(Qualifier="1").ok()[0] == "provisioned-concurrency"
    assert time.monotonic() - started < 3, "this machine is too slow to tell the one from the other"
    provisioned(firelet, function, 1)
    assert function.call(Qualifier="live").ok()[0] == "provisioned-concurrency"
    eventually(lambda: function.call(Qualifier="1").ok()[0] == "on-demand", what="the end of the old environment")


def test_an_alias_moves_on_a_host_that_has_no_room_for_both(start_firelet, tmp_path):
    (tmp_path / "small.toml").write_text("max_environments = 2\n")
    server = start_firelet("--config", str(tmp_path / "small.toml"))
    function = released(server)
    version = second_version(server, function)
    provide(server, function, 2)
    server.lambda_.update_alias(FunctionName=function.name, Name="live", FunctionVersion=version)
    provisioned(server, function, 2)
    assert function.call(Qualifier="live").ok()[0] == "provisioned-concurrency"


def test_provisioned_environments_that_find_no_room_are_not_the_functions_fault(start_firelet, tmp_path):
    (tmp_path / "small.toml").write_text("max_environments = 2\n")
    server = start_firelet("--config", str(tmp_path / "small.toml"))
    function = released(server)
    where = {"FunctionName": function.name, "Qualifier": "live"}
    server.lambda_.put_provisioned_concurrency_config(**where, ProvisionedConcurrentExecutions=3)

    def failed():
        found = server.lambda_.get_provisioned_concurrency_config(**where)
        return found["Status"] == "FAILED" and found

    found = eventually(failed)
    assert (found["StatusReason"], found["AllocatedProvisionedConcurrentExecutions"]) == ("INSUFFICIENT_CAPACITY", 2)


def test_scaling_is_asked_for_with_permission(tmp_path):
    guarded = Guarded(tmp_path / "data")
    try:
        deploy(guarded, "scaled", Publish=True)
        where = {"ServiceNamespace": "lambda", "ResourceId": "function:scaled:1", "ScalableDimension": DIMENSION}
        role = make_role(guarded, "scaler", "application-autoscaling:*")
        scaling = guarded.client("application-autoscaling", assume(guarded, role))
        status, code, message = refused(scaling.register_scalable_target, **where, MinCapacity=0, MaxCapacity=1)
        assert (status, code) == (400, "AccessDeniedException")
        assert "not authorized to perform: lambda:PutProvisionedConcurrencyConfig on resource: " in message
        assert ":function:scaled:1 because" in message
        owner = guarded.client("application-autoscaling")
        arn = owner.register_scalable_target(**where, MinCapacity=0, MaxCapacity=1)["ScalableTargetARN"]
        assert scaling.describe_scalable_targets(ServiceNamespace="lambda")["ScalableTargets"][0]["ScalableTargetARN"] == arn
        other = make_role(guarded, "other", "lambda:*")
        stranger = guarded.client("application-autoscaling", assume(guarded, other))
        _, code, message = refused(stranger.deregister_scalable_target, **where)
        assert code == "AccessDeniedException"
        assert f"application-autoscaling:DeregisterScalableTarget on resource: {arn} because" in message
    finally:
        guarded.server.close()

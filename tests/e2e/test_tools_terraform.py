"""Terraform with the AWS provider, replayed through boto3: its calls in its order, for every resource that Firelet keeps.

`apply` creates or updates and then reads, as the provider does; `plan` reads everything and compares it with what the
configuration says. A difference would be drift: Terraform would want to change it again on every run.
"""

import base64
import hashlib
import json

import pytest
from botocore.exceptions import ClientError
from server import REGION, eventually, zipped

ACCOUNT = "000000000000"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
BASIC = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
PYTHON = ["python3.12"]


def code(text):
    return zipped({"app.py": f"def handler(event, context):\n    return {text!r}\n"})


def sha256(package):
    return base64.b64encode(hashlib.sha256(package).digest()).decode()


def absent(call, *kinds):
    """Whether the call says that the thing is not there: the provider's way to know that a destroy is over."""
    try:
        call()
    except ClientError as error:
        assert error.response["Error"]["Code"] in (kinds or ("ResourceNotFoundException",)), error
        return True
    return False


class Resource:
    """One resource of a configuration: `wanted` are its arguments, and `read` answers them as they are."""

    def __init__(self, server, **wanted):
        self.server, self.api, self.wanted, self.there = server, server.lambda_, wanted, False

    def apply(self, **changes):
        before, self.wanted = self.wanted, {**self.wanted, **changes}
        if self.there:
            self.update({name: value for name, value in self.wanted.items() if before.get(name) != value})
        else:
            self.create()
        self.there = True
        assert self.read() == self.wanted

    def destroy(self):
        self.delete()
        eventually(self.gone, what=f"the end of {type(self).__name__}")


class Role(Resource):
    """aws_iam_role with aws_iam_role_policy_attachment and aws_iam_role_policy."""

    def create(self):
        iam, name = self.server.iam, self.wanted["name"]
        made = iam.create_role(RoleName=name, Path="/", AssumeRolePolicyDocument=json.dumps(self.wanted["trust"]))
        self.arn = made["Role"]["Arn"]
        iam.attach_role_policy(RoleName=name, PolicyArn=self.wanted["attached"][0])
        iam.put_role_policy(RoleName=name, PolicyName="own", PolicyDocument=json.dumps(self.wanted["own"]))

    def read(self):
        iam, name = self.server.iam, self.wanted["name"]
        role = iam.get_role(RoleName=name)["Role"]
        assert iam.list_role_policies(RoleName=name)["PolicyNames"] == ["own"]
        return {
            "name": role["RoleName"],
            "trust": role["AssumeRolePolicyDocument"],
            "attached": [it["PolicyArn"] for it in iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]],
            "own": iam.get_role_policy(RoleName=name, PolicyName="own")["PolicyDocument"],
        }

    def delete(self):
        iam, name = self.server.iam, self.wanted["name"]
        iam.delete_role_policy(RoleName=name, PolicyName="own")
        iam.detach_role_policy(RoleName=name, PolicyArn=BASIC)
        iam.list_instance_profiles_for_role(RoleName=name)
        iam.delete_role(RoleName=name)

    def gone(self):
        return absent(lambda: self.server.iam.get_role(RoleName=self.wanted["name"]), "NoSuchEntity")


class LogGroup(Resource):
    """aws_cloudwatch_log_group"""

    def create(self):
        self.server.logs.create_log_group(logGroupName=self.wanted["name"])
        self.update(self.wanted)

    def update(self, changes):
        self.server.logs.put_retention_policy(logGroupName=self.wanted["name"], retentionInDays=self.wanted["days"])

    def found(self):
        groups = self.server.logs.describe_log_groups(logGroupNamePrefix=self.wanted["name"])["logGroups"]
        return [group for group in groups if group["logGroupName"] == self.wanted["name"]]

    def read(self):
        (group,) = self.found()
        self.server.logs.list_tags_for_resource(resourceArn=group["logGroupArn"])
        return {"name": group["logGroupName"], "days": group["retentionInDays"]}

    def delete(self):
        self.server.logs.delete_log_group(logGroupName=self.wanted["name"])

    def gone(self):
        return not self.found()


class LayerVersion(Resource):
    """aws_lambda_layer_version"""

    def create(self):
        answer = self.api.publish_layer_version(
            LayerName=self.wanted["name"],
            Description=self.wanted["description"],
            LicenseInfo=self.wanted["license"],
            CompatibleRuntimes=self.wanted["runtimes"],
            CompatibleArchitectures=self.wanted["architectures"],
            Content={"ZipFile": zipped({"python/shared.py": "word = 'shared'\n"})},
        )
        self.arn, self.version = answer["LayerVersionArn"], answer["Version"]

    def get(self):
        return self.api.get_layer_version(LayerName=self.wanted["name"], VersionNumber=self.version)

    def read(self):
        answer = self.get()
        assert answer["LayerVersionArn"] == self.arn and answer["Content"]["CodeSha256"]
        return {
            "name": answer["LayerArn"].split(":")[-1],
            "description": answer["Description"],
            "license": answer["LicenseInfo"],
            "runtimes": answer["CompatibleRuntimes"],
            "architectures": answer["CompatibleArchitectures"],
        }

    def delete(self):
        self.api.delete_layer_version(LayerName=self.wanted["name"], VersionNumber=self.version)

    def gone(self):
        return absent(self.get)


class LayerVersionPermission(Resource):
    """aws_lambda_layer_version_permission"""

    def named(self):
        return {"LayerName": self.wanted["layer"], "VersionNumber": self.wanted["version"]}

    def create(self):
        self.api.add_layer_version_permission(
            **self.named(),
            StatementId=self.wanted["sid"],
            Action="lambda:GetLayerVersion",
            Principal=self.wanted["principal"],
        )

    def read(self):
        (statement,) = json.loads(self.api.get_layer_version_policy(**self.named())["Policy"])["Statement"]
        assert statement["Action"] == "lambda:GetLayerVersion"
        principal = statement["Principal"]["AWS"]
        return {**self.wanted, "sid": statement["Sid"], "principal": principal.split(":")[4]}

    def delete(self):
        self.api.remove_layer_version_permission(**self.named(), StatementId=self.wanted["sid"])

    def gone(self):
        return absent(lambda: self.api.get_layer_version_policy(**self.named()))


class Function(Resource):
    """aws_lambda_function with `publish = true`"""

    CONFIGURATION = ("role", "handler", "runtime", "description", "memory", "timeout", "variables", "layers")

    def settings(self):
        wanted = self.wanted
        return {
            "Role": wanted["role"],
            "Handler": wanted["handler"],
            "Runtime": wanted["runtime"],
            "Description": wanted["description"],
            "MemorySize": wanted["memory"],
            "Timeout": wanted["timeout"],
            "Environment": {"Variables": wanted["variables"]},
            "Layers": wanted["layers"],
        }

    def create(self):
        name = self.wanted["name"]
        self.api.create_function(
            FunctionName=name,
            Code={"ZipFile": self.wanted["package"]},
            PackageType="Zip",
            Architectures=["x86_64"],
            EphemeralStorage={"Size": 512},
            TracingConfig={"Mode": "PassThrough"},
            Publish=True,
            Tags=self.wanted["tags"],
            **self.settings(),
        )
        self.api.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05})
        self.api.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=self.wanted["reserved"])

    def update(self, changes):
        name = self.wanted["name"]
        arn = self.api.get_function(FunctionName=name)["Configuration"]["FunctionArn"]

        def settled():
            self.api.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05})

        if "tags" in changes:
            old = self.api.list_tags(Resource=arn)["Tags"]
            self.api.untag_resource(Resource=arn, TagKeys=[key for key in old if key not in changes["tags"]])
            self.api.tag_resource(Resource=arn, Tags=changes["tags"])
        if changes.keys() & set(self.CONFIGURATION):
            self.api.update_function_configuration(FunctionName=name, **self.settings())
            settled()
        if "package" in changes:
            self.api.update_function_code(FunctionName=name, ZipFile=changes["package"], Architectures=["x86_64"])
            settled()
        if "reserved" in changes:
            self.api.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=changes["reserved"])
        if changes.keys() & {*self.CONFIGURATION, "package"}:
            self.api.publish_version(FunctionName=name)
            settled()

    def read(self):
        name, wanted = self.wanted["name"], self.wanted
        answer = self.api.get_function(FunctionName=name)
        shown = answer["Configuration"]
        pages = self.api.get_paginator("list_versions_by_function").paginate(FunctionName=name)
        self.version = [version["Version"] for page in pages for version in page["Versions"]][-1]
        # Read for every function, whether the configuration says anything of it or not.
        assert "CodeSigningConfigArn" not in self.api.get_function_code_signing_config(FunctionName=name)
        assert self.api.get_function_recursion_config(FunctionName=name)["RecursiveLoop"] == "Terminate"
        assert self.api.get_runtime_management_config(FunctionName=name)["UpdateRuntimeOn"] == "Auto"
        assert (shown["PackageType"], shown["Architectures"]) == ("Zip", ["x86_64"])
        assert (shown["EphemeralStorage"], shown["TracingConfig"]) == ({"Size": 512}, {"Mode": "PassThrough"})
        assert shown["LoggingConfig"] == {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{name}"}
        assert "VpcConfig" not in shown or not shown["VpcConfig"]["SubnetIds"]
        assert "KMSKeyArn" not in shown and "DeadLetterConfig" not in shown and "FileSystemConfigs" not in shown
        return {
            "name": shown["FunctionName"],
            "role": shown["Role"],
            "handler": shown["Handler"],
            "runtime": shown["Runtime"],
            "description": shown["Description"],
            "memory": shown["MemorySize"],
            "timeout": shown["Timeout"],
            "variables": shown["Environment"]["Variables"],
            "layers": [layer["Arn"] for layer in shown.get("Layers", [])],
            "package": wanted["package"] if shown["CodeSha256"] == sha256(wanted["package"]) else shown["CodeSha256"],
            "tags": answer["Tags"],
            "reserved": answer["Concurrency"]["ReservedConcurrentExecutions"],
        }

    def delete(self):
        self.api.delete_function(FunctionName=self.wanted["name"])

    def gone(self):
        return absent(lambda: self.api.get_function(FunctionName=self.wanted["name"]))


class Alias(Resource):
    """aws_lambda_alias"""

    def arguments(self):
        return {
            "FunctionName": self.wanted["function"],
            "Name": self.wanted["name"],
            "FunctionVersion": self.wanted["version"],
            "Description": self.wanted["description"],
            "RoutingConfig": {"AdditionalVersionWeights": self.wanted["weights"]},
        }

    def create(self):
        self.api.create_alias(**self.arguments())

    def update(self, changes):
        self.api.update_alias(**self.arguments())

    def get(self):
        return self.api.get_alias(FunctionName=self.wanted["function"], Name=self.wanted["name"])

    def read(self):
        shown = self.get()
        self.arn = shown["AliasArn"]
        return {
            "function": self.arn.split(":")[6],
            "name": shown["Name"],
            "version": shown["FunctionVersion"],
            "description": shown["Description"],
            "weights": shown.get("RoutingConfig", {}).get("AdditionalVersionWeights", {}),
        }

    def delete(self):
        self.api.delete_alias(FunctionName=self.wanted["function"], Name=self.wanted["name"])

    def gone(self):
        return absent(self.get)


class Permission(Resource):
    """aws_lambda_permission"""

    def named(self):
        return {"FunctionName": self.wanted["function"], "Qualifier": self.wanted["qualifier"]}

    def create(self):
        self.api.add_permission(
            **self.named(),
            StatementId=self.wanted["sid"],
            Action=self.wanted["action"],
            Principal=self.wanted["principal"],
            SourceArn=self.wanted["source"],
        )

    def statements(self):
        return json.loads(self.api.get_policy(**self.named())["Policy"])["Statement"]

    def read(self):
        (statement,) = [it for it in self.statements() if it["Sid"] == self.wanted["sid"]]
        return {
            "function": statement["Resource"].split(":")[6],
            "qualifier": statement["Resource"].split(":")[7],
            "sid": statement["Sid"],
            "action": statement["Action"],
            "principal": statement["Principal"]["Service"],
            "source": statement["Condition"]["ArnLike"]["AWS:SourceArn"],
        }

    def delete(self):
        self.api.remove_permission(**self.named(), StatementId=self.wanted["sid"])

    def gone(self):
        return absent(lambda: self.statements())


class Url(Resource):
    """aws_lambda_function_url"""

    def arguments(self):
        return {
            "FunctionName": self.wanted["function"],
            "Qualifier": self.wanted["qualifier"],
            "AuthType": self.wanted["auth"],
            "InvokeMode": self.wanted["mode"],
            "Cors": self.wanted["cors"],
        }

    def create(self):
        self.api.create_function_url_config(**self.arguments())

    def update(self, changes):
        self.api.update_function_url_config(**self.arguments())

    def get(self):
        return self.api.get_function_url_config(
            FunctionName=self.wanted["function"], Qualifier=self.wanted["qualifier"]
        )

    def read(self):
        shown = self.get()
        return {
            "function": shown["FunctionArn"].split(":")[6],
            "qualifier": shown["FunctionArn"].split(":")[7],
            "auth": shown["AuthType"],
            "mode": shown["InvokeMode"],
            "cors": shown["Cors"],
        }

    def delete(self):
        self.api.delete_function_url_config(
            FunctionName=self.wanted["function"], Qualifier=self.wanted["qualifier"]
        )

    def gone(self):
        return absent(self.get)


class EventInvokeConfig(Resource):
    """aws_lambda_function_event_invoke_config"""

    def create(self):
        self.api.put_function_event_invoke_config(
            FunctionName=self.wanted["function"],
            MaximumEventAgeInSeconds=self.wanted["age"],
            MaximumRetryAttempts=self.wanted["retries"],
        )

    def update(self, changes):
        self.create()

    def get(self):
        return self.api.get_function_event_invoke_config(FunctionName=self.wanted["function"])

    def read(self):
        shown = self.get()
        return {
            "function": shown["FunctionArn"].split(":")[6],
            "age": shown["MaximumEventAgeInSeconds"],
            "retries": shown["MaximumRetryAttempts"],
        }

    def delete(self):
        self.api.delete_function_event_invoke_config(FunctionName=self.wanted["function"])

    def gone(self):
        return absent(self.get)


class Mapping(Resource):
    """aws_lambda_event_source_mapping"""

    def settings(self):
        return {
            "BatchSize": self.wanted["batch"],
            "MaximumBatchingWindowInSeconds": self.wanted["window"],
            "Enabled": self.wanted["enabled"],
            "FilterCriteria": {"Filters": [{"Pattern": pattern} for pattern in self.wanted["filters"]]},
        }

    def settled(self):
        state = "Enabled" if self.wanted["enabled"] else "Disabled"
        eventually(lambda: self.get()["State"] == state, what=f"the mapping's state {state}")

    def create(self):
        made = self.api.create_event_source_mapping(
            FunctionName=self.wanted["function"], EventSourceArn=self.wanted["source"], **self.settings()
        )
        self.uuid = made["UUID"]
        self.settled()

    def update(self, changes):
        self.api.update_event_source_mapping(
            UUID=self.uuid, FunctionName=self.wanted["function"], **self.settings()
        )
        self.settled()

    def get(self):
        return self.api.get_event_source_mapping(UUID=self.uuid)

    def read(self):
        shown = self.get()
        return {
            "function": shown["FunctionArn"],
            "source": shown["EventSourceArn"],
            "batch": shown["BatchSize"],
            "window": shown["MaximumBatchingWindowInSeconds"],
            "enabled": shown["State"] == "Enabled",
            "filters": [it["Pattern"] for it in shown.get("FilterCriteria", {}).get("Filters", [])],
        }

    def delete(self):
        self.api.delete_event_source_mapping(UUID=self.uuid)

    def gone(self):
        return absent(self.get)


class Provisioned(Resource):
    """aws_lambda_provisioned_concurrency_config"""

    def named(self):
        return {"FunctionName": self.wanted["function"], "Qualifier": self.wanted["qualifier"]}

    def get(self):
        return self.api.get_provisioned_concurrency_config(**self.named())

    def create(self):
        self.api.put_provisioned_concurrency_config(
            **self.named(), ProvisionedConcurrentExecutions=self.wanted["count"]
        )
        eventually(lambda: self.get()["Status"] == "READY", what="provisioned concurrency")

    def update(self, changes):
        self.create()

    def read(self):
        return {**self.wanted, "count": self.get()["RequestedProvisionedConcurrentExecutions"]}

    def delete(self):
        self.api.delete_provisioned_concurrency_config(**self.named())

    def gone(self):
        return absent(self.get, "ProvisionedConcurrencyConfigNotFoundException")


class State:
    """The resources of a configuration, in the order in which they need each other."""

    def __init__(self, server):
        self.server, self.resources = server, []

    def add(self, kind, **wanted):
        self.resources.append(kind(self.server, **wanted))
        self.resources[-1].apply()
        return self.resources[-1]

    def plan(self):
        """What `terraform plan` would want to change."""
        shown = [(type(resource).__name__, resource.read(), resource.wanted) for resource in self.resources]
        return [(kind, found, wanted) for kind, found, wanted in shown if found != wanted]

    def destroy(self):
        for resource in reversed(self.resources):
            resource.destroy()


@pytest.fixture
def state(firelet):
    return State(firelet)


def test_create_plan_update_and_destroy(state, firelet):
    role = state.add(
        Role,
        name="terraform-role",
        trust=TRUST,
        attached=[BASIC],
        own={"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sqs:*", "Resource": "*"}]},
    )
    state.add(LogGroup, name="/aws/lambda/terraform", days=14)
    layer = state.add(
        LayerVersion,
        name="terraform-layer",
        description="shared code",
        license="MIT",
        runtimes=PYTHON,
        architectures=["x86_64"],
    )
    state.add(
        LayerVersionPermission, layer="terraform-layer", version=layer.version, sid="other", principal="111122223333"
    )
    function = state.add(
        Function,
        name="terraform",
        role=role.arn,
        handler="app.handler",
        runtime="python3.12",
        description="made by terraform",
        memory=256,
        timeout=10,
        variables={"STAGE": "test"},
        layers=[layer.arn],
        package=code("first"),
        tags={"team": "one", "kept": "yes"},
        reserved=5,
    )
    assert function.version == "1"
    arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:terraform"
    alias = state.add(Alias, function="terraform", name="live", version="1", description="serving", weights={})
    state.add(
        Permission,
        function="terraform",
        qualifier="live",
        sid="bucket",
        action="lambda:InvokeFunction",
        principal="s3.amazonaws.com",
        source="arn:aws:s3:::bucket",
    )
    cors = {"AllowOrigins": ["https://example.com"], "AllowMethods": ["GET"], "MaxAge": 60}
    url = state.add(Url, function="terraform", qualifier="live", auth="AWS_IAM", mode="BUFFERED", cors=cors)
    invoke_config = state.add(EventInvokeConfig, function="terraform", age=600, retries=1)
    mapping = state.add(
        Mapping,
        function=arn,
        source=f"arn:aws:sqs:{REGION}:{ACCOUNT}:terraform",
        batch=10,
        window=0,
        enabled=True,
        filters=['{"body":{"kind":["a"]}}'],
    )
    provisioned = state.add(Provisioned, function="terraform", qualifier="live", count=1)
    assert state.plan() == []
    assert json.load(firelet.lambda_.invoke(FunctionName="terraform", Qualifier="live")["Payload"]) == "first"

    function.apply(
        package=code("second"),
        timeout=20,
        variables={"STAGE": "next"},
        tags={"squad": "two", "kept": "yes"},
        reserved=6,
        description="",
    )
    assert function.version == "2"
    alias.apply(version="2", weights={"1": 0.25})
    url.apply(auth="NONE", cors={"AllowOrigins": ["*"]})
    invoke_config.apply(age=300, retries=0)
    mapping.apply(batch=5, enabled=False, filters=['{"body":{"kind":["b"]}}'])
    assert state.plan() == []
    alias.apply(weights={})
    provisioned.apply(count=2)
    assert state.plan() == []
    assert json.load(firelet.lambda_.invoke(FunctionName="terraform", Qualifier="live")["Payload"]) == "second"

    state.destroy()
    assert firelet.lambda_.list_event_source_mappings(FunctionName="terraform")["EventSourceMappings"] == []


def test_a_change_outside_of_terraform_is_drift(state, firelet):
    """The comparison would see it: this is what keeps the test above honest."""
    role = state.add(Role, name="drift-role", trust=TRUST, attached=[BASIC], own={"Version": "2012-10-17", "Statement": []})
    state.add(
        Function,
        name="drift",
        role=role.arn,
        handler="app.handler",
        runtime="python3.12",
        description="",
        memory=128,
        timeout=3,
        variables={},
        layers=[],
        package=code("mine"),
        tags={"a": "b"},
        reserved=1,
    )
    firelet.lambda_.update_function_configuration(FunctionName="drift", Timeout=4)
    assert [kind for kind, _, _ in state.plan()] == ["Function"]
    state.destroy()

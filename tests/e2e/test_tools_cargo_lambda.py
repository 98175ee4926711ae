"""`cargo lambda deploy`, replayed through boto3: its calls in its order, first for a new function, then for one that is there."""

import json

from server import eventually, zipped

BOOTSTRAP = """#!/usr/bin/python3
import http.client, json, os
connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
while True:
    connection.request("GET", "/2018-06-01/runtime/invocation/next")
    response = connection.getresponse()
    response.read()
    request_id = response.getheader("Lambda-Runtime-Aws-Request-Id")
    connection.request("POST", f"/2018-06-01/runtime/invocation/{request_id}/response", json.dumps("WORD"))
    connection.getresponse().read()
"""
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def deploy(server, name, word):
    """What the tool does with `--enable-function-url --alias live`; answers the version that it published."""
    api, package = server.lambda_, zipped({"bootstrap": BOOTSTRAP.replace("WORD", word)})

    def settled():
        def idle():
            shown = api.get_function_configuration(FunctionName=name)
            return shown["State"] == "Active" and shown.get("LastUpdateStatus", "Successful") == "Successful"

        eventually(idle, what="the function's state")

    try:
        api.get_function(FunctionName=name)
        there = True
    except api.exceptions.ResourceNotFoundException:
        there = False
    if there:
        api.update_function_configuration(
            FunctionName=name, MemorySize=256, Timeout=5, Environment={"Variables": {"RUST_LOG": word}}
        )
        settled()
        answer = api.update_function_code(FunctionName=name, ZipFile=package, Architectures=["x86_64"], Publish=True)
    else:
        assert server.sts.get_caller_identity()["Arn"]
        role = server.iam.create_role(RoleName=f"cargo-lambda-role-{name}", AssumeRolePolicyDocument=json.dumps(TRUST))
        server.iam.attach_role_policy(
            RoleName=role["Role"]["RoleName"],
            PolicyArn="arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole",
        )
        server.iam.tag_role(RoleName=role["Role"]["RoleName"], Tags=[{"Key": "by", "Value": "cargo-lambda"}])
        answer = api.create_function(
            FunctionName=name,
            Runtime="provided.al2023",
            Handler="bootstrap",
            Role=role["Role"]["Arn"],
            Architectures=["x86_64"],
            Code={"ZipFile": package},
            Publish=True,
            TracingConfig={"Mode": "PassThrough"},
            Tags={"by": "cargo-lambda"},
        )
    settled()
    version = answer["Version"]
    try:
        api.get_alias(FunctionName=name, Name="live")
        api.update_alias(FunctionName=name, Name="live", FunctionVersion=version)
    except api.exceptions.ResourceNotFoundException:
        api.create_alias(FunctionName=name, Name="live", FunctionVersion=version)
    try:
        api.get_function_url_config(FunctionName=name, Qualifier="live")
    except api.exceptions.ResourceNotFoundException:
        api.create_function_url_config(FunctionName=name, Qualifier="live", AuthType="NONE")
        api.add_permission(
            FunctionName=name,
            Qualifier="live",
            StatementId="FunctionURLAllowPublicAccess",
            Action="lambda:InvokeFunctionUrl",
            Principal="*",
            FunctionUrlAuthType="NONE",
        )
    return version


def test_cargo_lambda_deploys_twice(firelet):
    def live():
        return json.load(firelet.lambda_.invoke(FunctionName="cargo-lambda", Qualifier="live")["Payload"])

    assert deploy(firelet, "cargo-lambda", "one") == "1"
    assert live() == "one"
    assert deploy(firelet, "cargo-lambda", "two") == "2"
    assert live() == "two"
    configuration = firelet.lambda_.get_function_configuration(FunctionName="cargo-lambda", Qualifier="live")
    assert (configuration["MemorySize"], configuration["Environment"]["Variables"]) == (256, {"RUST_LOG": "two"})
    policy = json.loads(firelet.lambda_.get_policy(FunctionName="cargo-lambda", Qualifier="live")["Policy"])
    assert [statement["Sid"] for statement in policy["Statement"]] == ["FunctionURLAllowPublicAccess"]
    firelet.lambda_.delete_function(FunctionName="cargo-lambda")

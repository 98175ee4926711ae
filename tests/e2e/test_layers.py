"""Layers: what they hold is at /opt in the function, in order, for as long as the function names them."""

import base64
import hashlib
import io
import json
import urllib.request
import zipfile

import pytest
from botocore.exceptions import ClientError
from server import eventually, runtime_directories

# An external extension: registers, then writes down each event that it is told.
WATCHER = """#!/usr/bin/python3
import http.client, json, os, sys
api = os.environ["AWS_LAMBDA_RUNTIME_API"]

def call(method, path, body=None, **headers):
    connection = http.client.HTTPConnection(api)
    connection.request(method, "/2020-01-01/extension/" + path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
    response = connection.getresponse()
    return response.headers, response.read()

headers, _ = call("POST", "register", json.dumps({"events": ["INVOKE", "SHUTDOWN"]}), Lambda_Extension_Name="watcher")
me = headers["Lambda-Extension-Identifier"]
print("watcher is here", "_HANDLER" in os.environ, flush=True)
seen = 0
while True:
    event = json.loads(call("GET", "event/next", Lambda_Extension_Identifier=me)[1])
    seen += 1
    with open("/tmp/events", "a") as file:
        file.write(event["eventType"] + " " + event.get("requestId", "") + "\\n")
    print("watcher saw", event["eventType"], flush=True)
    if event["eventType"] == "SHUTDOWN":
        sys.exit(0)
"""


def packed(files, executable=()):
    """A zip of {name: content} in which some names are executable."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0))
            info.external_attr = (0o100755 if name in executable else 0o100644) << 16
            archive.writestr(info, content)
    return out.getvalue()


def publish(firelet, name, files, executable=(), **settings):
    package = packed(files, executable)
    return firelet.lambda_.publish_layer_version(LayerName=name, Content={"ZipFile": package}, **settings)


def updated(firelet, name, **settings):
    answer = firelet.lambda_.update_function_configuration(FunctionName=name, **settings)
    firelet.lambda_.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05})
    return answer


LOOK = """
import pathlib
def handler(event, context):
    return {str(path): path.read_text() for path in sorted(pathlib.Path("/opt").rglob("*")) if path.is_file()}
"""


def test_layers_are_at_opt_and_later_ones_win(firelet):
    one = publish(firelet, "order-one", {"bin/both": "one", "only-one": "1"})
    two = publish(firelet, "order-two", {"bin/both": "two", "only-two": "2"})
    arns = [one["LayerVersionArn"], two["LayerVersionArn"]]
    function = firelet.deploy(LOOK, Layers=arns)
    assert function() == {"/opt/bin/both": "two", "/opt/only-one": "1", "/opt/only-two": "2"}
    answer = updated(firelet, function.name, Layers=arns[::-1])
    sizes = [two["Content"]["CodeSize"], one["Content"]["CodeSize"]]
    assert answer["Layers"] == [{"Arn": arn, "CodeSize": size} for arn, size in zip(arns[::-1], sizes)]
    assert function()["/opt/bin/both"] == "one"
    assert "Layers" not in updated(firelet, function.name, Layers=[])
    assert function() == {}


def test_python_imports_from_a_layer(firelet):
    layer = publish(firelet, "python-deps", {"python/deps.py": "VALUE = 'from the layer'\n"}, CompatibleRuntimes=["python3.12"])
    source = "import deps, sys\ndef handler(event, context): return [deps.VALUE, deps.__file__, sys.path[:3], sys.version_info[:2]]\n"
    function = firelet.deploy(source, Layers=[layer["LayerVersionArn"]])
    value, file, path, version = function()
    assert (value, file) == ("from the layer", "/opt/python/deps.py")
    assert path == ["/var/task", "/opt/python/lib/python%d.%d/site-packages" % tuple(version), "/opt/python"]


def test_a_layer_brings_the_bootstrap_of_a_custom_runtime(firelet):
    bootstrap = """#!/usr/bin/python3
import os, urllib.request
api = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation/"
while True:
    with urllib.request.urlopen(api + "next") as event:
        me, body = event.headers["Lambda-Runtime-Aws-Request-Id"], event.read()
    urllib.request.urlopen(urllib.request.Request(api + me + "/response", data=b'"layered ' + body + b'"', method="POST"))
"""
    layer = publish(firelet, "custom-runtime", {"bootstrap": bootstrap}, executable=["bootstrap"])
    function = firelet.deploy({"data": "x"}, runtime="provided.al2023", Layers=[layer["LayerVersionArn"]])
    assert function(7) == "layered 7"


def test_an_extension_in_a_layer_is_started_and_told_of_invocations(firelet):
    layer = publish(firelet, "watcher", {"extensions/watcher": WATCHER}, executable=["extensions/watcher"])
    source = "def handler(event, context):\n    return [context.aws_request_id, open('/tmp/events').read()]\n"
    function = firelet.deploy(source, Layers=[layer["LayerVersionArn"]])
    # The event of an invocation may reach the function before it reaches the extension, so the one before is looked at.
    first = eventually(lambda: None if (answer := function.call()).error else answer.payload, what="the extension's file")
    second = function()
    assert f"INVOKE {first[0]}\n" in second[1]
    function.wait_for_log(r"watcher is here False")
    function.wait_for_log(r"watcher saw INVOKE")
    function.wait_for_log(r"EXTENSION\tName: watcher\tState: Ready\tEvents: \[INVOKE, ?SHUTDOWN\]")
    firelet.lambda_.delete_function(FunctionName=function.name)
    function.wait_for_log(r"watcher saw SHUTDOWN")


def test_a_function_outlives_its_layer_version(firelet, start_firelet):
    server = start_firelet()
    layer = publish(server, "fleeting", {"note": "still here"})
    version = {"LayerName": "fleeting", "VersionNumber": layer["Version"]}
    function = server.deploy(LOOK, Layers=[layer["LayerVersionArn"]])
    server.lambda_.delete_layer_version(**version)
    with pytest.raises(ClientError) as refused:
        server.lambda_.get_layer_version(**version)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    assert server.lambda_.list_layers()["Layers"] == []
    # Another server finds the package in the store, and nothing unpacked in memory.
    data_dir = server.data_dir
    server.stop()
    server = start_firelet(data_dir=data_dir)
    assert server.lambda_.invoke(FunctionName=function.name)["Payload"].read() == b'{"/opt/note": "still here"}'
    # A version's number is not handed out again.
    assert publish(server, "fleeting", {"note": "new"})["Version"] == layer["Version"] + 1


def test_the_package_of_a_layer_can_be_fetched(firelet):
    package = packed({"a": "b"})
    layer = firelet.lambda_.publish_layer_version(LayerName="fetched", Content={"ZipFile": package}, Description="d")
    read = firelet.lambda_.get_layer_version_by_arn(Arn=layer["LayerVersionArn"])
    for answer in (layer, read):
        with urllib.request.urlopen(answer["Content"]["Location"]) as response:
            assert response.read() == package
    assert read["Content"]["CodeSha256"] == base64.b64encode(hashlib.sha256(package).digest()).decode()
    assert read["Description"] == "d"
    layers = firelet.lambda_.get_paginator("list_layers").paginate(PaginationConfig={"PageSize": 2})
    assert "fetched" in [layer["LayerName"] for page in layers for layer in page["Layers"]]


def test_node_requires_from_a_layer(firelet):
    if not runtime_directories():
        pytest.skip("Node.js is not installed: scripts/test installs it and sets FIRELET_TEST_NODE_MODULES")
    module = "exports.value = 'from the layer';\n"
    layer = publish(firelet, "node-deps", {"nodejs/node_modules/deps/index.js": module})
    files = {"index.js": "exports.handler = async () => [require('deps').value, require.resolve('deps')];\n"}
    function = firelet.deploy(files, runtime="nodejs20.x", handler="index.handler", Layers=[layer["LayerVersionArn"]])
    assert function() == ["from the layer", "/opt/nodejs/node_modules/deps/index.js"]

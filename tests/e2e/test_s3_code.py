"""Code from S3: by COPY and by REFERENCE, in versions, with S3's own errors; signed so that the other side accepts it."""

import io
import urllib.request
import zipfile

import pytest
from botocore.exceptions import ClientError
from elsewhere import Elsewhere
from server import ROLE, zipped

BUCKET = "packages"


def source(answer):
    return zipped({"app.py": f"def handler(event, context):\n    return {answer!r}\n"})


@pytest.fixture(scope="module")
def bucket(elsewhere):
    """A bucket that keeps versions."""
    s3 = elsewhere.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    s3.create_bucket(Bucket="no-versions")
    return s3


@pytest.fixture(scope="module")
def server(elsewhere, bucket, tmp_path_factory):
    from server import Server

    variables = {"AWS_ENDPOINT_URL_S3": elsewhere.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    server = Server(data_dir=tmp_path_factory.mktemp("s3") / "data", environment=variables)
    yield server
    server.close()


def put(bucket, key, body, name=BUCKET):
    return bucket.put_object(Bucket=name, Key=key, Body=body).get("VersionId")


def create(server, name, wait=True, **code):
    answer = server.lambda_.create_function(
        FunctionName=name, Runtime="python3.12", Handler="app.handler", Role=ROLE, Code=code
    )
    if wait:
        server.lambda_.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05})
    return answer


def refused(call, *arguments, **members):
    with pytest.raises(ClientError) as caught:
        call(*arguments, **members)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def call(server, name):
    import json

    return json.load(server.lambda_.invoke(FunctionName=name)["Payload"])


def test_a_function_is_created_and_updated_from_a_bucket(server, bucket):
    put(bucket, "dir/one two+ü.zip", source("one"))
    put(bucket, "two.zip", source("two"))
    created = create(server, "from-s3", S3Bucket=BUCKET, S3Key="dir/one two+ü.zip")
    assert created["CodeSize"] == len(source("one"))
    assert call(server, "from-s3") == "one"
    shown = server.lambda_.get_function(FunctionName="from-s3")["Code"]
    assert "ResolvedS3Object" not in shown
    assert zipfile.ZipFile(io.BytesIO(urllib.request.urlopen(shown["Location"]).read())).namelist() == ["app.py"]

    server.lambda_.update_function_code(FunctionName="from-s3", S3Bucket=BUCKET, S3Key="two.zip")
    server.lambda_.get_waiter("function_updated_v2").wait(FunctionName="from-s3", WaiterConfig={"Delay": 0.05})
    # The package was copied: its object is not needed any more.
    bucket.delete_object(Bucket=BUCKET, Key="two.zip")
    assert call(server, "from-s3") == "two"


def test_a_version_of_the_object_is_taken(server, bucket):
    first = put(bucket, "versions.zip", source("first"))
    put(bucket, "versions.zip", source("second"))
    create(server, "old-object", S3Bucket=BUCKET, S3Key="versions.zip", S3ObjectVersion=first)
    assert call(server, "old-object") == "first"
    create(server, "new-object", S3Bucket=BUCKET, S3Key="versions.zip")
    assert call(server, "new-object") == "second"


def test_a_reference_is_kept_and_shown(server, bucket):
    version = put(bucket, "reference.zip", source("here"))
    create(server, "by-reference", S3Bucket=BUCKET, S3Key="reference.zip", S3ObjectStorageMode="REFERENCE")
    resolved = {"S3Bucket": BUCKET, "S3Key": "reference.zip", "S3ObjectVersion": version}
    assert server.lambda_.get_function(FunctionName="by-reference")["Code"]["ResolvedS3Object"] == resolved
    assert call(server, "by-reference") == "here"
    server.lambda_.update_function_code(FunctionName="by-reference", ZipFile=source("sent"))
    assert "ResolvedS3Object" not in server.lambda_.get_function(FunctionName="by-reference")["Code"]

    put(bucket, "reference.zip", source("here"), name="no-versions")
    code, message = refused(
        create, server, "x", S3Bucket="no-versions", S3Key="reference.zip", S3ObjectStorageMode="REFERENCE"
    )
    assert code == "InvalidParameterValueException" and "enable versioning" in message


def test_a_layer_is_published_from_a_bucket(server, bucket):
    version = put(bucket, "layer.zip", zipped({"python/inner.py": "word = 'from the layer'\n"}))
    content = {"S3Bucket": BUCKET, "S3Key": "layer.zip", "S3ObjectStorageMode": "REFERENCE"}
    published = server.lambda_.publish_layer_version(LayerName="s3-layer", Content=content)
    resolved = {"S3Bucket": BUCKET, "S3Key": "layer.zip", "S3ObjectVersion": version}
    assert published["Content"]["ResolvedS3Object"] == resolved
    shown = server.lambda_.get_layer_version(LayerName="s3-layer", VersionNumber=published["Version"])
    assert shown["Content"]["ResolvedS3Object"] == resolved
    code = zipped({"app.py": "import inner\ndef handler(event, context):\n    return inner.word\n"})
    server.lambda_.create_function(
        FunctionName="with-s3-layer",
        Runtime="python3.12",
        Handler="app.handler",
        Role=ROLE,
        Code={"ZipFile": code},
        Layers=[published["LayerVersionArn"]],
    )
    server.lambda_.get_waiter("function_active_v2").wait(FunctionName="with-s3-layer", WaiterConfig={"Delay": 0.05})
    assert call(server, "with-s3-layer") == "from the layer"
    found = refused(server.lambda_.publish_layer_version, LayerName="x", Content={"S3Bucket": BUCKET, "S3Key": "absent"})
    assert found[1].startswith("Error occurred while GetObject. S3 Error Code: NoSuchKey.")


def test_s3_s_errors_are_told_as_recorded(server, bucket):
    put(bucket, "text.zip", b"no archive at all")
    put(bucket, "empty.zip", b"")
    cases = [
        (
            dict(S3Bucket=BUCKET, S3Key="absent.zip"),
            "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: The specified key does not exist.",
        ),
        (
            dict(S3Bucket="absent-bucket", S3Key="k"),
            "Error occurred while GetObject. S3 Error Code: NoSuchBucket. S3 Error Message: The specified bucket does not exist",
        ),
        (
            dict(S3Bucket=BUCKET, S3Key="text.zip"),
            "Could not unzip uploaded file. Please check your file, then try to upload again.",
        ),
        (dict(S3Bucket=BUCKET, S3Key="empty.zip"), "Uploaded file must be a non-empty zip"),
        (
            dict(S3Bucket=BUCKET, S3Key="text.zip", ZipFile=b"PK"),
            "Please do not provide other FunctionCode parameters when providing a ZipFile.",
        ),
    ]
    for code, message in cases:
        assert refused(create, server, "refused", **code) == ("InvalidParameterValueException", message)
    found = refused(create, server, "refused", S3Bucket=BUCKET, S3Key="absent.zip", S3ObjectVersion="nonsense")
    assert found[0] == "InvalidParameterValueException" and found[1].startswith("Error occurred while GetObject. S3 Error Code: ")


def test_a_package_larger_than_a_request_may_be_comes_from_s3(server, bucket):
    out = io.BytesIO(source("large"))
    with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr("ballast", bytes(51 << 20))
    put(bucket, "large.zip", out.getvalue())
    created = create(server, "large", S3Bucket=BUCKET, S3Key="large.zip")
    assert created["CodeSize"] > 51 << 20
    assert call(server, "large") == "large"


def test_without_an_endpoint_the_answer_says_how_to_get_one(firelet):
    code, message = refused(create, firelet, "refused", S3Bucket=BUCKET, S3Key="k")
    assert code == "InvalidParameterValueException" and "AWS_ENDPOINT_URL_S3" in message


def test_requests_are_signed_as_aws_checks_them(start_firelet, tmp_path):
    """moto, told to, computes each signature with botocore and asks the policies of the key's owner."""
    checking = Elsewhere(INITIAL_NO_AUTH_ACTION_COUNT="7")
    try:
        s3, iam = checking.client("s3"), checking.client("iam")
        s3.create_bucket(Bucket="checked")
        s3.put_object(Bucket="checked", Key="dir/a b+c=ü.zip", Body=source("signed"))
        s3.put_object(Bucket="checked", Key="secret.zip", Body=source("secret"))
        iam.create_user(UserName="reader")
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        iam.put_user_policy(
            UserName="reader",
            PolicyName="read",
            PolicyDocument='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", '
            '"Resource": "arn:aws:s3:::checked/dir/*"}]}',
        )
        iam.list_users()

        def start(secret, folder):
            config = tmp_path / f"{folder}.toml"
            config.write_text(
                f'[endpoints]\ns3 = "{checking.url}"\n[aws]\naccess_key_id = "{key["AccessKeyId"]}"\n'
                f'secret_access_key = "{secret}"\n'
            )
            return start_firelet("--config", str(config), data_dir=tmp_path / folder)

        good = start(key["SecretAccessKey"], "good")
        create(good, "signed", S3Bucket="checked", S3Key="dir/a b+c=ü.zip")
        assert call(good, "signed") == "signed"
        code, message = refused(create, good, "refused", S3Bucket="checked", S3Key="secret.zip")
        assert code == "AccessDeniedException"
        assert message.startswith("Your access has been denied by S3, please make sure your request credentials have permission")

        bad = start("not-the-secret", "bad")
        code, message = refused(create, bad, "refused", S3Bucket="checked", S3Key="dir/a b+c=ü.zip")
        assert "SignatureDoesNotMatch" in message
    finally:
        checking.close()

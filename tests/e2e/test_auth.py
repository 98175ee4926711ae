"""Who is let in with `--auth sigv4`: access keys, signatures, presigned requests, bodies in pieces, roles."""

import datetime
import hashlib
import hmac
import http.client
import json
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlsplit

import boto3
import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from server import REGION, ROLE, Server, eventually, zipped

ECHO = "def handler(event, context): return event\n"
OPTIONS = Config(retries={"total_max_attempts": 1}, parameter_validation=False, read_timeout=60)
LIST = "/2015-03-31/functions"


class Guarded:
    """A Firelet that asks for signatures, with one access key."""

    def __init__(self, data_dir, *arguments):
        self.server = Server("--auth", "sigv4", "--network", "host", *arguments, data_dir=data_dir)
        key = self.create_key("--description", "tests")
        self.credentials = Credentials(key["AccessKeyId"], key["SecretAccessKey"])

    def keys(self, *arguments):
        return self.server.firelet("keys", *arguments, "--data-dir", self.server.data_dir)

    def create_key(self, *arguments):
        made = self.keys("create", "--json", *arguments)
        assert made.returncode == 0, made.stderr
        return json.loads(made.stdout)

    def client(self, service, credentials=None, region=REGION):
        credentials = credentials or self.credentials
        session = boto3.Session(
            credentials.access_key, credentials.secret_key, credentials.token, region_name=region
        )
        return session.client(service, endpoint_url=self.server.url, config=OPTIONS)

    def send(self, request):
        """Sends a prepared AWSRequest as it is; returns (status, error type, body)."""
        place = urlsplit(request.url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        path = place.path + (f"?{place.query}" if place.query else "")
        connection.request(request.method, path, body=request.data or None, headers=dict(request.headers.items()))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.getheader("x-amzn-errortype"), body

    def sign(self, request, service="lambda", credentials=None, region=REGION):
        botocore.auth.SigV4Auth(credentials or self.credentials, service, region).add_auth(request)
        return request

    def request(self, method="GET", path=LIST, body=b"", headers=None):
        place = urlsplit(self.server.url)
        return AWSRequest(method, self.server.url + path, headers={"Host": place.netloc, **(headers or {})}, data=body)

    def with_token(self, answer):
        """The credentials of an answer of AssumeRole."""
        given = answer["Credentials"]
        return Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    guarded = Guarded(tmp_path_factory.mktemp("guarded") / "data")
    yield guarded
    guarded.server.close()


@contextmanager
def clock(minutes):
    """botocore's clock, so many minutes ahead."""
    real = botocore.auth.get_current_datetime
    botocore.auth.get_current_datetime = lambda *arguments, **named: real(*arguments, **named) + datetime.timedelta(
        minutes=minutes
    )
    try:
        yield
    finally:
        botocore.auth.get_current_datetime = real


def refused(call, *arguments, **named):
    """(status, code, message) of a call that must be refused."""
    with pytest.raises(ClientError) as error:
        call(*arguments, **named)
    response = error.value.response
    message = response.get("message") or response.get("Message") or response["Error"]["Message"]
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"], message


UNKNOWN = "The security token included in the request is invalid."
MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)


def test_a_function_is_made_and_invoked_with_an_access_key(guarded):
    lambda_ = guarded.client("lambda")
    lambda_.create_function(
        FunctionName="signed",
        Runtime="python3.12",
        Handler="app.handler",
        Role=ROLE,
        Code={"ZipFile": zipped({"app.py": ECHO, "large.bin": "0123456789abcdef" * 40_000})},
    )
    lambda_.get_waiter("function_active_v2").wait(FunctionName="signed", WaiterConfig={"Delay": 0.05})
    arn = f"arn:aws:lambda:{REGION}:000000000000:function:signed"
    for name in ("signed", arn, "signed:$LATEST"):
        answer = lambda_.invoke(FunctionName=name, Payload=b'{"a": "\xc3\xa9 +%"}', LogType="Tail")
        assert json.load(answer["Payload"]) == {"a": "é +%"}
    large = json.dumps("x" * 3_000_000).encode()
    assert lambda_.invoke(FunctionName="signed", Payload=large)["Payload"].read() == large
    logs = guarded.client("logs")
    assert logs.describe_log_groups()["logGroups"][0]["logGroupName"] == "/aws/lambda/signed"
    link = lambda_.get_function(FunctionName="signed")["Code"]["Location"]
    assert urllib.request.urlopen(link).status == 200
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(link.replace("signed", "other"))
    assert error.value.code == 403


def test_the_aws_cli_and_the_firelet_cli_sign(guarded):
    environment = {
        "AWS_ACCESS_KEY_ID": guarded.credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": guarded.credentials.secret_key,
    }
    server = guarded.server
    plain = server.firelet("functions")
    assert plain.returncode != 0 and UNKNOWN in plain.stderr
    server.environment, before = {**server.environment, **environment}, server.environment
    real = server.tool_environment
    server.tool_environment = lambda: {**real(), **environment}
    try:
        assert "Functions" in server.aws("lambda", "list-functions")
        assert server.aws("sts", "get-caller-identity")["Arn"] == "arn:aws:iam::000000000000:root"
        done = server.firelet("functions", "--json")
        assert done.returncode == 0, done.stderr
    finally:
        server.environment, server.tool_environment = before, real


def test_an_unknown_key_and_a_wrong_secret_are_refused(guarded):
    unknown = Credentials("AKIAUNKNOWN", "secret")
    wrong = Credentials(guarded.credentials.access_key, "wrong")
    token = Credentials(guarded.credentials.access_key, guarded.credentials.secret_key, "token")
    for credentials in (unknown, token):
        found = refused(guarded.client("lambda", credentials).list_functions)
        assert found == (403, "UnrecognizedClientException", UNKNOWN)
    assert refused(guarded.client("lambda", wrong).list_functions) == (403, "InvalidSignatureException", MISMATCH)
    sts, iam, logs = (guarded.client(name, wrong) for name in ("sts", "iam", "logs"))
    assert refused(sts.get_caller_identity) == (403, "SignatureDoesNotMatch", MISMATCH)
    assert refused(iam.list_roles) == (403, "SignatureDoesNotMatch", MISMATCH)
    assert refused(logs.describe_log_groups) == (400, "InvalidSignatureException", MISMATCH)
    sts = guarded.client("sts", unknown)
    assert refused(sts.get_caller_identity) == (403, "InvalidClientTokenId", UNKNOWN)
    logs = guarded.client("logs", unknown)
    assert refused(logs.describe_log_groups) == (400, "UnrecognizedClientException", UNKNOWN)


def test_requests_that_are_not_signed_are_refused(guarded):
    missing = (403, "MissingAuthenticationTokenException", b'{"message":"Missing Authentication Token"}')
    for path in (LIST, "/2015-03-31/functions/signed/invocations", "/_firelet/functions", "/metrics", "/x"):
        assert guarded.send(guarded.request(path=path)) == missing
    large = guarded.request("POST", "/2015-03-31/functions/signed/invocations", b"x" * 7_000_000)
    assert guarded.send(large) == missing
    assert guarded.send(guarded.request(path="/_firelet/health"))[0] == 200
    status, kind, body = guarded.send(guarded.request(headers={"Authorization": "Bearer x"}))
    assert (status, kind) == (403, "IncompleteSignatureException") and b"Bearer" in body
    status, kind, body = guarded.send(guarded.request("POST", "/", b"Action=ListRoles&Version=2010-05-08"))
    assert status == 403 and b"<Code>MissingAuthenticationToken</Code>" in body


@pytest.mark.parametrize(
    "minutes, beginning", [(-6, "Signature expired: "), (6, "Signature not yet current: "), (-4, None), (4, None)]
)
def test_a_clock_may_be_off_by_five_minutes(guarded, minutes, beginning):
    lambda_ = guarded.client("lambda")
    with clock(minutes):
        if beginning is None:
            lambda_.list_functions()
        else:
            status, code, message = refused(lambda_.list_functions)
            assert (status, code) == (403, "InvalidSignatureException") and message.startswith(beginning)


def test_another_region_and_another_service_are_refused(guarded):
    status, code, message = refused(guarded.client("lambda", region="eu-west-1").list_functions)
    assert (status, code) == (403, "InvalidSignatureException")
    assert message == "Credential should be scoped to a valid region, not 'eu-west-1'. "
    request = guarded.sign(guarded.request(), service="s3")
    status, kind, body = guarded.send(request)
    assert (status, kind) == (403, "InvalidSignatureException") and b"correct service: 'lambda'" in body
    form = guarded.request(
        "POST", "/", b"Action=ListRoles&Version=2010-05-08", {"Content-Type": "application/x-www-form-urlencoded"}
    )
    status, _, body = guarded.send(guarded.sign(form, service="sts"))
    assert status == 403 and b"correct service: &apos;iam&apos;" in body.replace(b"'", b"&apos;")


def test_a_changed_request_is_refused(guarded):
    request = guarded.sign(guarded.request("POST", "/2015-03-31/functions/signed/invocations", b'{"a": 1}'))
    request.data = b'{"a": 2}'
    assert guarded.send(request)[:2] == (403, "InvalidSignatureException")
    request = guarded.sign(guarded.request())
    request.headers["X-Amz-Log-Type"] = "Tail"
    assert guarded.send(request)[:2] == (403, "InvalidSignatureException")
    # With the hash of the body in the head the signature holds, the body does not.
    headers = {"X-Amz-Content-SHA256": hashlib.sha256(b"{}").hexdigest()}
    request = guarded.sign(guarded.request("POST", "/2015-03-31/functions/signed/invocations", b"{}", headers))
    assert guarded.send(request)[0] == 200
    request.data = b"[]"
    assert guarded.send(request)[:2] == (403, "InvalidSignatureException")


def test_presigned_requests_hold_for_their_time(guarded):
    def presigned(expires):
        request = guarded.request()
        botocore.auth.SigV4QueryAuth(guarded.credentials, "lambda", REGION, expires=expires).add_auth(request)
        return AWSRequest("GET", request.url, headers={"Host": urlsplit(request.url).netloc})

    status, _, body = guarded.send(presigned(60))
    assert status == 200 and b"Functions" in body
    with clock(-10):
        assert guarded.send(presigned(900))[0] == 200
        status, kind, body = guarded.send(presigned(60))
        assert (status, kind) == (403, "InvalidSignatureException") and b"Signature expired" in body
    changed = presigned(60)
    changed.url = changed.url.replace("X-Amz-Expires=60", "X-Amz-Expires=61")
    assert guarded.send(changed)[:2] == (403, "InvalidSignatureException")


def test_bodies_in_pieces_are_decoded(guarded):
    path, event = "/2015-03-31/functions/signed/invocations", b'{"text": "' + b"a" * 20_000 + b'"}'
    headers = {
        "X-Amz-Content-SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "X-Amz-Decoded-Content-Length": str(len(event)),
        "Content-Encoding": "aws-chunked",
        "X-Amz-Trailer": "x-amz-checksum-crc32",
    }
    body = b"%x\r\n%s\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n" % (len(event), event)
    status, _, answer = guarded.send(guarded.sign(guarded.request("POST", path, body, headers)))
    assert status == 200 and json.loads(answer) == json.loads(event)

    headers["X-Amz-Content-SHA256"] = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    del headers["X-Amz-Trailer"]
    request = guarded.sign(guarded.request("POST", path, b"", headers))
    moment, last = request.headers["X-Amz-Date"], request.headers["Authorization"].rsplit("=", 1)[1]
    scope = f"{moment[:8]}/{REGION}/lambda/aws4_request"
    key = ("AWS4" + guarded.credentials.secret_key).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    body = b""
    for piece in (event[:8192], event[8192:16384], event[16384:], b""):
        hashes = f"{hashlib.sha256(b'').hexdigest()}\n{hashlib.sha256(piece).hexdigest()}"
        text = f"AWS4-HMAC-SHA256-PAYLOAD\n{moment}\n{scope}\n{last}\n{hashes}"
        last = hmac.digest(key, text.encode(), "sha256").hex()
        body += b"%x;chunk-signature=%s\r\n%s\r\n" % (len(piece), last.encode(), piece)
    request.data = body
    status, _, answer = guarded.send(request)
    assert status == 200 and json.loads(answer) == json.loads(event)
    request.data = body.replace(b"aaaa", b"aaab", 1)
    assert guarded.send(request)[:2] == (403, "InvalidSignatureException")


def test_a_key_works_at_once_and_ends_when_it_is_deleted(guarded):
    key = guarded.create_key("--description", "short")
    lambda_ = guarded.client("lambda", Credentials(key["AccessKeyId"], key["SecretAccessKey"]))
    lambda_.list_functions()
    listed = guarded.keys("list")
    assert key["AccessKeyId"] in listed.stdout and "short" in listed.stdout
    assert key["SecretAccessKey"] not in listed.stdout
    assert guarded.keys("delete", key["AccessKeyId"]).returncode == 0

    def gone():
        try:
            lambda_.list_functions()
        except ClientError as error:
            return error.response["Error"]["Code"] == "UnrecognizedClientException"

    eventually(gone, what="the deleted key is refused")
    again = guarded.keys("delete", key["AccessKeyId"])
    assert again.returncode == 1 and "there is no access key" in again.stderr


def test_listening_beyond_this_machine_needs_authentication_or_a_second_word(firelet, tmp_path):
    listen = ("serve", "--listen", "0.0.0.0:0", "--dump-config", "--data-dir", tmp_path)
    done = firelet.firelet(*listen)
    assert done.returncode == 1
    assert "use --auth sigv4" in done.stderr and "--allow-unauthenticated" in done.stderr
    assert firelet.firelet(*listen, "--auth", "sigv4").returncode == 0
    assert firelet.firelet(*listen, "--allow-unauthenticated").returncode == 0


TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::000000000000:root", "Service": "lambda.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}


def allow(*actions, resource="*"):
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": resource}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def make_role(guarded, name, *actions, resource="*", trust=TRUST):
    iam = guarded.client("iam")
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    if actions:
        iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=allow(*actions, resource=resource))
    return arn


def assume(guarded, arn, name="me", **arguments):
    return guarded.with_token(guarded.client("sts").assume_role(RoleArn=arn, RoleSessionName=name, **arguments))


def deploy(guarded, name, role=ROLE, code=ECHO, **settings):
    lambda_ = guarded.client("lambda")
    package = {"ZipFile": zipped({"app.py": code})}
    lambda_.create_function(
        FunctionName=name, Runtime="python3.12", Handler="app.handler", Role=role, Code=package, Timeout=30, **settings
    )
    lambda_.get_waiter("function_active_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.05})
    return f"arn:aws:lambda:{REGION}:000000000000:function:{name}"


def test_a_role_may_do_what_its_policies_allow(guarded):
    function = deploy(guarded, "for-roles")
    arn = make_role(guarded, "invoker", "lambda:InvokeFunction", resource=[function, function + ":*"])
    session = assume(guarded, arn)
    identity = guarded.client("sts", session).get_caller_identity()
    assert identity["Arn"] == "arn:aws:sts::000000000000:assumed-role/invoker/me"
    assert identity["UserId"].startswith("AROA") and identity["UserId"].endswith(":me")
    lambda_ = guarded.client("lambda", session)
    assert json.load(lambda_.invoke(FunctionName="for-roles", Payload=b"1")["Payload"]) == 1
    status, code, message = refused(lambda_.get_function, FunctionName="for-roles")
    assert (status, code) == (403, "AccessDeniedException")
    assert message == (
        "User: arn:aws:sts::000000000000:assumed-role/invoker/me is not authorized to perform: lambda:GetFunction on "
        f"resource: {function} because no identity-based policy allows the lambda:GetFunction action"
    )
    assert refused(lambda_.list_functions)[1] == "AccessDeniedException"
    assert refused(lambda_.invoke, FunctionName="other")[1] == "AccessDeniedException"
    assert refused(guarded.client("iam", session).list_roles)[:2] == (403, "AccessDenied")
    assert refused(guarded.client("logs", session).describe_log_groups)[:2] == (400, "AccessDeniedException")
    # Firelet's own paths are the owner's.
    request = guarded.sign(guarded.request(path="/_firelet/functions"), credentials=session)
    assert guarded.send(request)[:2] == (403, "AccessDeniedException")
    # Policies that change count at once, managed ones by their name.
    iam = guarded.client("iam")
    iam.attach_role_policy(RoleName="invoker", PolicyArn="arn:aws:iam::aws:policy/AWSLambda_ReadOnlyAccess")
    assert lambda_.get_function(FunctionName="for-roles")["Configuration"]["FunctionArn"] == function
    deny = {"Effect": "Deny", "Action": "lambda:Invoke*", "Resource": "*"}
    iam.put_role_policy(RoleName="invoker", PolicyName="no", PolicyDocument=json.dumps({"Statement": deny}))
    status, code, message = refused(lambda_.invoke, FunctionName="for-roles")
    assert message.endswith("with an explicit deny in an identity-based policy")


def test_a_functions_policy_lets_a_role_in(guarded):
    function = deploy(guarded, "shared")
    session = assume(guarded, make_role(guarded, "guest"))
    lambda_ = guarded.client("lambda", session)
    assert refused(lambda_.invoke, FunctionName="shared")[1] == "AccessDeniedException"
    guarded.client("lambda").add_permission(
        FunctionName="shared",
        StatementId="guest",
        Action="lambda:InvokeFunction",
        Principal="arn:aws:iam::000000000000:role/guest",
    )
    assert json.load(lambda_.invoke(FunctionName=function, Payload=b"2")["Payload"]) == 2
    assert refused(lambda_.get_function, FunctionName="shared")[1] == "AccessDeniedException"


def test_a_role_is_assumed_by_whom_it_trusts_and_for_as_long_as_it_may(guarded):
    sts = guarded.client("sts")
    only_lambda = {"Statement": {**TRUST["Statement"][0], "Principal": {"Service": "lambda.amazonaws.com"}}}
    closed = make_role(guarded, "closed", trust=only_lambda)
    for arn in (closed, "arn:aws:iam::000000000000:role/absent"):
        status, code, message = refused(sts.assume_role, RoleArn=arn, RoleSessionName="me")
        assert (status, code) == (403, "AccessDenied")
        assert message == (
            "User: arn:aws:iam::000000000000:root is not authorized to perform: sts:AssumeRole on resource: " + arn
        )
    opened = make_role(guarded, "opened", "lambda:*")
    found = refused(sts.assume_role, RoleArn=opened, RoleSessionName="me", DurationSeconds=3_601)
    assert found[1:] == (
        "ValidationError",
        "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
    )
    assert refused(sts.assume_role, RoleArn=opened, RoleSessionName="a b")[1] == "ValidationError"
    narrow = assume(guarded, opened, Policy=allow("lambda:ListFunctions"))
    lambda_ = guarded.client("lambda", narrow)
    lambda_.list_functions()
    assert "no session policy allows" in refused(lambda_.get_account_settings)[2]
    # From one role into another: both have to agree.
    inner = make_role(guarded, "inner")
    wide, none = assume(guarded, opened), assume(guarded, inner)
    assert refused(guarded.client("sts", wide).assume_role, RoleArn=inner, RoleSessionName="me")[1] == "AccessDenied"
    guarded.client("iam").put_role_policy(
        RoleName="opened", PolicyName="assume", PolicyDocument=allow("sts:AssumeRole", resource=inner)
    )
    guarded.client("sts", wide).assume_role(RoleArn=inner, RoleSessionName="me")
    # A role that is gone lets nobody in, nor does a token with other credentials.
    iam = guarded.client("iam")
    iam.delete_role(RoleName="inner")
    assert refused(guarded.client("sts", none).get_caller_identity)[:2] == (403, "InvalidClientTokenId")
    mixed = Credentials(narrow.access_key, narrow.secret_key, wide.token)
    assert refused(guarded.client("lambda", mixed).list_functions)[1] == "UnrecognizedClientException"


def test_a_role_passes_only_roles_that_it_may(guarded):
    passed = make_role(guarded, "passed")
    maker = assume(guarded, make_role(guarded, "maker", "lambda:*"))
    lambda_ = guarded.client("lambda", maker)
    arguments = {
        "FunctionName": "made-by-a-role",
        "Runtime": "python3.12",
        "Handler": "app.handler",
        "Role": passed,
        "Code": {"ZipFile": zipped({"app.py": ECHO})},
    }
    status, code, message = refused(lambda_.create_function, **arguments)
    assert (status, code) == (403, "AccessDeniedException") and f"iam:PassRole on resource: {passed} because" in message
    condition = {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}
    statement = {"Effect": "Allow", "Action": "iam:PassRole", "Resource": passed, "Condition": condition}
    iam = guarded.client("iam")
    iam.put_role_policy(RoleName="maker", PolicyName="pass", PolicyDocument=json.dumps({"Statement": [statement]}))
    assert lambda_.create_function(**arguments)["Role"] == passed
    by_people = {"Statement": {**TRUST["Statement"][0], "Principal": {"AWS": "arn:aws:iam::000000000000:root"}}}
    untrusting = make_role(guarded, "untrusting", trust=by_people)
    found = refused(guarded.client("lambda").update_function_configuration, FunctionName="made-by-a-role", Role=untrusting)
    assert found == (
        400,
        "InvalidParameterValueException",
        "The role defined for the function cannot be assumed by Lambda.",
    )


CALLS = """
import datetime, hashlib, hmac, http.client, os, urllib.parse

def handler(event, context):
    \"\"\"Signs a request with the function's own credentials.\"\"\"
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    service, body = event["service"], event["body"].encode()
    scope = f"{now[:8]}/us-east-1/{service}/aws4_request"
    headers = {"host": event["host"], "x-amz-date": now, "x-amz-security-token": os.environ["AWS_SESSION_TOKEN"]}
    named = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\\n" for name in sorted(headers))
    canonical = f"POST\\n{event['path']}\\n\\n{lines}\\n{named}\\n{hashlib.sha256(body).hexdigest()}"
    text = f"AWS4-HMAC-SHA256\\n{now}\\n{scope}\\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"]).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={os.environ['AWS_ACCESS_KEY_ID']}/{scope}, SignedHeaders={named}, "
        f"Signature={signature}"
    )
    connection = http.client.HTTPConnection(event["host"])
    connection.request("POST", event["path"], body, headers)
    answer = connection.getresponse()
    return {"status": answer.status, "body": answer.read().decode()}
"""


def test_a_function_calls_as_its_role(guarded):
    role = make_role(guarded, "caller")
    deploy(guarded, "callee")
    deploy(guarded, "caller", role=role, code=CALLS)
    lambda_, host = guarded.client("lambda"), urlsplit(guarded.server.url).netloc

    def call(service, path, body):
        event = {"service": service, "path": path, "body": body, "host": host}
        answer = lambda_.invoke(FunctionName="caller", Payload=json.dumps(event))
        payload = json.load(answer["Payload"])
        assert "FunctionError" not in answer, payload
        return payload["status"], payload["body"]

    status, body = call("sts", "/", "Action=GetCallerIdentity&Version=2011-06-15")
    assert status == 200 and "<Arn>arn:aws:sts::000000000000:assumed-role/caller/caller</Arn>" in body
    path = "/2015-03-31/functions/callee/invocations"
    status, body = call("lambda", path, '{"from": "caller"}')
    assert status == 403 and "assumed-role/caller/caller is not authorized to perform: lambda:InvokeFunction" in body
    guarded.client("iam").attach_role_policy(
        RoleName="caller", PolicyArn="arn:aws:iam::aws:policy/service-role/AWSLambdaRole"
    )
    assert call("lambda", path, '{"from": "caller"}') == (200, '{"from": "caller"}')


def test_managed_policies_have_versions(guarded):
    iam = guarded.client("iam")
    made = iam.create_policy(PolicyName="deploys", PolicyDocument=allow("lambda:List*"), Description="d")["Policy"]
    arn = made["Arn"]
    assert arn == "arn:aws:iam::000000000000:policy/deploys"
    assert (made["DefaultVersionId"], made["AttachmentCount"]) == ("v1", 0)
    assert refused(iam.create_policy, PolicyName="deploys", PolicyDocument=allow("*"))[1] == "EntityAlreadyExists"
    session = assume(guarded, make_role(guarded, "versioned"))
    lambda_ = guarded.client("lambda", session)
    assert refused(lambda_.list_functions)[1] == "AccessDeniedException"
    iam.attach_role_policy(RoleName="versioned", PolicyArn=arn)
    lambda_.list_functions()
    second = iam.create_policy_version(PolicyArn=arn, PolicyDocument=allow("lambda:Get*"), SetAsDefault=True)
    assert second["PolicyVersion"]["VersionId"] == "v2"
    assert refused(lambda_.list_functions)[1] == "AccessDeniedException"
    versions = iam.list_policy_versions(PolicyArn=arn)["Versions"]
    assert [(version["VersionId"], version["IsDefaultVersion"]) for version in versions] == [("v2", True), ("v1", False)]
    document = iam.get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
    assert document["Statement"][0]["Action"] == ["lambda:List*"]
    assert iam.get_policy(PolicyArn=arn)["Policy"]["AttachmentCount"] == 1
    assert iam.list_attached_role_policies(RoleName="versioned")["AttachedPolicies"] == [
        {"PolicyName": "deploys", "PolicyArn": arn}
    ]
    assert iam.list_entities_for_policy(PolicyArn=arn)["PolicyRoles"][0]["RoleName"] == "versioned"
    assert refused(iam.delete_policy, PolicyArn=arn)[1] == "DeleteConflict"
    iam.detach_role_policy(RoleName="versioned", PolicyArn=arn)
    iam.delete_policy_version(PolicyArn=arn, VersionId="v1")
    iam.delete_policy(PolicyArn=arn)
    assert refused(iam.get_policy, PolicyArn=arn)[1] == "NoSuchEntity"
    aws = iam.get_policy(PolicyArn="arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole")["Policy"]
    assert aws["PolicyName"] == "AWSLambdaBasicExecutionRole" and aws["Path"] == "/service-role/"
    found = refused(iam.put_role_policy, RoleName="versioned", PolicyName="p", PolicyDocument=allow("*")[:-1])
    assert found[1:] == ("MalformedPolicyDocument", "This policy contains invalid Json")


def test_keys_and_sessions_survive_a_restart(start_firelet, tmp_path):
    first = Guarded(tmp_path / "data")
    arn = make_role(first, "r", "lambda:ListFunctions")
    session = assume(first, arn, DurationSeconds=900)
    first.client("lambda", session).list_functions()
    first.server.close()
    again = start_firelet("--auth", "sigv4", "--network", "host", data_dir=tmp_path / "data")
    first.server = again
    first.client("lambda", session).list_functions()
    first.client("lambda").list_functions()

"""Services that are kept elsewhere: IAM, STS and Logs give way to their endpoints, and what functions log is written there too."""

import contextlib
import datetime
import ipaddress
import json
import re
import socket
import threading
import urllib.request

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from elsewhere import Elsewhere
from server import REGION, eventually

HELLO = "def handler(event, context):\n    print('said', event.get('word'))\n    return 1\n"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def side_services(url):
    return {
        "AWS_ENDPOINT_URL_IAM": url,
        "AWS_ENDPOINT_URL_STS": url,
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": url,
    }


def refused(call, **members):
    with pytest.raises(ClientError) as caught:
        call(**members)
    return caught.value.response


def messages(logs, group):
    try:
        return [event["message"] for event in logs.filter_log_events(logGroupName=group)["events"]]
    except logs.exceptions.ResourceNotFoundException:
        return []


@pytest.mark.parametrize("credentials", [KEYS, {}], ids=["signed anew", "with the caller's signature"])
def test_iam_and_sts_are_answered_by_their_endpoint(start_firelet, elsewhere, credentials):
    server = start_firelet(environment={**side_services(elsewhere.url), **credentials})
    name = f"role-{len(credentials)}"
    trust = {"Version": "2012-10-17", "Statement": []}
    made = server.iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]
    assert elsewhere.client("iam").get_role(RoleName=name)["Role"]["RoleId"] == made["RoleId"]
    # moto's account, not Firelet's.
    assert server.sts.get_caller_identity()["Account"] == "123456789012"
    error = refused(server.iam.get_role, RoleName="absent")
    assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == ("NoSuchEntity", 404)
    assert re.search(rf"iam +at {re.escape(elsewhere.url)}", server.log())


def test_logs_are_read_from_their_endpoint_and_written_in_both_places(start_firelet, elsewhere):
    server = start_firelet(environment={**side_services(elsewhere.url), **KEYS})
    function = server.deploy(HELLO, name="logs-elsewhere")
    for word in ("one", "two", "three"):
        function({"word": word})
    theirs = elsewhere.client("logs")

    def written():
        text = "".join(messages(theirs, function.group))
        return text if all(f"said {word}" in text for word in ("one", "two", "three")) else None

    text = eventually(written, what="the log at the endpoint")
    assert text.count("START RequestId") == text.count("REPORT RequestId") == 3
    # Through Firelet, the endpoint answers; Firelet's own copy is there for its own command.
    eventually(lambda: messages(server.logs, function.group) == messages(theirs, function.group), what="the same log")
    assert "said two" in server.firelet("logs", "logs-elsewhere").stdout
    server.logs.create_log_group(logGroupName="made-through-firelet")
    groups = theirs.describe_log_groups(logGroupNamePrefix="made-through")["logGroups"]
    assert [group["logGroupName"] for group in groups] == ["made-through-firelet"]
    metrics = urllib.request.urlopen(f"{server.url}/metrics").read().decode()
    assert "firelet_log_events_lost_total 0.0\n" in metrics


def test_log_events_are_written_before_the_server_ends(start_firelet, elsewhere):
    server = start_firelet(environment={**side_services(elsewhere.url), **KEYS})
    function = server.deploy(HELLO, name="logs-at-the-end")
    function({"word": "last"})
    assert server.stop() == 0
    text = "".join(messages(elsewhere.client("logs"), function.group))
    assert "said last" in text and "REPORT RequestId" in text


def test_functions_run_while_the_endpoint_of_logs_is_down_and_the_loss_is_counted(start_firelet):
    server = start_firelet(environment={"AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": "http://127.0.0.1:9", **KEYS})
    function = server.deploy(HELLO)
    assert "said alone" in function.call({"word": "alone"}).log
    eventually(lambda: "the Logs endpoint takes no events now; they wait" in server.log(), what="the warning")
    error = refused(server.logs.describe_log_groups)
    assert error["Error"]["Code"] == "ServiceUnavailableException"
    assert error["Error"]["Message"].startswith("logs cannot be reached at http://127.0.0.1:9: ")
    assert server.stop() == 0
    assert re.search(r"log events were not written to the Logs endpoint and are lost there.*events=\d", server.log())


def test_what_is_passed_on_was_let_in_first(start_firelet, elsewhere):
    server = start_firelet("--auth", "sigv4", environment={**side_services(elsewhere.url), **KEYS})
    made = server.firelet("keys", "create", "--json", "--data-dir", server.data_dir)
    key = json.loads(made.stdout)

    def iam(access_key, secret):
        session = boto3.Session(access_key, secret, region_name=REGION)
        return session.client("iam", endpoint_url=server.url, config=Config(retries={"total_max_attempts": 1}))

    before = len(elsewhere.requests())
    error = refused(iam("AKIDNOBODY", "wrong").create_role, RoleName="intruder", AssumeRolePolicyDocument="{}")
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert len(elsewhere.requests()) == before
    iam(key["AccessKeyId"], key["SecretAccessKey"]).create_role(RoleName="let-in", AssumeRolePolicyDocument="{}")
    assert elsewhere.client("iam").get_role(RoleName="let-in")["Role"]["RoleName"] == "let-in"
    eventually(lambda: len(elsewhere.requests()) > before, what="the request at the endpoint")


def test_an_endpoint_that_leads_back_is_noticed(start_firelet):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = start_firelet(environment=side_services(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        host, _, port = server.url.removeprefix("http://").partition(":")

        def relay():
            """Whoever comes to the endpoint is taken to Firelet itself."""
            inner, _ = listener.accept()
            outer = socket.create_connection((host, int(port)))
            threading.Thread(target=pump, args=(outer, inner), daemon=True).start()
            pump(inner, outer)

        def pump(source, sink):
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)

        threading.Thread(target=relay, daemon=True).start()
        error = refused(server.sts.get_caller_identity)
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 508
    assert "leads back to this server" in error["Error"]["Message"]


def test_the_variable_for_all_services_is_not_followed(start_firelet, elsewhere):
    server = start_firelet(environment={"AWS_ENDPOINT_URL": elsewhere.url, "AWS_ACCOUNT_ID": "111122223333", **KEYS})
    assert server.sts.get_caller_identity()["Account"] == "111122223333"


def test_the_configuration_comes_before_the_environment(start_firelet, elsewhere, tmp_path):
    config = tmp_path / "firelet.toml"
    config.write_text('region = "eu-west-1"\n[endpoints]\nsts = ""\n')
    variables = {**side_services(elsewhere.url), "AWS_REGION": "us-west-2", **KEYS}
    server = start_firelet("--config", str(config), environment=variables)
    assert server.sts.get_caller_identity()["Account"] == "000000000000"
    server.iam.create_role(RoleName="by-environment", AssumeRolePolicyDocument="{}")
    assert elsewhere.client("iam").get_role(RoleName="by-environment")
    assert "region eu-west-1" in server.log()


def certificate(folder):
    """A certificate of its own authority for 127.0.0.1; returns the paths of certificate and key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "elsewhere")])
    now = datetime.datetime.now(datetime.timezone.utc)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "cert.pem", folder / "key.pem"
    public.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(public), str(private)


def test_https_endpoints_have_to_show_a_certificate_that_this_host_trusts(start_firelet, tmp_path):
    public, private = certificate(tmp_path)
    secure = Elsewhere("https", ["-c", public, "-k", private])
    try:
        variables = {"AWS_ENDPOINT_URL_STS": secure.url, **KEYS}
        trusting = start_firelet(data_dir=tmp_path / "trusting", environment={**variables, "SSL_CERT_FILE": public})
        assert trusting.sts.get_caller_identity()["Account"] == "123456789012"
        wary = start_firelet(data_dir=tmp_path / "wary", environment=variables)
        error = refused(wary.sts.get_caller_identity)
        assert "certificate" in error["Error"]["Message"], error["Error"]["Message"]
    finally:
        secure.close()

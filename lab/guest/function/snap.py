"""The function that the checks of SnapStart deploy: says what it draws, sees and was told around its snapshot."""

import http.client
import json
import os
import random
import secrets
import ssl
import sys
import time
import uuid
from urllib.parse import urlsplit

from snapshot_restore_py import register_after_restore, register_before_snapshot

BEGUN = time.time()
ORDER = ["initialized"]
EARLY = str(uuid.uuid4())


@register_before_snapshot
def put_away():
    ORDER.append("put away")
    if os.environ.get("BREAK") == "before":
        raise OSError("cannot be put away")


@register_after_restore
def fetch_again():
    ORDER.append("fetched again")
    print("fetched again")
    if os.environ.get("BREAK") == "after":
        raise OSError("nothing to fetch")


def draw():
    """Everything that must differ between two clones of one snapshot."""
    with open("/dev/urandom", "rb") as noise:
        kernel = noise.read(16).hex()
    return {
        "random": random.getrandbits(64),
        "secret": secrets.token_hex(16),
        "uuid": str(uuid.uuid4()),
        "openssl": ssl.RAND_bytes(16).hex(),
        "urandom": kernel,
        "boot_noise": open("/proc/sys/kernel/random/uuid").read().strip(),
        "access_key": credentials()["AccessKeyId"],
    }


def credentials():
    place = urlsplit(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("GET", place.path, headers={"Authorization": os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"]})
    return json.load(connection.getresponse())


def handler(event, context):
    seen = {
        "drawn": draw(),
        "early": EARLY,
        "order": ORDER,
        "host": os.uname().nodename,
        "begun": BEGUN,
        "epoch": time.time(),
        "kind": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
        "keys": "AWS_ACCESS_KEY_ID" in os.environ,
        "tmp": os.listdir("/tmp"),
    }
    with open("/tmp/mine", "w") as file:
        file.write(EARLY)
    if event.get("do") == "die":
        # So that the next invocation needs another clone.
        print("SEEN " + json.dumps(seen))
        sys.stdout.flush()
        os._exit(7)
    return seen

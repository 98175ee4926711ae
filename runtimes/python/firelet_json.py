"""JSON as Lambda reads and writes it, by the interpreter's own C parts.

The module `json` imports `re`, which costs a third of a cold start; it is only imported to word an error. Lambda's own
client uses simplejson, so decimals keep their digits, named tuples are objects and bytes are text.
"""

import os
import sys

import _json

# From 3.12 on Lambda leaves characters outside ASCII as they are.
_ASCII_JSON = os.environ.get("AWS_EXECUTION_ENV") not in {
    "AWS_Lambda_python3.12",
    "AWS_Lambda_python3.13",
    "AWS_Lambda_python3.14",
    "AWS_Lambda_python3.15",
}


class _ScannerOptions:
    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    parse_constant = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__
    memo = {}


_scan = _json.make_scanner(_ScannerOptions)
_SPACE = " \t\n\r"


def loads(data):
    """The value of a JSON document in bytes."""
    text = data.decode("utf-8").strip(_SPACE)
    try:
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except (StopIteration, SystemError, ValueError):
        # A SystemError is the scanner's way to say that nobody has imported the module with its exception yet.
        pass
    import json

    return json.loads(text)


class _Digits(str):
    """A number in the digits that it is to be written with."""


class _DecimalFound(Exception):
    pass


def _default(value):
    """What JSON has no form for; bytes are text, and decimals take the slower way that keeps their digits."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    decimal = sys.modules.get("decimal")
    if decimal is not None and isinstance(value, decimal.Decimal):
        raise _DecimalFound
    raise TypeError("Object of type %s is not JSON serializable" % type(value).__name__)


def _default_with_decimals(value):
    decimal = sys.modules["decimal"]
    if isinstance(value, decimal.Decimal):
        return float("nan") if value.is_nan() else _Digits(value)
    return _default(value)


def _plain(value):
    """The same value with named tuples as objects and byte keys as text, which the C encoder does not do."""
    if isinstance(value, dict):
        return {(k.decode("utf-8") if isinstance(k, bytes) else k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        if hasattr(value, "_asdict"):
            return _plain(value._asdict())
        return [_plain(item) for item in value]
    return value


_SCALARS = frozenset((str, int, float, bool, type(None)))


def _has_named_tuple(value):
    """Whether a named tuple is anywhere inside. The value has been encoded before, so it has no cycles."""
    pending = [(value,)]
    while pending:
        value = pending.pop()
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) in _SCALARS:
                continue
            if isinstance(item, tuple) and hasattr(item, "_asdict"):
                return True
            if isinstance(item, (dict, list, tuple)):
                pending.append(item)
    return False


_encode_str = _json.encode_basestring_ascii if _ASCII_JSON else _json.encode_basestring


def _encode_str_or_digits(text):
    return str(text) if type(text) is _Digits else _encode_str(text)


def _encode(value):
    def encode(default, encode_str):
        encoder = _json.make_encoder({}, default, encode_str, None, ": ", ", ", False, False, True)
        return "".join(encoder(value, 0))

    try:
        return encode(_default, _encode_str)
    except _DecimalFound:
        return encode(_default_with_decimals, _encode_str_or_digits)


def dumps(value):
    """The JSON text of a value, as Lambda writes it."""
    kind = type(value)
    if kind in _SCALARS:
        return _encode(value)
    try:
        text = _encode(value)
    except TypeError as error:
        if "keys must be" not in str(error):
            raise
        return _encode(_plain(value))
    return _encode(_plain(value)) if _has_named_tuple(value) else text

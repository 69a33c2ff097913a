"""What came from outside, made such that every JSON reader takes it.

An agent may send halves of surrogate pairs, numbers that JSON does not know, keys that are no strings, and nesting without end.
Each of these breaks some writer or reader. Here they become the nearest thing that all take; what is sound is returned as it is.
"""

import math
from typing import Any

import orjson

# Containers within containers, at most: the encoder's own limit is 254, and many readers have a lower one.
MAX_DEPTH = 128
TOO_DEEP = "[nested too deeply]"


def clean_text(text: str) -> str:
    """Text that is valid Unicode: two halves of a pair that stand together are joined, a lone half becomes U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean_number(number: float) -> float | None:
    """A number that JSON can say: whole numbers beyond 64 bits become floats; what is not finite becomes None."""
    try:
        if not isinstance(number, int):
            return number if math.isfinite(number) else None
        return number if -(2**63) <= number < 2**64 else float(number)
    except OverflowError:
        return None


def clean_json(value: Any) -> Any:
    """A value that can be encoded as JSON, whatever it holds."""
    try:
        orjson.dumps(value)  # NaN and infinities become null there
    except TypeError:
        return _clean(value, 0)
    return value


def _clean(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, int | float):
        return clean_number(value)
    if depth >= MAX_DEPTH:
        return TOO_DEEP
    if isinstance(value, dict):
        return {_key(key): _clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, depth + 1) for item in value]
    return clean_text(str(value))


def _key(key: Any) -> str:
    if key is None or isinstance(key, bool):  # as JSON says them
        return {None: "null", True: "true", False: "false"}[key]
    return clean_text(str(key))

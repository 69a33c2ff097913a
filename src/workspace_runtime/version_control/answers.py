"""Answers that a client may hold on to: JSON with its entity tag."""

import hashlib
from typing import Any

import orjson


def tagged_json(body: dict[str, Any]) -> tuple[bytes, str]:
    """The JSON with its entity tag, which is also a member."""
    data = orjson.dumps(body)
    etag = f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
    return b'{"etag":%b,%b' % (orjson.dumps(etag), data[1:]), etag

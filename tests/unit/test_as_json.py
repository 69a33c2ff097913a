"""A content as the inside of a JSON string: the same as JSON at once gives, wherever a piece ends."""

import base64
import os
import tempfile

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_runtime.files import as_json
from workspace_runtime.files.as_json import ShorterError, form_of, pieces


@given(
    st.one_of(st.text(max_size=40).map(str.encode), st.binary(max_size=40)),
    st.integers(1, 4),
    st.sampled_from([0, 1000]),
)
def test_pieces_are_what_json_gives_at_once(content: bytes, thirds: int, spare: int) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as file:
        patch.setattr(as_json, "PIECE_BYTES", 3 * thirds)
        patch.setattr(as_json, "SPARE_BYTES", spare)
        os.pwrite(file.fileno(), content, 0)
        form = form_of(file.fileno(), len(content))
        made = b"".join(pieces(file.fileno(), len(content), form.encoding))
        try:
            text = orjson.dumps(content.decode())[1:-1]
        except UnicodeDecodeError:
            text = None
        if text is None or len(text) > 2 * len(content) + spare:
            text = base64.b64encode(content)
            assert form.encoding == "base64"
        assert made == text and form.length == len(made)


def test_a_file_that_became_shorter_is_told() -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(ShorterError):
        form_of(file.fileno(), 1)

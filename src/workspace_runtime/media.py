"""The media type of a file, by its name. One table on every machine: what the system adds to it is not asked.

Text is said to be UTF-8, which is what editors write. What programming languages call their files wins over what the table of
media types makes of the ending: `.ts` is TypeScript here, not a video.
"""

import functools
import mimetypes
import os

DEFAULT = b"application/octet-stream"

_TYPES = mimetypes.MimeTypes()  # the standard library's own table, not /etc/mime.types
_TEXT = (
    "ts mts cts tsx jsx vue svelte py pyi rb go rs java kt kts c h cc cpp hpp cs swift scala php pl lua r jl ex exs erl hs clj elm"
    " dart zig nim v sh bash zsh fish ps1 bat cmd toml ini cfg conf env properties lock gradle cmake mk dockerfile tf hcl proto"
    " graphql gql sql md mdx rst adoc tex log diff patch yml yaml jsonl ndjson txt text gitignore gitattributes editorconfig"
)
_TEXT_SUFFIXES = frozenset("." + word for word in _TEXT.split())
_TEXT_NAMES = frozenset(
    {
        "dockerfile",
        "makefile",
        "justfile",
        "license",
        "readme",
        "changelog",
        "codeowners",
        "gemfile",
        "rakefile",
        "procfile",
    }
)
_OTHER = {
    ".webp": "image/webp", ".avif": "image/avif", ".wasm": "application/wasm", ".woff2": "font/woff2",
    ".mjs": "text/javascript", ".cjs": "text/javascript", ".webmanifest": "application/manifest+json",
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def media_type(path: bytes) -> bytes:
    """The `Content-Type` of a file of this path."""
    name = os.fsdecode(path.rpartition(b"/")[2]).lower()
    suffix = os.path.splitext(name)[1] or (name if name.startswith(".") else "")
    if suffix in _TEXT_SUFFIXES or name in _TEXT_NAMES:
        return b"text/plain; charset=utf-8"
    known = _OTHER.get(suffix)
    if known is None:
        known, encoding = _TYPES.guess_type(name)
        if known is None or encoding is not None:
            return DEFAULT
    if known.startswith("text/") or known in ("application/javascript", "application/xml", "image/svg+xml"):
        return known.encode() + b"; charset=utf-8"
    return known.encode()

"""The message that git has ready for the commit to come: of a merge, squash, cherry-pick, revert, or of a rebase that has stopped.

It is read as git-commit(1) does, and given as git would record it. For a person's eyes git writes the files with conflicts below it
(`append_conflicts_hint` in sequencer.c), as comments. That block alone is cut off: above it, a line of the user's own may well begin
like a comment. Only what a rebase puts together of several messages has comments throughout.
"""

import os
import re

from .plain_files import line_of
from .repository import Repository

MAX_BYTES = 4 * 1024 * 1024  # a longer one is cut
_COMBINED = (b"rebase-merge/message-squash", b"rebase-merge/message-fixup")
_CUT = rb" -{24} >8 -{24}"  # wt-status.c, `cut_line`


def prepared_message(repository: Repository) -> bytes | None:
    """The message, in the encoding in which git has it; None where there is none. Blocks."""
    git_dir = repository.git_dir
    # in this order git puts them together
    texts = [line_of(os.path.join(git_dir, name), MAX_BYTES) for name in (b"SQUASH_MSG", b"MERGE_MSG")]
    lines = b"\n".join(text + b"\n" for text in texts if text).split(b"\n")
    mark = _comment_mark(repository)
    if any(os.path.lexists(os.path.join(git_dir, name)) for name in _COMBINED):
        lines = [line for line in lines if not line.startswith(mark)]
    return b"\n".join(_without_conflicts(lines, mark)).strip() or None


def _without_conflicts(lines: list[bytes], mark: bytes) -> list[bytes]:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    begin = len(lines)
    while begin and lines[begin - 1].startswith(mark):
        begin -= 1
    # there is an empty line before the block, so it begins where the comments do
    first = lines[begin] if begin < len(lines) else b""
    is_gits = first == mark + b" Conflicts:" or re.fullmatch(re.escape(mark) + _CUT, first)
    return lines[:begin] if is_gits else lines


def _comment_mark(repository: Repository) -> bytes:
    """What a line that is a comment begins with (git-config(1), core.commentChar)."""
    known = repository.configuration
    mark = known.last("core.commentstring") or known.last("core.commentchar") or "auto"
    return b"#" if mark == "auto" else os.fsencode(mark)

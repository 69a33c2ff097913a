"""Landlock: a thread gives up, for itself and for all that it starts, every file but those it names (landlock(7), Linux 5.13).

Nothing that happens to names on the disk meanwhile changes what may be opened: so a program that we start may be given paths that
somebody else exchanges for links.
"""

import ctypes
import os
import struct
from collections.abc import Sequence

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH = 1
_SET_NO_NEW_PRIVS = 38
_WRITE_FILE, _READ_FILE, _READ_DIR, _CHANGES = 1 << 1, 1 << 2, 1 << 3, 0b1_1111_1111_0000
_HANDLED = _WRITE_FILE | _READ_FILE | _READ_DIR | _CHANGES


def restrict_this_thread(folders: Sequence[int], files: Sequence[int] = ()) -> None:
    """From now on this thread, and what it starts, opens nothing for reading but what lies below these open `folders` and these
    open `files`, and nothing at all for writing. There is no way back: use a thread that ends.

    Raises `OSError` where the kernel has no Landlock, or it is turned off; then nothing has changed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    ruleset = _called(libc.syscall(_CREATE_RULESET, struct.pack("=Q", _HANDLED), ctypes.c_size_t(8), 0))
    try:
        for opened, access in [(one, _READ_FILE | _READ_DIR) for one in folders] + [(one, _READ_FILE) for one in files]:
            rule = struct.pack("=Qi", access, opened)
            _called(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
        _called(libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _called(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _called(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result

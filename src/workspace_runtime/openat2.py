"""openat2(2), which opens below a folder and lets no link lead out of it. Old kernels and some sandboxes lack it.

Arguments are made once and only ever read, so that threads share them.
"""

import ctypes
import errno
import os
from typing import Any

_SYS_OPENAT2 = ctypes.c_long(437)  # the same number on every architecture
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _CACHED = 0x01, 0x02, 0x04, 0x08, 0x20
_O_PATH = getattr(os, "O_PATH", 0)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _system_call() -> Any:
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return None
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    return call


def _quick_system_call() -> Any:
    """For what can't wait: the interpreter's lock is kept, and arguments come ready made."""
    try:
        call = ctypes.PyDLL(None).syscall
    except (OSError, AttributeError):
        return None
    call.restype = ctypes.c_long
    return call


_syscall = _system_call()
_quick_syscall = _quick_system_call()
# A structure must outlive its address.
_HOW_PATH = _OpenHow(_O_PATH | os.O_CLOEXEC, 0, _BENEATH | _NO_MAGICLINKS)
_HOW_CACHED = _OpenHow(_O_PATH | os.O_CLOEXEC, 0, _BENEATH | _NO_MAGICLINKS | _CACHED)
_HOW_STEP = _OpenHow(os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0, _BENEATH | _NO_SYMLINKS | _NO_XDEV)
_AT_PATH, _AT_STEP = ctypes.addressof(_HOW_PATH), ctypes.addressof(_HOW_STEP)
_QUICK_HOW = ctypes.c_void_p(ctypes.addressof(_HOW_CACHED))
_SIZE = ctypes.sizeof(_OpenHow)
_QUICK_SIZE = ctypes.c_size_t(_SIZE)


def works(folder: int) -> bool:
    """Whether it can be used here."""
    if _syscall is None or not _O_PATH:
        return False
    found: int = _syscall(_SYS_OPENAT2, folder, b".", _AT_PATH, _SIZE)
    if found < 0:
        return False
    os.close(found)
    return True


def hold(folder: int, path: bytes) -> int:
    """A descriptor (`O_PATH`) of what a path below an open folder names, links followed. Raises `OSError`: `EXDEV` where it leads
    out, or an absolute link is on the way."""
    found: int = _syscall(_SYS_OPENAT2, folder, path, _AT_PATH, _SIZE)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def hold_cached(folder: ctypes.c_long, path: bytes) -> int:
    """As `hold`, for the event loop: below zero for whatever would fail, or wait for a disk."""
    found: int = _quick_syscall(_SYS_OPENAT2, folder, path, _QUICK_HOW, _QUICK_SIZE)
    return found


def step(folder: int, name: bytes) -> int:
    """A folder in an open folder, open for reading. Raises `OSError`: `EXDEV` where something is mounted there."""
    found: int = _syscall(_SYS_OPENAT2, folder, name, _AT_STEP, _SIZE)
    if found < 0:
        code = ctypes.get_errno()
        # `ELOOP`: it is a link, which an open without openat2 says so
        raise OSError(errno.ENOTDIR if code == errno.ELOOP else code, os.strerror(code))
    return found

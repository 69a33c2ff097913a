"""Unpacks an uploaded archive: zip, and tar plain or compressed by gzip, bzip2 or xz, known by its content and not by its name.

The invariant: only regular files and folders come out, under paths that `paths.parse` takes and that name no `.git`, through a
sink that the caller gives; what is anything else is refused, entry by entry. Memory is bounded whatever the archive says of
itself, and the limits count the bytes that really came out.

Own readers, because those of the standard library hold all of a zip's directory and all of a tar's long names in memory, and
follow a chain of tar headers by recursion. A zip is read by its directory, as every common tool does; of a tar only names, sizes
and the executable bit are used. Sparse files are refused.
"""

import tarfile
from typing import BinaryIO

from .stopping import IsStopped
from .unpack.compression import DECOMPRESSORS, ERRORS, MAGIC, Stream
from .unpack.tar import is_tar, tar_members
from .unpack.work import Extracted, Limits, Sink, Work
from .unpack.zip import Zip


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with these bytes (512, or all of it) looks like one that `extract` can unpack.

    What gzip or xz packed is looked into: it must begin like a tar.
    """
    kind = _kind(head)
    if kind not in ("gzip", "xz"):
        return kind is not None
    try:
        inside = DECOMPRESSORS[kind]().decompress(head, tarfile.BLOCKSIZE)
    except ERRORS:
        return False
    return len(inside) < tarfile.BLOCKSIZE or is_tar(inside)


def extract(source: BinaryIO, name: str, write: Sink, limits: Limits, stopped: IsStopped) -> list[Extracted]:
    """Unpack the archive in `source` (open for reading, seekable) into `write`. Blocks. `name` is for sentences alone.

    Returns what became of each entry, in the archive's order; a path that was written more than once is there once. Raises
    `ArchiveError`, which has that list up to there, and `Stopped` once `stopped()` is true.
    """
    source.seek(0)
    kind = _kind(source.read(tarfile.BLOCKSIZE))
    source.seek(0)
    work = Work(name, write, limits, stopped)
    if kind is None:
        raise work.invalid("it is neither zip nor tar")
    if kind == "zip":
        for member in Zip(source, work).members():
            work.take(member)
    else:
        stream = Stream(source, kind, work)
        for member in tar_members(stream, work):
            work.take(member)
        stream.finish()
    return work.extracted


def _kind(head: bytes) -> str | None:
    for kind, magic in MAGIC.items():
        if head.startswith(magic):
            return kind
    return "tar" if is_tar(head) else None

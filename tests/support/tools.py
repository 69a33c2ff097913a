"""Programs that some tests need: those of the machine, else those that `scripts/tools` has unpacked."""

import os
import shutil
import sys
from pathlib import Path

UNPACKED = Path(sys.prefix) / "tools" / "usr"
FOLDERS = ("/usr/sbin", "/usr/local/sbin", str(UNPACKED / "bin"), str(UNPACKED / "sbin"))


def program(name: str) -> str | None:
    """Where a program is; None where there is none."""
    return shutil.which(name, path=os.pathsep.join((os.environ["PATH"], *FOLDERS)))


def libraries() -> dict[str, str]:
    """What the environment of an unpacked program needs, so that it finds the libraries that came with it."""
    folders = [str(path) for path in (UNPACKED / "lib").glob("*-linux-gnu")] if UNPACKED.is_dir() else []
    return {"LD_LIBRARY_PATH": os.pathsep.join(folders)} if folders else {}

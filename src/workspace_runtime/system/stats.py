"""How busy the workspace is: CPU, memory and disk, each as a share of what it may use.

The invariant: the figures are of this container where there is one, not of the machine it shares, and no file that is missing
or odd makes `sample` raise. A share is taken where the limit lies: of all visible groups from our own up to the mount, the one
with the strictest limit counts, with what that group uses.

Own code and not `psutil`, because that library knows nothing of control groups and tells the machine's figures in a container.
The files are read anew each time (less than a millisecond), so that a limit that is changed while we run is seen.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stats:
    """Percentages from 0 to 100."""

    cpu_percent: float
    memory_percent: float
    disk_percent: float


class Sampler:
    """Takes samples. Only one thread at a time may call `sample`."""

    def __init__(self, root: Path, *, system: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        """`root`: the folder whose disk counts. `system`: what `proc` and `sys` lie in. `clock`: seconds."""
        self._root = root
        self._system = system
        self._clock = clock
        self._before = _cpu(system, _Groups.read(system), clock())
        self._cpu_percent = 0.0

    def sample(self) -> Stats:
        """The figures now; for the CPU since the last sample, or since construction. Blocks shortly; never raises."""
        groups = _Groups.read(self._system)
        now = _cpu(self._system, groups, self._clock())
        share = _share(now.used - self._before.used, now.possible - self._before.possible)
        if now.source != self._before.source:
            self._cpu_percent = 0.0  # we were moved to another group: there is nothing yet to compare with
        elif share is not None:
            self._cpu_percent = share
        self._before = now
        return Stats(self._cpu_percent, _memory(self._system, groups), _disk(self._root))


def _share(part: float, whole: float) -> float | None:
    """A percentage from 0 to 100, or None where nothing is there to be shared."""
    return round(min(max(100 * part / whole, 0.0), 100.0), 1) if whole > 0 else None


# --- CPU --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cpu:
    """CPU time that was used, and that could have been, both since some moment that belongs to the source."""

    source: str
    used: float
    possible: float


def _cpu(system: Path, groups: "_Groups", now: float) -> _Cpu:
    found = _cpu_of_groups(groups.of("cpu"), groups.of("cpuacct"))
    if found is None:
        return _machine_cpu(system)
    folder, used, quota = found
    machine = _machine_cpus(system)
    cpus = min(quota, _cpuset(groups.of("cpuset")) or machine, machine)
    # The limit is part of the source: when it changes, what was possible before can't be compared.
    return _Cpu(f"{folder} {cpus}", used, now * cpus)


def _cpu_of_groups(limits: list[Path], usages: list[Path]) -> tuple[Path, float, float] | None:
    """The folder whose usage counts, its CPU seconds, and the CPUs its quota allows (infinite without one)."""
    if not usages:
        return None
    quota, level = min(
        ((_quota(folder), level) for level, folder in enumerate(limits)), default=(float("inf"), len(usages) - 1)
    )
    # Without a quota it is the topmost group that is visible: the container, or on a bare machine all of it.
    order = usages[::-1] if quota == float("inf") else usages[level:] + usages[:level][::-1]
    for folder in order:
        used = _cpu_seconds(folder)
        if used is not None:
            return folder, used, quota
    return None


def _quota(folder: Path) -> float:
    """How many CPUs a group may use: the second version's `cpu.max`, or the first one's two files."""
    words = _text(folder / "cpu.max").split()
    if len(words) != 2:
        words = [_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()]
    quota, period = _number(words[0]), _number(words[1])
    return quota / period if quota and period and quota > 0 and period > 0 else float("inf")


def _cpu_seconds(folder: Path) -> float | None:
    microseconds = _table(folder / "cpu.stat").get("usage_usec")
    if microseconds is not None:
        return microseconds / 1e6
    nanoseconds = _number(_text(folder / "cpuacct.usage"))
    return None if nanoseconds is None else nanoseconds / 1e9


def _cpuset(folders: list[Path]) -> int | None:
    """How many CPUs we may run on, from the nearest group that tells."""
    for folder in folders:
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            count = _count_of(_text(folder / name).strip())
            if count:
                return count
    return None


def _count_of(cpus: str) -> int | None:
    """How many a list such as `0-3,8` names."""
    try:
        ends = [part.split("-") for part in cpus.split(",") if part]
        return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
    except ValueError:
        return None


def _machine_cpus(system: Path) -> int:
    lines = _text(system / "proc/stat").splitlines()
    return sum(line.startswith("cpu") and line[3:4].isdigit() for line in lines) or os.cpu_count() or 1


def _machine_cpu(system: Path) -> _Cpu:
    """From the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal; guests are in user."""
    line = _text(system / "proc/stat").partition("\n")[0].split()
    ticks = [_number(word) or 0 for word in line[1:9]]
    return _Cpu("machine", sum(ticks) - sum(ticks[3:5]), sum(ticks))


# --- memory -----------------------------------------------------------------------------------------------------------


def _memory(system: Path, groups: "_Groups") -> float:
    machine = _table(system / "proc/meminfo")
    total = machine.get("MemTotal:", 0) * 1024
    limits = [(limit, folder) for folder in groups.of("memory") if (limit := _limit(folder)) is not None]
    if limits:
        limit, folder = min(limits, key=lambda each: each[0])  # of equal ones the nearest
        used = _used(folder)
        if used is not None and (limit < total or not total):
            return _share(used, limit) or 0.0
    available = machine.get("MemAvailable:", machine.get("MemFree:", 0)) * 1024
    return _share(total - available, total) or 0.0


def _limit(folder: Path) -> float | None:
    """A group's limit in bytes. The first version writes a huge number for none, which `MemTotal` then undercuts."""
    limits = (
        _number(_text(folder / "memory.max")),
        _number(_text(folder / "memory.limit_in_bytes")),
        _table(folder / "memory.stat").get("hierarchical_memory_limit"),
    )
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)


def _used(folder: Path) -> float | None:
    """What can't be taken back at once: the file pages that nobody used lately are left out, as the kernel may drop them."""
    table = _table(folder / "memory.stat")
    current = _number(_text(folder / "memory.current"))
    if current is not None:
        return max(current - table.get("inactive_file", 0), 0)
    current = _number(_text(folder / "memory.usage_in_bytes"))
    return None if current is None else max(current - table.get("total_inactive_file", 0), 0)


# --- disk -------------------------------------------------------------------------------------------------------------


def _disk(root: Path) -> float:
    """As `df` says it: of what the user could have, what root alone may use left out."""
    for path in (root, Path("/")):
        try:
            disk = os.statvfs(path)
        except OSError:
            continue
        used = disk.f_blocks - disk.f_bfree
        return _share(used, used + disk.f_bavail) or 0.0
    return 0.0


# --- control groups ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Groups:
    """Where each controller's groups are: our own folder first, then those above it, up to the mount.

    The second version has one tree for all controllers; the first one a mount for each. Both may be there at once, and then
    a controller belongs to the first version where that has it.
    """

    first: dict[str, list[Path]] = field(default_factory=dict)
    second: list[Path] = field(default_factory=list)

    def of(self, controller: str) -> list[Path]:
        """The folders that know of a controller, nearest first; none where there is no control group."""
        return self.first.get(controller) or self.second

    @classmethod
    def read(cls, system: Path) -> "_Groups":
        """What the process's own files tell; empty where they are missing."""
        ours = dict(_memberships(system))
        groups = cls()
        for controllers, above, point in _mounts(system):
            if not controllers:
                groups.second[:] = groups.second or _folders(system / point, above, ours.get("", "/"))
            for controller in controllers & ours.keys():
                groups.first.setdefault(controller, _folders(system / point, above, ours[controller]))
        return groups


def _memberships(system: Path) -> Iterator[tuple[str, str]]:
    """Controller and path of each line of /proc/self/cgroup; the second version's controller is empty."""
    for line in _text(system / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                yield controller, parts[2]


def _mounts(system: Path) -> Iterator[tuple[set[str], str, str]]:
    """Of each mount of control groups: the controllers (none: the second version), what part is mounted, and where."""
    for line in _text(system / "proc/self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        place, kind = head.split(), tail.split()
        if len(place) < 5 or len(kind) < 3:
            continue
        above, point = (part.replace("\\040", " ") for part in place[3:5])
        if kind[0] == "cgroup2":
            yield set(), above, point.lstrip("/")
        elif kind[0] == "cgroup":
            yield set(kind[2].split(",")), above, point.lstrip("/")


def _folders(point: Path, above: str, ours: str) -> list[Path]:
    """Our own group's folder and those above it. With a namespace the path may not exist: then the mount itself is ours."""
    if above != "/":
        ours = ours[len(above) :] if f"{ours}/".startswith(f"{above}/") else "/"
    parts = [part for part in ours.split("/") if part]
    if ".." in parts or not point.joinpath(*parts).is_dir():
        parts = []
    return [point.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


# --- files ------------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    """A file's text; empty where it can't be read."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _number(text: str) -> float | None:
    """A whole number that 64 bits can hold, or None for anything else, such as `max`."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if abs(number) < 1 << 64 else None


def _table(path: Path) -> dict[str, float]:
    """A file of lines with a name and a number."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: number for words in lines if len(words) > 1 and (number := _number(words[1])) is not None}

"""The figures: right for each kind of container as its files tell it, and for the machine that the test runs on."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from workspace_runtime.system.stats import Sampler

GB = 1 << 30
NO_LIMIT = "9223372036854771712"  # what the first version writes where there is none
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"


class Machine:
    """A tree of files as a kernel of 4 CPUs and 16 GiB shows it, and a clock that moves by hand."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.now = 100.0
        self.busy = 1000
        self.put("proc/meminfo", "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 12582912 kB\n")
        self.put("proc/self/mountinfo", "23 1 0:20 / / rw - ext4 /dev/root rw\n")
        self.tick(0, 0)

    def put(self, path: str, text: str | int) -> None:
        file = self.top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n" if isinstance(text, int) else text)

    def group(self, path: str, **files: str | int) -> None:
        """A control group's files; two underscores are a dot."""
        for name, text in files.items():
            self.put(f"sys/fs/cgroup/{path}/{name.replace('__', '.')}", text)

    def tick(self, seconds: float, busy: float) -> None:
        """Time goes by, of which all CPUs together were busy so many seconds."""
        self.now += seconds
        self.busy += int(busy * 100)
        idle = int(self.now * 400) - self.busy
        cpus = "".join(f"cpu{number} 0 0 0 0\n" for number in range(4))
        self.put("proc/stat", f"cpu  {self.busy} 0 0 {idle} 0 0 0 0 0 0\n{cpus}intr 1\n")

    def sampler(self) -> Sampler:
        return Sampler(self.top, system=self.top, clock=lambda: self.now)

    def cpu(self, seconds: float, busy: float, change: Callable[[], None]) -> float:
        """The CPU's figure, with a change in between."""
        sampler = self.sampler()
        self.tick(seconds, busy)
        change()
        return sampler.sample().cpu_percent

    @property
    def memory(self) -> float:
        return self.sampler().sample().memory_percent


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def nothing() -> None:
    pass


def second(machine: Machine, path: str = "/", mount: str = V2) -> None:
    machine.put("proc/self/cgroup", f"0::{path}\n")
    machine.put("proc/self/mountinfo", mount)


def first(machine: Machine, path: str, above: str = "/") -> None:
    groups = {"cpu,cpuacct": 3, "cpuset": 4, "memory": 5}
    lines = [f"{number}:{name}:{path}\n" for name, number in groups.items()]
    machine.put("proc/self/cgroup", "".join(lines) + "1:name=systemd:/x\n")
    machine.put(
        "proc/self/mountinfo",
        "".join(
            f"3{n} 23 0:3{n} {above} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n" for name, n in groups.items()
        ),
    )


# --- the machine ------------------------------------------------------------------------------------------------------


def test_without_groups_it_is_the_machine(machine: Machine) -> None:
    assert machine.cpu(10, 20, nothing) == 50
    assert machine.memory == 25


def test_a_group_without_limits_in_the_machine_s_own_tree(machine: Machine) -> None:
    """On a bare machine the topmost group is all of it, whatever session the server is in."""
    second(machine, "/user.slice/session-1.scope")
    machine.group("user.slice/session-1.scope", cpu__stat="usage_usec 0\n", memory__max="max\n", memory__current=GB)
    machine.group(".", cpu__stat="usage_usec 0\nuser_usec 0\n")
    assert machine.cpu(10, 99, lambda: machine.group(".", cpu__stat="usage_usec 10000000\n")) == 25
    assert machine.memory == 25


def test_no_files_at_all(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path / "missing", system=tmp_path / "missing")
    stats = sampler.sample()
    assert (stats.cpu_percent, stats.memory_percent) == (0, 0)
    assert 0 < stats.disk_percent <= 100


@pytest.mark.parametrize("name", ["cgroup", "mountinfo"])
def test_a_file_of_the_process_is_missing(machine: Machine, name: str) -> None:
    second(machine)
    machine.group(".", memory__max=GB, memory__current=GB)
    (machine.top / "proc/self" / name).unlink()
    assert machine.memory in (25, 100)
    assert machine.cpu(10, 20, nothing) == 50


def test_odd_contents_do_no_harm(machine: Machine) -> None:
    for text in (
        "",
        "x",
        "max",
        "-1",
        "\0",
        "9" * 400,
        "1 0",
        "0 0",
        "a b c\n1\n",
        "usage_usec " + "9" * 400,
        "inactive_file x",
        "MemTotal: " + "9" * 400,
        "0-",
        ",,",
        "5-1",
    ):
        for name in ("cpu.max", "cpu.stat", "cpuset.cpus.effective", "memory.max", "memory.current", "memory.stat"):
            second(machine)
            machine.put(f"sys/fs/cgroup/{name}", text)
            assert 0 <= machine.sampler().sample().memory_percent <= 100
        for path in ("proc/self/cgroup", "proc/self/mountinfo", "proc/stat", "proc/meminfo"):
            machine.put(path, text)
        assert 0 <= machine.sampler().sample().memory_percent <= 100


# --- the second version -----------------------------------------------------------------------------------------------


def test_a_container_with_limits(machine: Machine) -> None:
    second(machine)
    machine.group(".", cpu__max="150000 100000\n", cpu__stat="usage_usec 5000000\n", memory__max=2 * GB)
    machine.group(".", memory__current=GB + GB // 2, memory__stat=f"anon 5\ninactive_file {GB // 2}\nactive_file 7\n")
    assert machine.cpu(10, 40, lambda: machine.group(".", cpu__stat="usage_usec 12500000\n")) == 50
    assert machine.memory == 50


def test_a_container_without_limits(machine: Machine) -> None:
    """It may use the whole machine's CPUs; of memory it is the machine that runs out."""
    second(machine)
    machine.group(".", cpu__max="max 100000\n", cpu__stat="usage_usec 0\n", memory__max="max\n", memory__current=GB)
    assert machine.cpu(10, 40, lambda: machine.group(".", cpu__stat="usage_usec 10000000\n")) == 25
    assert machine.memory == 25


def test_cpus_that_are_set(machine: Machine) -> None:
    second(machine)
    machine.group(".", cpu__max="max 100000\n", cpu__stat="usage_usec 0\n", cpuset__cpus__effective="0,2\n")
    assert machine.cpu(10, 40, lambda: machine.group(".", cpu__stat="usage_usec 10000000\n")) == 50


def test_more_than_all_is_all(machine: Machine) -> None:
    second(machine)
    machine.group(".", cpu__max="50000 100000\n", cpu__stat="usage_usec 0\n", memory__max=GB, memory__current=2 * GB)
    assert machine.cpu(10, 40, lambda: machine.group(".", cpu__stat="usage_usec 10000000\n")) == 100
    assert machine.memory == 100


def test_the_strictest_limit_above_counts(machine: Machine) -> None:
    second(machine, "/pod/container")
    machine.group("pod/container", cpu__max="300000 100000\n", cpu__stat="usage_usec 0\n", memory__max="max\n")
    machine.group("pod/container", memory__current=GB // 4)
    machine.group(
        "pod", cpu__max="200000 100000\n", cpu__stat="usage_usec 0\n", memory__max=GB, memory__current=GB // 2
    )
    machine.group(".", cpu__stat="usage_usec 0\n")
    assert machine.cpu(10, 40, lambda: machine.group("pod", cpu__stat="usage_usec 10000000\n")) == 50
    assert machine.memory == 50


def test_a_limit_above_what_the_machine_has(machine: Machine) -> None:
    second(machine)
    machine.group(".", memory__max=64 * GB, memory__current=GB)
    assert machine.memory == 25


@pytest.mark.parametrize("path", ["/docker/0123", "/../../elsewhere", "/kubepods/pod1/abc"])
def test_a_path_that_is_not_there(machine: Machine, path: str) -> None:
    second(machine, path)
    machine.group(".", memory__max=GB, memory__current=GB // 2)
    assert machine.memory == 50


def test_a_part_of_the_tree_that_is_mounted(machine: Machine) -> None:
    second(machine, "/pod/abc/sub", V2.replace(" / ", " /pod/abc ", 1))
    machine.group("sub", memory__max=GB, memory__current=GB // 4)
    assert machine.memory == 25
    machine.group(".", memory__max=GB // 2, memory__current=GB // 4)
    assert machine.memory == 50


def test_a_limit_that_changes(machine: Machine) -> None:
    second(machine)
    machine.group(".", memory__max=2 * GB, memory__current=GB)
    sampler = machine.sampler()
    assert sampler.sample().memory_percent == 50
    machine.group(".", memory__max=GB)
    assert sampler.sample().memory_percent == 100


def test_two_samples_at_once(machine: Machine) -> None:
    second(machine)
    machine.group(".", cpu__stat="usage_usec 0\n")
    sampler = machine.sampler()
    assert sampler.sample().cpu_percent == 0
    machine.tick(10, 0)
    machine.group(".", cpu__stat="usage_usec 20000000\n")
    assert sampler.sample().cpu_percent == 50
    assert sampler.sample().cpu_percent == 50  # no time went by: the last figure stands


def test_the_groups_go_away(machine: Machine) -> None:
    second(machine)
    machine.group(".", cpu__stat="usage_usec 0\n", memory__max=GB, memory__current=GB)
    sampler = machine.sampler()
    shutil.rmtree(machine.top / "sys")
    machine.tick(10, 20)
    stats = sampler.sample()
    assert (stats.cpu_percent, stats.memory_percent) == (0, 25)
    machine.tick(10, 20)
    assert sampler.sample().cpu_percent == 50


# --- the first version, and both --------------------------------------------------------------------------------------


def test_the_first_version(machine: Machine) -> None:
    first(machine, "/docker/abc", above="/docker/abc")
    machine.group("cpu,cpuacct", cpu__cfs_quota_us=200000, cpu__cfs_period_us=100000, cpuacct__usage=0)
    machine.group("cpuset", cpuset__cpus="0-3\n")
    machine.group("memory", memory__limit_in_bytes=GB, memory__usage_in_bytes=GB)
    machine.group("memory", memory__stat=f"inactive_file 1\ntotal_inactive_file {GB // 2}\n")
    assert machine.cpu(10, 40, lambda: machine.group("cpu,cpuacct", cpuacct__usage=10_000_000_000)) == 50
    assert machine.memory == 50


def test_the_first_version_without_limits(machine: Machine) -> None:
    first(machine, "/docker/abc", above="/docker/abc")
    machine.group("cpu,cpuacct", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000, cpuacct__usage=0)
    machine.group("cpuset", cpuset__cpus="1-2\n")
    machine.group("memory", memory__limit_in_bytes=NO_LIMIT, memory__usage_in_bytes=GB)
    assert machine.cpu(10, 40, lambda: machine.group("cpu,cpuacct", cpuacct__usage=10_000_000_000)) == 50
    assert machine.memory == 25


def test_a_limit_that_only_the_hierarchy_tells(machine: Machine) -> None:
    first(machine, "/docker/abc", above="/docker/abc")
    machine.group("memory", memory__limit_in_bytes=NO_LIMIT, memory__usage_in_bytes=GB)
    machine.group("memory", memory__stat=f"hierarchical_memory_limit {4 * GB}\n")
    assert machine.memory == 25


def test_a_limit_above_in_the_first_version(machine: Machine) -> None:
    first(machine, "/pod/abc")
    machine.group("memory/pod/abc", memory__limit_in_bytes=NO_LIMIT, memory__usage_in_bytes=1)
    machine.group("memory/pod", memory__limit_in_bytes=GB, memory__usage_in_bytes=GB // 2)
    machine.group("memory", memory__limit_in_bytes=NO_LIMIT, memory__usage_in_bytes=GB)
    assert machine.memory == 50


def test_both_versions_at_once(machine: Machine) -> None:
    """Memory by the first one, the CPU by the second one."""
    machine.put("proc/self/cgroup", "5:memory:/\n0::/\n")
    machine.put(
        "proc/self/mountinfo",
        "31 23 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 23 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    )
    machine.group("memory", memory__limit_in_bytes=GB, memory__usage_in_bytes=GB // 2)
    machine.group("unified", cpu__stat="usage_usec 0\n", cpu__max="100000 100000\n")
    assert machine.cpu(10, 40, lambda: machine.group("unified", cpu__stat="usage_usec 5000000\n")) == 50
    assert machine.memory == 50


# --- here -------------------------------------------------------------------------------------------------------------


def test_the_disk_as_df_says_it(tmp_path: Path) -> None:
    told = subprocess.run(["df", "--output=pcent", tmp_path], check=True, capture_output=True, text=True).stdout.split()
    percent = Sampler(tmp_path).sample().disk_percent
    assert -0.2 <= int(told[-1].rstrip("%")) - percent <= 1.2  # `df` rounds up


def test_a_core_that_is_busy(tmp_path: Path) -> None:
    """At least the share of one core, as the kernel counts what the process itself used."""
    sampler = Sampler(tmp_path)
    start = time.monotonic()
    code = "import time\nwhile time.process_time() < 1: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    seconds = time.monotonic() - start
    stats = sampler.sample()
    cpus = len(os.sched_getaffinity(0))
    assert 100 * 0.9 / seconds / cpus < stats.cpu_percent <= 100
    assert 0 < stats.memory_percent < 100


def test_memory_that_is_taken(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path)
    before = sampler.sample().memory_percent
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    size = min(total // 20, GB)
    held = bytearray(os.urandom(1 << 20)) * (size >> 20)
    assert sampler.sample().memory_percent > before + 50 * size / total
    assert held

"""What a repository's folder may not lead to: files and programs outside, by links, lists and settings, also by those that come later."""

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.git_home import Sandbox
from support.git_remotes import http_remote
from support.hostile_repository import program
from support.server import running
from support.version_control import Case, Host

SECRET = "the secret of somebody else"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("confinement")
    with running(folder) as server, server.client() as client:
        yield Host(server, Sandbox(folder), client)


@pytest.fixture(scope="module")
def wary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A server that trusts no repository."""
    folder = tmp_path_factory.mktemp("wary")
    with running(folder, "--trust-repository", "false") as server, server.client() as client:
        yield Host(server, Sandbox(folder), client)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file outside of the workspace."""
    path = tmp_path / "outside"
    path.write_text(f"{SECRET}\n")
    return path


def configure(case: Case, text: str) -> None:
    with open(case.folder / ".git/config", "a") as file:
        file.write(text)


def evil_filter(case: Case, path: Path) -> str:
    """Have all files filtered by `evil`, which is not configured yet: what it would be."""
    case.commit({"a.txt": b"a\n", ".gitattributes": b"* filter=evil\n"})
    case.write("a.txt", "other\n")
    return f'[filter "evil"]\n\tclean = {path}\n\tsmudge = {path}\n'


# --- a configuration that has become another one ----------------------------------------------------------------------------------


def test_a_common_folder_that_comes_later(host: Host, tmp_path: Path) -> None:
    case, other = host.fresh(), host.fresh()
    path, mark = program(tmp_path, "filter")
    text = evil_filter(case, path)
    other.commit({"a.txt": b"a\n"})
    configure(other, text)
    case.get("status")
    (case.folder / ".git/commondir").write_text(f"{other.folder}/.git\n")
    host.ask("GET", "status", path=case.path)
    host.ask("GET", "diff", path=case.path)
    assert not mark.exists()


def test_an_include_that_only_git_can_find(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    path, mark = program(tmp_path, "filter")
    text = evil_filter(case, path)
    configure(case, f"[include]\n\tpath = %(prefix)/../../../../../../../../../..{tmp_path}/included\n")
    case.get("status")
    (tmp_path / "included").write_text(text)
    assert "filter.evil.clean" in case.git("config", "--list", "--includes")
    case.get("status")
    assert not mark.exists()


def test_a_change_that_leaves_the_times_of_the_file(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    path, mark = program(tmp_path, "filter")
    text = evil_filter(case, path).encode()
    config = case.folder / ".git/config"
    configure(case, "#" * (len(text) + 1) + "\n")
    with open(config, "r+b") as mapped, mmap.mmap(mapped.fileno(), 0) as data:
        at = data.find(b"#" * len(text))
        data[at : at + 1] = b"#"  # from here on the system takes the page for changed, and sets no more times
        case.get("status")
        data[at : at + len(text)] = text
        case.get("status")
    assert not mark.exists()


def test_an_unknown_extension_is_no_way_to_compare_files_outside(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    case.commit({"e": b"x\n"})
    (tmp_path / "there").mkdir()
    (tmp_path / "there/e").write_text(SECRET)
    os.symlink(tmp_path / "there", case.folder / "way")
    configure(case, "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tfoo = 1\n")
    for route in ("status", "log", "diff"):
        given = host.ask("GET", route, path=case.path)
        assert (given.status, given.code) == (409, "repository_invalid")
    given = host.ask("GET", "diff", path=case.path, paths=["e", "way/e"])
    assert given.code == "repository_invalid" and SECRET not in given.body.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_another_user_s_repository_is_told_as_that_everywhere(host: Host) -> None:
    case = host.fresh()
    case.commit({"a": b"a\n"})
    for path in (case.folder, case.folder / ".git"):
        os.chown(path, 65534, 65534)
    for route in ("status", "log", "stash", "remotes", "show", "diff"):
        given = host.ask("GET", route, path=case.path)
        assert (given.status, given.code) == (403, "repository_not_owned"), route


# --- links ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["COMMIT_EDITMSG", "MERGE_MSG", "SQUASH_MSG", "AUTO_MERGE", "EVIL", "lfs"])
def test_no_link_beside_the_head_leads_out(host: Host, outside: Path, name: str) -> None:
    case = host.fresh()
    case.commit({"a": b"a\n"})
    os.symlink(outside, case.folder / ".git" / name) if not (case.folder / ".git" / name).exists() else swap(
        case.folder / ".git" / name, outside
    )
    case.write("a", "b\n")
    for method, route, body in (("GET", "status", None), ("POST", "commit", {"message": "m", "all": True})):
        given = host.ask(method, route, body, path=case.path)
        assert (given.status, given.code) == (409, "repository_outside_workspace")
    assert outside.read_text() == f"{SECRET}\n"


def swap(path: Path, outside: Path) -> None:
    path.unlink()
    os.symlink(outside, path)


@pytest.mark.parametrize(
    "name",
    [
        "logs/refs/heads/main",
        "refs/heads/objects/deep/er/x",
        "refs/heads/deep/er/x",
        "worktrees/x/HEAD",
        "refs/heads/hooks",
    ],
)
def test_no_link_further_down_leads_a_write_out(host: Host, outside: Path, name: str) -> None:
    case = host.fresh()
    case.commit({"a": b"a\n"})
    path = case.folder / ".git" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.symlink(outside, path)
    case.write("a", "b\n")
    given = host.ask("POST", "commit", {"message": "m", "all": True}, path=case.path)
    assert (given.status, given.code) == (409, "repository_outside_workspace")
    assert outside.read_text() == f"{SECRET}\n"


def test_links_that_stay_and_hooks_that_lead_out_are_taken(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    case.commit({"a": b"a\n"})
    hooks = case.folder / ".git/hooks"
    hooks.rename(tmp_path / "hooks") if hooks.exists() else (tmp_path / "hooks").mkdir()
    os.symlink(tmp_path / "hooks", hooks)
    os.symlink("HEAD", case.folder / ".git/ALSO")
    case.write("a", "b\n")
    assert host.ask("POST", "commit", {"message": "m", "all": True}, path=case.path).status == 200


@pytest.mark.parametrize("name", ["COMMIT_EDITMSG", "ANY"])
def test_nothing_that_never_ends(host: Host, name: str) -> None:
    case = host.fresh()
    case.commit({"a": b"a\n"})
    (case.folder / ".git" / name).unlink(missing_ok=True)
    os.mkfifo(case.folder / ".git" / name)
    given = host.ask("GET", "status", path=case.path)
    assert (given.status, given.code) == (409, "repository_invalid")


# --- settings ---------------------------------------------------------------------------------------------------------------------


def test_a_driver_for_merging_that_is_not_trusted_is_git_s_own(wary: Host, tmp_path: Path) -> None:
    case = wary.fresh()
    path, mark = program(tmp_path, "driver")
    configure(case, f'[merge "evil"]\n\tdriver = {path} %A\n')
    case.commit({"a": b"1\n2\n3\n4\n5\n", ".gitattributes": b"a merge=evil\n"})
    case.git("switch", "-qc", "other")
    case.commit({"a": b"1\n2\n3\n4\nother\n"})
    case.git("switch", "-q", "main")
    case.commit({"a": b"main\n2\n3\n4\n5\n"})
    given = wary.ask("POST", "merge", {"ref": "other"}, path=case.path)
    assert given.status == 200, given
    assert case.read("a") == b"main\n2\n3\n4\nother\n"
    assert not mark.exists()


@pytest.mark.parametrize("condition", ["onbranch:new", "gitdir:**/worktrees/**"])
def test_what_counts_only_in_a_new_working_tree_is_known_before(wary: Host, tmp_path: Path, condition: str) -> None:
    case = wary.fresh()
    path, mark = program(tmp_path, "filter")
    (tmp_path / "first").write_text(f"[include]\n\tpath = {tmp_path}/second\n")
    (tmp_path / "second").write_text(evil_filter(case, path))
    configure(case, f'[includeIf "{condition}"]\n\tpath = {tmp_path}/first\n')
    body = {"worktree": f"{case.path}-linked", "branch": "new", "create": True}
    given = wary.ask("POST", "worktrees", body, path=case.path)
    assert given.status == 201, given
    assert not mark.exists()


def test_arguments_for_a_merge_that_a_branch_brings(wary: Host, outside: Path) -> None:
    case = wary.fresh()
    case.commit({"a": b"a\n"})
    case.git("switch", "-qc", "other")
    case.commit({"b": b"b\n"})
    case.git("switch", "-q", "main")
    case.commit({"c": b"c\n"})
    case.git("config", "branch.main.mergeoptions", f"--no-ff -F {outside}")
    assert wary.ask("POST", "merge", {"ref": "other"}, path=case.path).status == 200
    assert SECRET not in case.git("log", "-1", "--format=%B")


def test_objects_from_outside_are_read_only_where_that_is_trusted(host: Host, wary: Host, tmp_path: Path) -> None:
    for one in (host, wary):
        case = one.fresh()
        case.commit({"a": b"a\n"})
        other = one.box.folder / "elsewhere"
        one.box.commit(one.box.init("elsewhere"), {"s": SECRET.encode()}, "secret")
        oid = one.box.git(other, "rev-parse", "HEAD:s").decode().strip()
        (case.folder / ".git/objects/info").mkdir(exist_ok=True)
        (case.folder / ".git/objects/info/alternates").write_text(f"{other}/.git/objects\n")
        given = one.ask("GET", "show", path=case.path, ref=oid)
        if one is wary:
            assert (given.status, given.code) == (409, "repository_outside_workspace")
        else:
            assert one.ask("GET", "status", path=case.path).status == 200


def test_a_device_in_place_of_rules_is_not_read(host: Host) -> None:
    case = host.fresh()
    case.commit({"a": b"a\n"})
    case.write("a", "b\n")
    configure(case, "[core]\n\tattributesFile = /dev/zero\n\texcludesFile = ../../../../../../../../../dev/zero\n")
    assert [file["path"] for file in case.get("status")["files"]] == ["a"]


def test_a_read_that_keeps_lfs_elsewhere_has_no_lfs(host: Host, tmp_path: Path) -> None:
    case = host.fresh()
    (tmp_path / "storage").mkdir()
    case.commit({"a.bin": b"a\n", ".gitattributes": b"*.bin filter=lfs\n"})
    configure(case, f'[lfs]\n\tstorage = {tmp_path}/storage\n[filter "lfs"]\n\tclean = git-lfs clean -- %f\n')
    case.write("a.bin", "other\n")
    case.get("status")
    assert list((tmp_path / "storage").iterdir()) == []


def test_an_index_that_is_none_is_not_copied(host: Host) -> None:
    case = host.fresh()
    case.commit({"a": b"a\n"})
    index = case.folder / ".git/index"
    index.unlink()
    subprocess.run(["truncate", "-s", "3G", index], check=True)
    given = host.ask("GET", "status", path=case.path)
    assert given.status == 409
    assert not any(path.stat().st_size > 1024 * 1024 for path in host.server.state.rglob("*") if path.is_file())


def test_a_fetch_writes_no_file_of_the_repository_s_choice(host: Host, outside: Path, tmp_path: Path) -> None:
    case = host.fresh()
    case.commit({"a": b"a\n"})
    served = tmp_path / "served"
    served.mkdir()
    case.git("clone", "--quiet", "--bare", ".", str(served / "project.git"))
    with http_remote(served) as remote:
        case.git("remote", "add", "origin", f"{remote.url}/project.git")
        configure(
            case, f'[http]\n\tsaveCookies\n\tcookieFile = {outside}\n[http "{remote.url}"]\n\tcookieFile = {outside}\n'
        )
        assert host.ask("POST", "fetch", {}, path=case.path).status == 200
        assert remote.requests
    assert outside.read_text() == f"{SECRET}\n"


def test_a_read_fetches_nothing_where_that_is_not_trusted(wary: Host, tmp_path: Path) -> None:
    case = wary.fresh()
    case.commit({"a": b"a\n"})
    (tmp_path / "served").mkdir()
    with http_remote(tmp_path / "served") as remote:
        configure(
            case,
            "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tpartialClone = origin\n"
            f'[remote "origin"]\n\turl = {remote.url}/x.git\n\tpromisor = true\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n',
        )
        for route in ("show", "log"):
            assert wary.ask("GET", route, path=case.path, ref="a" * 40).status == 404
        assert remote.requests == []


def test_what_a_client_says_is_text_whatever_is_configured(host: Host) -> None:
    case = host.fresh()
    case.git("config", "i18n.commitEncoding", "ISO-8859-1")
    case.write("a", "a\n")
    case.git("add", "a")
    assert host.ask("POST", "commit", {"message": "Grüße: € drei"}, path=case.path).status == 200
    assert case.get("log")["items"][0]["subject"] == "Grüße: € drei"

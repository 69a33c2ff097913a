"""The list of remotes, fetch, and push, with remotes that are folders on disk."""

from collections.abc import Iterator

import pytest

from support.git_bench import Bench, Json, done, fresh_name, git_server, refused
from support.server import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with git_server(tmp_path_factory.mktemp("remotes")) as process:
        yield process


@pytest.fixture
def bench(server: ServerProcess) -> Iterator[Bench]:
    made = Bench(server, fresh_name())
    yield made
    made.close()


def listed(bench: Bench) -> dict[str, str]:
    return {item["name"]: item["url"] for item in done(bench.get("remotes"))["items"]}


# --- the list -----------------------------------------------------------------------------------------------------------------


def test_remotes_are_added_changed_and_removed(bench: Bench) -> None:
    assert listed(bench) == {"origin": str(bench.origin)}
    assert (
        done(bench.post("remotes", {"name": "team/fork", "url": "https://example.org/x.git"}), 201)["name"]
        == "team/fork"
    )
    done(bench.ask("PATCH", "remotes/team/fork", {"url": "git@example.org:y.git"}))
    assert listed(bench) == {"origin": str(bench.origin), "team/fork": "git@example.org:y.git"}
    done(bench.ask("PATCH", "remotes/team/fork", {"new_name": "fork", "url": str(bench.origin)}))
    assert listed(bench) == {"origin": str(bench.origin), "fork": str(bench.origin)}
    done(bench.post("fetch", {"remote": "fork"}))
    assert bench.tip(bench.copy, "refs/remotes/fork/main") == bench.tip()
    done(bench.ask("DELETE", "remotes/fork"))
    assert listed(bench) == {"origin": str(bench.origin)}
    assert bench.tip(bench.copy, "refs/remotes/fork/main") is None


def test_a_rename_keeps_branches_and_upstream(bench: Bench) -> None:
    done(bench.ask("PATCH", "remotes/origin", {"new_name": "source"}))
    assert bench.tip(bench.copy, "refs/remotes/source/main") == bench.tip()
    assert bench.git("rev-parse", "--abbrev-ref", "main@{upstream}") == "source/main"
    done(bench.ask("PATCH", "remotes/source", {"new_name": "source"}))
    theirs = bench.pushed_by_another({"b": b"b"})
    assert done(bench.post("pull"))["head"]["oid"] == theirs


@pytest.mark.parametrize("name", ["-x", "a b", "a..b", "a.lock", "a\nb", "/a", "a/", "@{", "é\x7f"])
def test_names_that_git_does_not_take(bench: Bench, name: str) -> None:
    before = bench.git("config", "--list", "--local")
    refused(bench.post("remotes", {"name": name, "url": str(bench.origin)}), 422, "ref_invalid")
    refused(bench.ask("PATCH", "remotes/origin", {"new_name": name}), 422, "ref_invalid")
    assert bench.git("config", "--list", "--local") == before


BAD_ADDRESSES = (
    "-x", "--upload-pack=touch x", "ext::sh -c true", "fd::3", "git://127.0.0.1/x", "ftp://127.0.0.1/x", "../x", "x/y", "file://host/x",
    "ssh://-oProxyCommand=touch/x", "-oProxyCommand=x:y", "-u@host:x", "ssh://-l@host/x", "https://a b/", "https://host/x\ny", "http://", "ssh://u:p@h/x",
    "https://user:password@host/x", "host:-x", "https://host/%0a", "::x",
)  # fmt: skip


@pytest.mark.parametrize("url", BAD_ADDRESSES)
def test_addresses_that_are_no_places(bench: Bench, url: str) -> None:
    before = bench.git("config", "--list", "--local")
    refused(bench.post("remotes", {"name": "new", "url": url}), 422, "remote_url_refused")
    refused(bench.ask("PATCH", "remotes/origin", {"url": url}), 422, "remote_url_refused")
    assert bench.git("config", "--list", "--local") == before


def test_remotes_that_are_there_already_or_are_not(bench: Bench) -> None:
    bench.git("remote", "add", "second", "/x")
    refused(bench.post("remotes", {"name": "origin", "url": "/y"}), 409, "remote_exists")
    refused(bench.ask("PATCH", "remotes/second", {"new_name": "origin"}), 409, "remote_exists")
    refused(bench.ask("PATCH", "remotes/third", {"url": "/y"}), 404, "remote_not_configured")
    refused(bench.ask("DELETE", "remotes/third"), 404, "remote_not_configured")
    refused(bench.ask("DELETE", "remotes/-v"), 422, "ref_invalid")
    assert listed(bench) == {"origin": str(bench.origin), "second": "/x"}


def test_a_change_that_can_not_be_made_whole_is_not_made_half(bench: Bench) -> None:
    bench.git("remote", "add", "second", "/x")
    refused(bench.ask("PATCH", "remotes/second", {"url": "/y", "new_name": "origin"}), 409, "remote_exists")
    refused(bench.ask("PATCH", "remotes/second", {"url": "/y", "new_name": "a..b"}), 422, "ref_invalid")
    assert listed(bench)["second"] == "/x"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": ""},
        {"new_name": ""},
        {"url": None},
        {"url": 1},
        {"name": "x"},
        {"url": "/x", "more": 1},
        {"url": "/" + "x" * 2000},
    ],
)
def test_bodies_that_say_nothing_or_too_much(bench: Bench, body: Json) -> None:
    assert bench.ask("PATCH", "remotes/origin", body).status_code == 422
    assert listed(bench) == {"origin": str(bench.origin)}


def test_a_name_that_is_no_text(bench: Bench) -> None:
    refused(bench.ask("POST", "remotes", b'{"name":"\\ud800","url":"/x"}'), 422, "validation_failed")


# --- fetch --------------------------------------------------------------------------------------------------------------------


def test_a_fetch_tells_which_refs_have_changed(bench: Bench) -> None:
    old = bench.head()
    assert done(bench.post("fetch")) == {"remote": "origin", "refs": []}
    new = bench.pushed_by_another({"b": b"b"})
    side = bench.pushed_by_another({"c": b"c"}, branch="side/one")
    bench.sandbox.git(bench.origin, "tag", "v1", new)
    assert done(bench.post("fetch"))["refs"] == [
        {"ref": "refs/remotes/origin/main", "old": old, "new": new},
        {"ref": "refs/remotes/origin/side/one", "old": None, "new": side},
        {"ref": "refs/tags/v1", "old": None, "new": new},
    ]
    bench.sandbox.git(bench.origin, "branch", "-D", "side/one")
    assert done(bench.post("fetch"))["refs"] == []
    gone = {"ref": "refs/remotes/origin/side/one", "old": side, "new": None}
    assert done(bench.post("fetch", {"prune": True}))["refs"] == [gone]


def test_a_fetch_from_all_remotes(bench: Bench) -> None:
    bench.git("remote", "add", "second", str(bench.origin))
    new = bench.pushed_by_another({"b": b"b"})
    answer = done(bench.post("fetch", {"all": True}))
    assert answer["remote"] is None
    assert [(ref["ref"], ref["new"]) for ref in answer["refs"]] == [
        ("refs/remotes/origin/main", new),
        ("refs/remotes/second/main", new),
    ]


def test_one_remote_that_is_gone_does_not_keep_the_others_from_being_fetched(bench: Bench) -> None:
    bench.git("remote", "rename", "origin", "middle")
    for name in ("first", "third"):  # in the order of the configuration the missing one comes between
        bench.git("remote", "add", name, "/nowhere/at/all.git" if name == "first" else str(bench.origin))
    new = bench.pushed_by_another({"b": b"b"})
    refused(bench.post("fetch", {"all": True}), 404, "remote_not_found")
    assert bench.tip(bench.copy, "refs/remotes/middle/main") == bench.tip(bench.copy, "refs/remotes/third/main") == new


def test_a_branch_that_became_a_folder_of_branches(bench: Bench) -> None:
    side = bench.pushed_by_another({"side": b"side"}, branch="side")
    done(bench.post("fetch"))
    bench.sandbox.git(bench.origin, "branch", "--delete", "--force", "side")
    bench.sandbox.git(bench.origin, "branch", "side/one", side)
    problem = refused(bench.post("fetch"), 409, "ref_exists")
    assert "prune" in problem["detail"]
    done(bench.post("fetch", {"prune": True}))
    assert bench.tip(bench.copy, "refs/remotes/origin/side/one") == side


def test_a_lock_that_was_left(bench: Bench) -> None:
    bench.pushed_by_another({"b": b"b"})
    lock = bench.copy / ".git" / "refs" / "remotes" / "origin" / "main.lock"
    lock.touch()
    refused(bench.post("fetch"), 409, "repository_locked")
    assert done(bench.post("unlock"))["removed"] == ["refs/remotes/origin/main.lock"]
    assert len(done(bench.post("fetch"))["refs"]) == 1


def test_remotes_that_can_not_be_fetched_from(bench: Bench) -> None:
    refused(bench.post("fetch", {"remote": "nobody"}), 404, "remote_not_configured")
    for name in ("-x", "--upload-pack=x"):
        refused(bench.post("fetch", {"remote": name}), 422, "ref_invalid")
    for name in (str(bench.origin), "https://127.0.0.1/x", "ext::true", "."):
        refused(bench.post("fetch", {"remote": name}), 404, "remote_not_configured")
    bench.git("remote", "add", "gone", "/nowhere/at/all.git")
    refused(bench.post("fetch", {"remote": "gone"}), 404, "remote_not_found")
    refused(bench.post("fetch", {"all": True}), 404, "remote_not_found")
    bench.git("remote", "remove", "origin")
    bench.git("remote", "remove", "gone")
    refused(bench.post("fetch"), 404, "remote_not_configured")


# --- push ---------------------------------------------------------------------------------------------------------------------


def test_a_push_tells_what_became_of_each_ref(bench: Bench) -> None:
    assert done(bench.post("push"))["refs"][0]["status"] == "up_to_date"
    old = bench.head() or ""
    new = bench.commit({"b": b"b"})
    answer = done(bench.post("push"))
    assert answer["refs"] == [
        {
            "ref": "refs/heads/main",
            "local": "refs/heads/main",
            "status": "fast_forward",
            "summary": f"{old[:7]}..{new[:7]}",
            "reason": None,
        }
    ]
    assert bench.tip() == new


def test_a_push_that_is_not_a_fast_forward(bench: Bench) -> None:
    theirs = bench.pushed_by_another({"b": b"b"})
    bench.commit({"c": b"c"})
    problem = refused(bench.post("push"), 409, "push_rejected")
    assert [(ref["ref"], ref["status"], ref["reason"]) for ref in problem["refs"]] == [
        ("refs/heads/main", "rejected", "fetch first")
    ]
    done(bench.post("fetch"))
    problem = refused(bench.post("push"), 409, "push_rejected")
    assert problem["refs"][0]["reason"] == "non-fast-forward"
    assert bench.tip() == theirs


def test_a_branch_without_an_upstream(bench: Bench) -> None:
    bench.git("switch", "--quiet", "--create", "topic/one")
    new = bench.commit({"b": b"b"})
    refused(bench.post("push"), 409, "no_upstream")
    assert done(bench.post("push", {"set_upstream": True}))["refs"][0]["status"] == "new"
    assert bench.tip(ref="refs/heads/topic/one") == new
    assert bench.git("rev-parse", "--abbrev-ref", "@{upstream}") == "origin/topic/one"
    newer = bench.commit({"c": b"c"})
    done(bench.post("push"))
    assert bench.tip(ref="refs/heads/topic/one") == newer


def test_another_branch_than_the_current_one(bench: Bench) -> None:
    bench.git("branch", "side")
    assert done(bench.post("push", {"branch": "side"}))["remote"] == "origin"
    assert bench.tip(ref="refs/heads/side") == bench.head()
    bench.git("config", "branch.side.remote", "origin")
    done(bench.post("push", {"remote": "origin", "branch": "side", "set_upstream": True}))
    assert bench.git("rev-parse", "--abbrev-ref", "side@{upstream}") == "origin/side"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"branch": "nowhere"}, 404, "ref_not_found"),
        ({"branch": "-x"}, 422, "ref_invalid"),
        ({"branch": "+main"}, 404, "ref_not_found"),
        ({"branch": "main:other"}, 422, "ref_invalid"),
        ({"branch": ":main"}, 422, "ref_invalid"),
        ({"branch": "HEAD"}, 422, "ref_invalid"),
        ({"branch": "refs/heads/main"}, 404, "ref_not_found"),
        ({"branch": "*"}, 422, "ref_invalid"),
        ({"branch": ""}, 422, "validation_failed"),
        ({"remote": ""}, 422, "validation_failed"),
        ({"remote": "nobody"}, 404, "remote_not_configured"),
        ({"remote": "/tmp"}, 404, "remote_not_configured"),
        ({"remote": "--mirror"}, 422, "ref_invalid"),
        ({"force_with_lease": "nowhere"}, 404, "ref_not_found"),
        ({"force_with_lease": "-x"}, 422, "ref_invalid"),
    ],
)
def test_what_can_not_be_pushed(bench: Bench, body: Json, status: int, code: str) -> None:
    bench.commit({"b": b"b"})
    before = bench.sandbox.git(bench.origin, "show-ref")
    refused(bench.post("push", body), status, code)
    assert bench.sandbox.git(bench.origin, "show-ref") == before


def test_a_detached_head(bench: Bench) -> None:
    bench.git("switch", "--quiet", "--detach")
    bench.commit({"b": b"b"})
    refused(bench.post("push"), 409, "no_upstream")
    refused(bench.post("push", {"set_upstream": True}), 409, "head_detached")
    refused(bench.post("push", {"force_with_lease": bench.tip()}), 409, "head_detached")
    done(bench.post("push", {"branch": "main"}))


def test_a_repository_without_a_commit(bench: Bench) -> None:
    done(bench.post("init", {"path": f"{bench.name}/fresh"}), 201)
    bench.sandbox.git(bench.copy / "fresh", "remote", "add", "origin", str(bench.origin))
    for body in ({}, {"branch": "main"}, {"set_upstream": True}):
        answer = bench.post("push", body, path=f"{bench.name}/fresh")
        assert answer.json()["code"] in ("ref_not_found", "no_upstream"), answer.text


# --- with lease ---------------------------------------------------------------------------------------------------------------


def rewritten(bench: Bench) -> str:
    """Another commit in place of the last one."""
    bench.commit({"b": b"b"})
    bench.git("push", "--quiet")
    bench.git("commit", "--quiet", "--amend", "--message", "rewritten")
    return bench.head() or ""


@pytest.mark.parametrize("by", ["what was fetched", "an id", "a name"])
def test_a_lease_that_holds(bench: Bench, by: str) -> None:
    new = rewritten(bench)
    refused(bench.post("push"), 409, "push_rejected")
    lease = {"what was fetched": True, "an id": bench.tip(), "a name": "origin/main"}[by]
    assert done(bench.post("push", {"force_with_lease": lease}))["refs"][0]["status"] == "forced"
    assert bench.tip() == new


@pytest.mark.parametrize("by", ["what was fetched", "an id"])
def test_a_lease_that_is_stale(bench: Bench, by: str) -> None:
    rewritten(bench)
    seen = bench.tip()
    bench.sandbox.git(bench.other, "reset", "--quiet", "--hard", "origin/main")
    theirs = bench.pushed_by_another({"c": b"c"})
    problem = refused(
        bench.post("push", {"force_with_lease": True if by == "what was fetched" else seen}), 409, "lease_stale"
    )
    assert problem["refs"][0]["ref"] == "refs/heads/main"
    assert bench.tip() == theirs


def test_no_lease_given_is_no_force(bench: Bench) -> None:
    rewritten(bench)
    before = bench.tip()
    refused(bench.post("push", {"force_with_lease": False}), 409, "push_rejected")
    assert bench.tip() == before


# --- hooks at both ends ---------------------------------------------------------------------------------------------------------


def test_our_hook_refuses(bench: Bench) -> None:
    bench.hook("pre-push", "echo 'tests are red' >&2; exit 3")
    before = bench.tip()
    bench.commit({"b": b"b"})
    problem = refused(bench.post("push"), 409, "hook_refused")
    assert problem["hook"] == "pre-push"
    assert "tests are red" in problem["output"]
    assert bench.tip() == before


@pytest.mark.parametrize("hook", ["pre-receive", "update"])
def test_their_hook_refuses(bench: Bench, hook: str) -> None:
    bench.hook(hook, "cat >/dev/null; echo 'main is frozen' >&2; exit 1", bench.origin)
    before = bench.tip()
    bench.commit({"b": b"b"})
    problem = refused(bench.post("push"), 409, "push_rejected")
    assert "main is frozen" in problem["output"]
    assert problem["refs"][0]["status"] == "remote_rejected"
    assert problem["refs"][0]["reason"]
    assert bench.tip() == before


def test_a_branch_that_is_checked_out_at_the_other_side(bench: Bench) -> None:
    bench.git("remote", "set-url", "origin", str(bench.other))
    bench.commit({"b": b"b"})
    problem = refused(bench.post("push"), 409, "push_rejected")
    assert "checked out" in problem["detail"]

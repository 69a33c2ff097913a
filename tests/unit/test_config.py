"""Settings: our own variables stop a start where they are wrong, the short ones of others never do, and agents keep what is not ours."""

import os
from pathlib import Path

import pytest

from workspace_runtime import config
from workspace_runtime.config import load, own_variables
from workspace_runtime.errors import ConfigError

TOKEN = "x" * 32


def loaded(folder: Path, **environ: str) -> tuple[config.Config, list[str]]:
    """The settings from an environment, and the warnings."""
    warnings: list[str] = []
    return load({"workspace_path": str(folder)}, environ, warnings.append), warnings


@pytest.mark.parametrize("setting", config.settings(), ids=lambda setting: setting.name)
def test_each_has_a_variable_of_its_own_and_a_short_one(setting: object) -> None:
    env, short = (setting.metadata[name] for name in ("env", "short"))  # type: ignore[attr-defined]
    assert env.startswith("WORKSPACE_RUNTIME_") and not short.startswith("WORKSPACE_RUNTIME_")
    assert env == "WORKSPACE_RUNTIME_" + short.removeprefix("WORKSPACE_")


# What a platform may have set for something else.
FOREIGN = {
    "WORKSPACE_ID": "a/b",
    "WORKSPACE_HOST": "http://host:80",
    "WORKSPACE_PORT": "tcp://10.0.0.1:80",
    "WORKSPACE_TOKEN": "short",
    "STATE_PATH": "/dev/null/state",
    "TOKEN_FILE": "/nowhere/token",
    "ALLOWED_HOSTS": "*",
    "ALLOWED_ORIGINS": "*",
    "ALLOWED_PEER_UIDS": "root",
    "TRUSTED_PROXIES": "proxy.example",
    "ROOT_PATH": "C:\\root",
    "MAX_RUNNING_AGENTS": "many",
    "MAX_BODY_BYTES": "10mb",
    "MAX_UPLOAD_BYTES": "10mb",
    "HISTORY_MAX_EVENTS": "-1",
    "TRUST_REPOSITORY": "me",
    "LOG_LEVEL": "trace",
    "LOG_FORMAT": "%(message)s",
    "ACCESS_LOG": "/var/log/access",
}


def test_all_are_tried() -> None:
    assert {setting.metadata["short"] for setting in config.settings()} == {"WORKSPACE_PATH", *FOREIGN}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_cannot_be_ours_is_passed_over_with_a_warning(tmp_path: Path, name: str) -> None:
    found, warnings = loaded(tmp_path, **{name: FOREIGN[name]})
    assert found == loaded(tmp_path)[0]
    (warning,) = warnings
    own = "WORKSPACE_RUNTIME_" + name.removeprefix("WORKSPACE_")
    assert warning.startswith(f"{name} is set") and own in warning
    if name == "WORKSPACE_TOKEN":
        assert "short" not in warning


@pytest.mark.parametrize("name", [name for name in FOREIGN if name != "STATE_PATH"])
def test_the_same_in_our_own_variable_stops_the_start(tmp_path: Path, name: str) -> None:
    own = "WORKSPACE_RUNTIME_" + name.removeprefix("WORKSPACE_")
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, **{own: FOREIGN[name]})
    assert own in str(caught.value) or "oken" in str(caught.value)


def test_a_workspace_path_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    warnings: list[str] = []
    assert load({}, {"WORKSPACE_PATH": "/nowhere"}, warnings.append).root == tmp_path
    assert len(warnings) == 1


def test_a_token_file_of_somebody_else_is_no_token(tmp_path: Path) -> None:
    for content, mode in (("two words", 0o600), (TOKEN, 0o644), ("", 0o600)):
        path = tmp_path / "file"
        path.write_text(content)
        path.chmod(mode)
        found, warnings = loaded(tmp_path, TOKEN_FILE=str(path))
        assert found.token is None and found.token_file is None and len(warnings) == 1
        with pytest.raises(ConfigError):
            loaded(tmp_path, WORKSPACE_RUNTIME_TOKEN_FILE=str(path))


def test_ours_wins_and_then_the_short_one_is_not_looked_at(tmp_path: Path) -> None:
    found, warnings = loaded(
        tmp_path, WORKSPACE_RUNTIME_LOG_LEVEL="debug", LOG_LEVEL="trace", WORKSPACE_PORT="8080", WORKSPACE_TOKEN=TOKEN
    )
    assert (found.log_level, found.port, found.token, warnings) == ("debug", 8080, TOKEN, [])


def test_agents_keep_what_is_not_ours() -> None:
    environ = {
        "WORKSPACE_FOO": "users",
        "LOG_LEVEL": "trace",
        "ALLOWED_HOSTS": "*",
        "WORKSPACE_PORT": "1",
        "WORKSPACE_TOKEN": "x",
        "WORKSPACE_RUNTIME_LOG_FORMAT": "json",
        "LOG_FORMAT": "text",
        "WORKSPACE_RUNTIME_FOO": "users",
    }
    assert own_variables(environ) == {"WORKSPACE_PORT", "WORKSPACE_TOKEN", "WORKSPACE_RUNTIME_LOG_FORMAT"}


# --- a user who has little --------------------------------------------------------------------------------------------


def test_a_user_without_a_home_is_told_to_name_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    with pytest.raises(ConfigError, match=r"no home folder.*--state-path"):
        loaded(tmp_path)
    assert loaded(tmp_path, WORKSPACE_RUNTIME_STATE_PATH=str(tmp_path.parent / "state"))[1] == []


@pytest.mark.parametrize("refused", ["entering", "reading"])
def test_a_workspace_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    def no(*_: object, **__: object) -> bool:
        if refused == "entering":
            raise PermissionError(13, "Permission denied")
        return False

    monkeypatch.setattr(os, "stat" if refused == "entering" else "access", no)
    with pytest.raises(ConfigError, match=r"by this user.*run as its owner"):
        config._check_workspace(tmp_path)
    monkeypatch.undo()
    config._check_workspace(tmp_path)

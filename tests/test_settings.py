"""Settings: where they come from, which one wins, and what is said of a wrong one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asynctask import settings, task, temporary_settings
from asynctask.errors import SettingsError
from asynctask.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("ASYNCTASK_"):
            monkeypatch.delenv(name)
    return tmp_path


def test_without_any_source_the_defaults_hold():
    assert read_settings() == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("TASK_DEFAULT_RETRIES", "3", 3),
        ("TASK_DEFAULT_RETRY_DELAY_SECONDS", "0.5", 0.5),
        ("TASK_DEFAULT_RETRY_DELAY_SECONDS", "[1, 2.5]", [1.0, 2.5]),
        ("FLOW_DEFAULT_RETRIES", "0", 0),
        ("SHUTDOWN_TIMEOUT", "1e3", 1000.0),
        ("THREAD_POOL_MAX_WORKERS", "2", 2),
        ("LOGGING_LOG_PRINTS", "true", True),
        ("LOGGING_LOG_PRINTS", "0", False),
        ("LOGGING_LEVEL", "DEBUG", "DEBUG"),
        ("STORE_URL", "memory://other", "memory://other"),
        ("HISTORY_SIZE", "0", 0),
    ],
)
def test_each_has_an_environment_variable(monkeypatch, variable, text, value):
    monkeypatch.setenv("ASYNCTASK_" + variable, text)
    assert getattr(read_settings(), variable.lower()) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TASK_DEFAULT_RETRIES", "many"),
        ("TASK_DEFAULT_RETRIES", "-1"),
        ("TASK_DEFAULT_RETRIES", "1.5"),
        ("TASK_DEFAULT_RETRY_DELAY_SECONDS", "-1"),
        ("TASK_DEFAULT_RETRY_DELAY_SECONDS", "[1, -2]"),
        ("TASK_DEFAULT_RETRY_DELAY_SECONDS", "[1, 2"),
        ("FLOW_DEFAULT_RETRY_DELAY_SECONDS", "nan"),
        ("SHUTDOWN_TIMEOUT", ""),
        ("SHUTDOWN_TIMEOUT", "-0.1"),
        ("THREAD_POOL_MAX_WORKERS", "0"),
        ("LOGGING_LOG_PRINTS", "perhaps"),
        ("LOGGING_LEVEL", "LOUD"),
        ("HISTORY_SIZE", "-1"),
    ],
)
def test_a_wrong_value_is_refused_and_the_variable_named(monkeypatch, variable, text):
    monkeypatch.setenv("ASYNCTASK_" + variable, text)
    with pytest.raises(SettingsError, match=f"ASYNCTASK_{variable}"):
        read_settings()


def test_the_environment_wins_over_asynctask_toml_which_wins_over_pyproject(empty_folder, monkeypatch):
    (empty_folder / "pyproject.toml").write_text(
        "[tool.asynctask]\ntask_default_retries = 1\nshutdown_timeout = 1.0\nhistory_size = 1\n"
    )
    assert read_settings().task_default_retries == 1
    (empty_folder / "asynctask.toml").write_text("task_default_retries = 2\nshutdown_timeout = 2\n")
    monkeypatch.setenv("ASYNCTASK_TASK_DEFAULT_RETRIES", "3")
    found = read_settings()
    assert (found.task_default_retries, found.shutdown_timeout, found.history_size) == (3, 2.0, 1)


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("asynctask.toml", "no_such_setting = 1", "'no_such_setting'.*task_default_retries"),
        ("asynctask.toml", "task_default_retries = 'x'", "'task_default_retries'"),
        ("asynctask.toml", "this is no toml", r"asynctask\.toml cannot be read"),
        ("pyproject.toml", "[tool.asynctask]\nno_such_setting = 1", "'no_such_setting'"),
        ("pyproject.toml", "[tool]\nasynctask = 3", "must be a table"),
    ],
)
def test_a_wrong_file_is_refused_and_the_key_or_file_named(empty_folder, file, text, says):
    (empty_folder / file).write_text(text)
    with pytest.raises(SettingsError, match=says):
        read_settings()


def test_a_pyproject_that_is_not_ours_to_read_is_left_alone(empty_folder):
    (empty_folder / "pyproject.toml").write_text("[in the middle of an ed")
    assert read_settings() == Settings()


def test_temporary_settings_hold_for_the_block_and_nest():
    before = settings.task_default_retries
    with temporary_settings(task_default_retries=2) as changed:
        assert (changed.task_default_retries, settings.task_default_retries) == (2, 2)
        with temporary_settings(shutdown_timeout=1):
            assert (settings.task_default_retries, settings.shutdown_timeout) == (2, 1.0)
        with pytest.raises(RuntimeError), temporary_settings(task_default_retries=5):
            raise RuntimeError
        assert settings.task_default_retries == 2
    assert settings.task_default_retries == before


@pytest.mark.parametrize(
    "changes", [{"task_default_retries": -1}, {"no_such": 1}, {"shutdown_timeout": "soon"}], ids=str
)
def test_wrong_temporary_settings_are_refused_and_change_nothing(changes):
    before = settings.values
    with pytest.raises(SettingsError, match=next(iter(changes))), temporary_settings(**changes):
        pass
    assert settings.values is before


def test_a_setting_that_does_not_exist_is_an_attribute_error_that_lists_them():
    with pytest.raises(AttributeError, match=r"'no_such'.*shutdown_timeout"):
        settings.no_such


def test_default_retries_are_for_tasks_that_do_not_say():
    attempts: list[str] = []

    def failing(name: str) -> None:
        attempts.append(name)
        raise ValueError("no")

    with temporary_settings(task_default_retries=2):
        for made in (task(failing), task(retries=0)(failing), task(retries=1)(failing)):
            made(str(made.retries), return_state=True)
    assert attempts == ["None"] * 3 + ["0"] + ["1"] * 2


def test_a_wrong_variable_is_told_when_the_first_task_is_defined(empty_folder):
    program = "import asynctask\nprint('imported')\n@asynctask.task\ndef f(): pass\n"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "ASYNCTASK_SHUTDOWN_TIMEOUT": "soon"},
        capture_output=True, text=True, timeout=30, cwd=empty_folder,
    )  # fmt: skip
    assert done.returncode == 1
    assert "ASYNCTASK_SHUTDOWN_TIMEOUT" in done.stderr.splitlines()[-1]

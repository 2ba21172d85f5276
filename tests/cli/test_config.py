"""`asynctask config`: settings with their sources, and one line of asynctask.toml changed at a time."""

import json
import os
import tomllib

import pytest

from asynctask.settings import Settings

FILE = """# the settings of this project

store_url = "memory://#1"   # not a comment: the first #
task_default_retry_delay_seconds = [
  1,  # one
  2,
]  # two delays
"history_size"=5#tight

# the end
"""


def written(folder):
    return (folder / "asynctask.toml").read_text()


def test_view_shows_each_setting_with_its_value_and_its_source(here, folder, monkeypatch):
    (folder / "pyproject.toml").write_text("[tool.asynctask]\nhistory_size = 1\nshutdown_timeout = 2\n")
    (folder / "asynctask.toml").write_text("history_size = 3\nlogging_log_prints = true\n")
    monkeypatch.setenv("ASYNCTASK_HISTORY_SIZE", "4")
    done = here("config", "view", "--json")
    found = {item["name"]: (item["value"], item["source"]) for item in json.loads(done.out)["items"]}
    assert list(found) == list(Settings.__struct_fields__)
    assert found["history_size"] == (4, "environment")
    assert found["shutdown_timeout"] == (2.0, "pyproject.toml")
    assert found["logging_log_prints"] == (True, "asynctask.toml")
    assert found["task_default_retries"] == (0, "default")


def test_view_for_people_names_the_variable_and_hides_passwords(here, monkeypatch):
    monkeypatch.setenv("ASYNCTASK_STORE_URL", "postgresql://me:hunter2@host/db")
    code, out, err = here("config", "view")
    assert (code, err) == (0, "")
    [row] = [line for line in out.splitlines() if line.startswith("store_url ")]
    assert row.endswith("environment (ASYNCTASK_STORE_URL)")
    assert "postgresql://me:" in row
    assert "hunter2" not in out


def test_view_for_programs_hides_passwords_too(here, monkeypatch):
    monkeypatch.setenv("ASYNCTASK_STORE_URL", "postgresql://me:hunter2@host/db")
    assert "hunter2" not in here("config", "view", "--json").out


def test_a_setting_that_is_wrong_is_told_and_is_wrong_use(here, monkeypatch):
    monkeypatch.setenv("ASYNCTASK_HISTORY_SIZE", "many")
    code, out, err = here("config", "view")
    assert (code, out) == (2, "")
    assert err.startswith("asynctask: setting 'history_size' (ASYNCTASK_HISTORY_SIZE)")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("history_size", "7", '"history_size"=5#tight -> history_size = 7#tight'),
        ("HISTORY-SIZE", "7", '"history_size"=5#tight -> history_size = 7#tight'),
        ("ASYNCTASK_HISTORY_SIZE", "7", '"history_size"=5#tight -> history_size = 7#tight'),
        (
            "store_url",
            "memory://#2",
            'store_url = "memory://#1"   # not -> store_url = "memory://#2"   # not',
        ),
        (
            "task_default_retry_delay_seconds",
            "[3, 4.5]",
            "task_default_retry_delay_seconds = [\n  1,  # one\n  2,\n]  # two -> "
            "task_default_retry_delay_seconds = [3.0, 4.5]  # two",
        ),
        ("task_default_retries", "2", "# the end\n -> # the end\ntask_default_retries = 2\n"),
        ("logging_log_prints", "true", "# the end\n -> # the end\nlogging_log_prints = true\n"),
        ("logging_level", "INFO", '# the end\n -> # the end\nlogging_level = "INFO"\n'),
    ],
)
def test_set_changes_one_line_and_no_other(here, folder, name, value, line):
    (folder / "asynctask.toml").write_text(FILE)
    code, _, err = here("config", "set", name, value)
    assert (code, err) == (0, "")
    old, new = line.split(" -> ")
    assert FILE.count(old) == 1
    assert written(folder) == FILE.replace(old, new)


def test_set_makes_the_file_where_there_is_none(here, folder):
    assert here("config", "set", "logging_level", "DEBUG").code == 0
    assert written(folder) == 'logging_level = "DEBUG"\n'
    assert here("config", "view", "--json").out.count('"asynctask.toml"') == 1


@pytest.mark.parametrize("text", ['a"b\\c', "é\t\x7f\u2028", "''' \"\"\" # x", "\x1b]0;x\x07", "[/]"])
def test_a_text_of_any_kind_is_read_back_as_it_was_set(here, folder, text):
    assert here("config", "set", "store_url", f"memory://{text}").code == 0
    assert tomllib.loads(written(folder)) == {"store_url": f"memory://{text}"}


def test_line_ends_of_windows_stay(here, folder):
    (folder / "asynctask.toml").write_bytes(b"# one\r\nhistory_size = 1 # two\r\n")
    assert here("config", "set", "history_size", "2").code == 0
    assert here("config", "set", "shutdown_timeout", "3").code == 0
    after = b"# one\r\nhistory_size = 2 # two\r\nshutdown_timeout = 3.0\r\n"
    assert (folder / "asynctask.toml").read_bytes() == after


def test_a_file_without_a_last_line_end_gets_one_before_the_new_line(here, folder):
    (folder / "asynctask.toml").write_text("history_size = 1")
    assert here("config", "set", "shutdown_timeout", "3").code == 0
    assert written(folder) == "history_size = 1\nshutdown_timeout = 3.0\n"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("nope", "1", "there is no setting 'nope'; there are: "),
        ("history_size", "many", "setting 'history_size'"),
        ("history_size", "-1", "must be not negative"),
        ("logging_level", "LOUD", "must be one of DEBUG"),
        ("thread_pool_max_workers", "0", "must be at least 1"),
        ("store_url", "runs.db", "store 'runs.db' cannot be opened: there are memory://"),
        ("home", "\udcff", "holds text in UTF-8"),
    ],
)
def test_a_wrong_value_changes_nothing(here, folder, name, value, told):
    (folder / "asynctask.toml").write_text(FILE)
    code, out, err = here("config", "set", name, "--", value) if value[0] == "-" else here("config", "set", name, value)
    assert (code, out) == (2, "")
    assert told in err
    assert written(folder) == FILE


def test_set_refuses_a_file_that_is_not_toml_and_leaves_it(here, folder):
    (folder / "asynctask.toml").write_text("history_size = = 3")
    code, _, err = here("config", "set", "history_size", "4")
    assert (code, "cannot be read" in err, written(folder)) == (2, True, "history_size = = 3")


def test_a_line_inside_a_text_is_not_taken_for_a_setting(here, folder):
    text = 'store_url = """memory://\nhistory_size = 3\n"""\n'
    (folder / "asynctask.toml").write_text(text)
    assert here("config", "set", "history_size", "4").code == 0
    assert written(folder) == f"{text}history_size = 4\n"


def test_unset_takes_out_the_lines_of_one_setting_and_no_other(here, folder):
    (folder / "asynctask.toml").write_text(FILE)
    assert here("config", "unset", "task_default_retry_delay_seconds").code == 0
    gone = "task_default_retry_delay_seconds = [\n  1,  # one\n  2,\n]  # two delays\n"
    assert written(folder) == FILE.replace(gone, "")


def test_unset_takes_out_a_setting_that_no_longer_exists(here, folder):
    (folder / "asynctask.toml").write_text("old = 1\nhistory_size = 2\n")
    assert here("config", "unset", "old").code == 0
    assert written(folder) == "history_size = 2\n"


def test_unset_of_what_is_not_set_is_wrong_use(here, folder):
    code, _, err = here("config", "unset", "history_size")
    assert (code, err) == (2, "asynctask: asynctask.toml in this folder does not set 'history_size'\n")
    assert not (folder / "asynctask.toml").exists()


def test_set_and_unset_print_documents(here):
    code, out, err = here("config", "set", "history_size", "4", "--json")
    assert (code, json.loads(out), err) == (0, {"name": "history_size", "value": 4, "source": "asynctask.toml"}, "")
    url = "postgresql://me:hunter2@host/x"
    assert "hunter2" not in here("config", "set", "store_url", url, "--json").out
    code, out, err = here("config", "unset", "history_size", "--json")
    assert (code, json.loads(out), err) == (0, {"name": "history_size", "value": None, "source": "asynctask.toml"}, "")


def test_set_says_when_the_environment_goes_before_the_file(here, monkeypatch):
    monkeypatch.setenv("ASYNCTASK_HISTORY_SIZE", "3")
    code, _, err = here("config", "set", "history_size", "4")
    assert (code, "ASYNCTASK_HISTORY_SIZE" in err) == (0, True)


def test_the_file_keeps_its_permissions_and_its_link_and_nothing_is_left_beside_it(here, folder):
    (folder / "real.toml").write_text("history_size = 1\n")
    (folder / "real.toml").chmod(0o640)
    (folder / "asynctask.toml").symlink_to("real.toml")
    assert here("config", "set", "history_size", "2").code == 0
    assert (folder / "asynctask.toml").is_symlink()
    assert (folder / "real.toml").read_text() == "history_size = 2\n"
    assert (folder / "real.toml").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(folder)) == ["asynctask.toml", "real.toml"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(here, folder, monkeypatch):
    (folder / "asynctask.toml").write_text(FILE)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, _, err = here("config", "set", "history_size", "9")
    assert (code, "No space left" in err, written(folder)) == (1, True, FILE)
    assert os.listdir(folder) == ["asynctask.toml"]

"""`asynctask runs`: listed, looked at, followed and deleted, on a real store."""

import json
import logging
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from asynctask import flow, settings, task
from asynctask.cli.finding import find_run
from asynctask.cli.opened import opened
from asynctask.runs import current_run
from asynctask.scopes import close_default, runtime_here
from asynctask.stores.base import LogEntry
from testkit import running


@task(tags=["a", "b"])
def double(n):
    entry = LogEntry(time.time(), logging.WARNING, "asynctask.task_runs", f"doubling {n} [/]\x1b[31m")
    runtime_here().store.keep_log(current_run.get().number, entry)
    return n * 2


@task(name="[/]\x1b]0;x\x07[link=http://x]", tags=["[bold]\x1b[31m"])
def hostile(text):
    raise ValueError("[/] \x1b]0;x\x07[link=http://x]\x9b31m\u202e")


@task(task_run_name="one of many")
def named():
    return 1


@flow
def outer():
    double(1)
    named()
    return double(2)


@pytest.fixture
def kept(folder):
    """A store with seven runs: outer (double, named, double), named, double, hostile; in this order."""
    settings._values = None
    close_default()
    try:
        outer()
        named()
        double(3)
        hostile("\x1b]0;y\x07", return_state=True)
    finally:
        close_default()
    return folder


def items(here, *words):
    code, out, err = here("runs", "ls", "--json", *words)
    assert (code, err) == (0, "")
    return json.loads(out)["items"]


def names(here, *words):
    return [item["task_name"] for item in items(here, *words)]


HOSTILE = "[/]\x1b]0;x\x07[link=http://x]"


def test_ls_has_runs_of_tasks_the_newest_first_and_flows_when_asked(here, kept):
    assert names(here) == [HOSTILE, "double", "named", "double", "named", "double"]
    assert names(here, "--flows") == ["outer"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--state", "failed"], [HOSTILE]),
        (["--state", "FAILED"], [HOSTILE]),
        (["--state", "cached"], []),
        (["--state", "timed-out"], []),
        (["--state", "completed", "--task", "named"], ["named", "named"]),
        (["--task", "double"], ["double"] * 3),
        (["--tag", "a"], ["double"] * 3),
        (["--tag", "a", "--tag", "b"], ["double"] * 3),
        (["--tag", "a", "--tag", "c"], []),
        (["--name", "of many"], ["named", "named"]),
        (["--flow", "@outer"], ["double", "named", "double"]),
        (["--since", "1h"], [HOSTILE, "double", "named", "double", "named", "double"]),
        (["--before", "1h"], []),
        (["--since", "2100-01-01"], []),
        (["--limit", "2"], [HOSTILE, "double"]),
    ],
    ids=" ".join,
)
def test_ls_filters(here, kept, words, found):
    if words[-1] == "@outer":
        [outer_run] = items(here, "--flows")
        words = ["--flow", outer_run["name"]]
    assert names(here, *words) == found


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--state", "nope"], "--state 'nope' is no state; there are: Scheduled, Pending"),
        (["--since", "yesterday"], "--since must be a time such as"),
        (["--since", "2h3"], "--since must be a duration"),
        (["--before", "9" * 30 + "d"], "--before"),
        (["--limit", "0"], "--limit must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_ls_tells_a_filter_that_means_nothing(here, kept, words, told):
    code, out, err = here("runs", "ls", *words)
    assert (code, out) == (2, "")
    assert told in err


def test_pages_follow_each_other_by_cursor_until_there_is_no_next(here, kept):
    seen, cursor = [], []
    for _ in range(3):
        page = json.loads(here("runs", "ls", "--json", "--limit", "2", *cursor).out)
        seen += [item["id"] for item in page["items"]]
        cursor = ["--cursor", page["next"] or ""]
    assert page["next"] is None
    assert seen == [item["id"] for item in items(here)]


def test_a_document_has_the_fields_of_the_python_api(here, kept):
    with opened(None) as client:
        run = find_run(client, "@last-failed")
    item = json.loads(here("runs", "inspect", "@last-failed", "--json").out)
    assert item.keys() == set(type(run).__struct_fields__)
    assert (item["id"], item["state_type"], item["is_flow"]) == (str(run.id), "FAILED", False)
    assert item["state"] == item["states"][-1]
    assert item["state"].keys() == {"type", "name", "timestamp", "message"}
    assert datetime.fromisoformat(item["state"]["timestamp"]) == run.end_time
    assert [state["name"] for state in item["states"]] == ["Pending", "Running", "Failed"]
    assert items(here, "--limit", "1") == [item]


def test_a_pipe_gets_aligned_text_with_whole_ids(here, kept):
    code, out, err = here("runs", "ls")
    assert (code, err) == (0, "")
    heading, *rows = out.splitlines()
    assert heading.split() == ["ID", "NAME", "STATE", "MADE", "RUN", "TIME", "TAGS"]
    assert [row[:36] for row in rows] == [item["id"] for item in items(here)]
    assert {row.index(item["state_name"]) for row, item in zip(rows, items(here), strict=True)} == {
        heading.index("STATE")
    }


@pytest.mark.parametrize("words", [["ls"], ["inspect", "@last"], ["watch", "@last"], ["logs", "@last"]], ids=" ".join)
def test_nothing_that_a_terminal_obeys_comes_from_a_run(here, kept, words):
    _, out, err = here("runs", *words)
    shown = out + err
    assert all(one.isprintable() or one == "\n" for one in shown)
    if words[0] != "logs":
        assert "[/]]0;x[link=http://x]" in shown


def test_inspect_shows_parameters_history_and_traceback(here, kept):
    code, out, err = here("runs", "inspect", "@last-failed")
    assert (code, err) == (0, "")
    assert "text = " in out
    assert [line.split()[1] for line in out.splitlines() if line[2:3] == ":" and line[:2].isdigit()] == [
        "Pending",
        "Running",
        "Failed",
    ]
    assert "Traceback (most recent call last)" in out
    assert out.rstrip().splitlines()[-1].startswith("ValueError: [/]")


def test_a_run_is_found_by_id_by_either_end_of_it_by_name_and_by_sign(here, kept):
    newest, second = items(here, "--limit", "2")
    whole = second["id"]
    for text in (whole, whole.upper(), whole.replace("-", ""), whole[-12:], whole[-6:], second["name"]):
        assert json.loads(here("runs", "inspect", text, "--json").out)["id"] == whole
    assert json.loads(here("runs", "inspect", "@last", "--json").out)["id"] == newest["id"]
    [flow_run] = items(here, "--flows")
    for text in (flow_run["id"], flow_run["name"]):
        assert json.loads(here("runs", "inspect", text, "--json").out)["task_name"] == "outer"


def test_the_beginning_of_an_id_finds_a_run_where_only_one_begins_so(here, folder):
    settings._values = None
    close_default()
    named()
    close_default()
    [run] = items(here)
    for length in (4, 12, 20):
        assert json.loads(here("runs", "inspect", run["id"][:length], "--json").out)["id"] == run["id"]


def test_what_could_mean_several_runs_is_refused_with_their_ids(here, kept):
    code, out, err = here("runs", "inspect", "one of many")
    assert (code, out) == (2, "")
    assert err.startswith("asynctask: 'one of many' could mean 2 runs; write more of the id: ")
    for item in items(here, "--task", "named"):
        assert item["id"] in err


@pytest.mark.parametrize("text", ["nope", "abcdef", "01234567-89ab-7def-8123-456789abcdef", "double"])
def test_a_run_that_is_not_there_is_a_failure(here, kept, text):
    code, out, err = here("runs", "inspect", text)
    assert (code, out) == (1, "")
    assert text in err


def test_an_unknown_sign_is_wrong_use(here, kept):
    assert here("runs", "inspect", "@first").code == 2


def test_where_nothing_was_kept_yet_there_are_no_runs_and_no_store_is_made(here, folder):
    assert here("runs", "ls") == (0, "", "asynctask: there are no such runs of tasks; --flows lists those of flows\n")
    assert here("runs", "ls", "--json") == (0, '{"items":[],"next":null}\n', "")
    assert here("runs", "inspect", "@last").code == 1
    assert here("runs", "delete", "--older-than", "1d", "--yes") == (0, "0 runs deleted\n", "")
    assert not (folder / "home").exists()


def test_logs_are_shown_with_time_and_level_in_order(here, kept):
    [newest, *_] = items(here, "--task", "double")
    code, out, err = here("runs", "logs", newest["id"])
    assert (code, err) == (0, "")
    assert [line.split(None, 2)[2] for line in out.splitlines()] == ["WARNING  doubling 3 [/][31m"]
    [entry] = json.loads(here("runs", "logs", newest["id"], "--json").out)["items"]
    assert (entry["level"], entry["logger"], entry["message"]) == (
        "WARNING",
        "asynctask.task_runs",
        "doubling 3 [/]\x1b[31m",
    )
    assert abs(datetime.fromisoformat(entry["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=5)


def test_watching_a_run_that_is_over_shows_its_history_and_says_how_it_ended(here, kept):
    [completed, *_] = items(here, "--task", "double")
    code, out, _ = here("runs", "watch", completed["id"])
    assert code == 0
    assert [line.split()[-1] for line in out.splitlines()[1:]] == ["Pending", "Running", "Completed"]
    code, out, _ = here("runs", "watch", "@last-failed", "--json")
    assert code == 1
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["Pending", "Running", "Failed"]


SLOW = """
import sys
from asynctask import task

@task
def slow():
    print("ready", flush=True)
    sys.stdin.readline()

slow()
"""


def test_watch_follows_a_run_of_another_process_to_its_end(folder):
    (folder / "slow.py").write_text(SLOW)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with running([sys.executable, "slow.py"], **pipes) as runner:
        assert runner.stdout.readline() == "ready\n"
        while '"Running"' not in listed():
            pass
        with running([sys.executable, "-m", "asynctask", "runs", "watch", "@last", "--json"], **pipes) as one:
            seen = [json.loads(one.stdout.readline())["name"] for _ in range(2)]
            runner.communicate("\n", timeout=20)
            seen += [json.loads(line)["name"] for line in one.communicate(timeout=20)[0].splitlines()]
    assert (seen, one.returncode) == (["Pending", "Running", "Completed"], 0)


def listed():
    return subprocess.run(
        [sys.executable, "-m", "asynctask", "runs", "ls", "--json"], capture_output=True, text=True, timeout=20
    ).stdout


def test_watch_gives_up_after_its_timeout(folder, here):
    (folder / "slow.py").write_text(SLOW)
    with running([sys.executable, "slow.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout.readline() == "ready\n"
        while '"Running"' not in listed():
            pass
        code, _, err = here("runs", "watch", "@last", "--timeout", "0.3")
        runner.communicate("\n", timeout=20)
    assert (code, err.endswith(" is still Running after 0.3 s\n")) == (1, True)


def test_an_attempt_that_goes_on_has_no_run_time_yet(folder, here):
    (folder / "slow.py").write_text(SLOW)
    with running([sys.executable, "slow.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout.readline() == "ready\n"
        while '"Running"' not in listed():
            pass
        shown = here("runs", "ls").out + here("runs", "inspect", "@last").out
        runner.communicate("\n", timeout=20)
    assert "Running" in shown
    assert " ms" not in shown
    assert "attempt" not in shown
    assert "s in 1 attempt\n" in here("runs", "inspect", "@last").out


def test_delete_takes_the_named_run_and_no_other(here, kept):
    before = [item["id"] for item in items(here)]
    assert here("runs", "delete", before[0]) == (0, "1 run deleted\n", "")
    assert [item["id"] for item in items(here)] == before[1:]


def test_deleting_several_needs_a_yes(here, kept):
    ids = [item["id"] for item in items(here)][:2]
    code, out, err = here("runs", "delete", *ids)
    assert (code, out, err) == (2, "", "asynctask: this deletes 2 runs: add --yes\n")
    assert len(items(here)) == 6
    assert json.loads(here("runs", "delete", *ids, "--yes", "--json").out) == {"deleted": 2}
    assert len(items(here)) == 4


def test_nothing_is_deleted_if_one_of_several_is_not_there(here, kept):
    newest = items(here, "--limit", "1")[0]["id"]
    assert here("runs", "delete", newest, "nope", "--yes").code == 1
    assert len(items(here)) == 6


def test_delete_by_age_spares_what_is_younger(here, kept):
    assert here("runs", "delete", "--older-than", "1h", "--yes").out == "0 runs deleted\n"
    assert here("runs", "delete", "--older-than", "0s", "--yes").out == "7 runs deleted\n"
    assert items(here) == []


@pytest.mark.parametrize("words", [[], ["@last", "--older-than", "1d"], ["--older-than", "1d"], ["--older-than", "x"]])
def test_delete_wants_to_know_exactly_what(here, kept, words):
    assert here("runs", "delete", *words).code == 2
    assert len(items(here)) == 6

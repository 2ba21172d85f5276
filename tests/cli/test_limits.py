"""`asynctask concurrency-limit` and `global-concurrency-limit`, on a real store, beside processes that hold slots."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from asynctask.limit_records import ConcurrencyLimit, GlobalConcurrencyLimit
from testkit import running


def made(here, *words):
    code, out, err = here(*words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


# -- limits of tags --


def test_a_tag_is_given_a_limit_in_a_store_that_is_made_for_it_and_in_the_next_process(command, folder):
    assert command("concurrency-limit", "create", "db", "10") == (0, "tag 'db': at most 10 runs at once\n", "")
    assert (folder / "home").exists()
    code, out, _ = command("concurrency-limit", "ls", "--json")
    [one] = json.loads(out)["items"]
    assert (code, one["tag"], one["concurrency_limit"]) == (0, "db", 10)


def test_a_limit_is_shown_by_inspect_and_by_read_alike(here, folder):
    here("concurrency-limit", "create", "db", "3")
    shown = here("concurrency-limit", "inspect", "db")
    assert shown == (0, "tag:     db\nlimit:   3\nin use:  0\nwaiting: 0\n", "")
    assert here("concurrency-limit", "read", "db") == shown


def test_a_document_has_the_fields_of_the_python_api(here, folder):
    tag = made(here, "concurrency-limit", "create", "db", "3")
    assert list(tag) == list(ConcurrencyLimit.__struct_fields__)
    assert made(here, "concurrency-limit", "inspect", "db") == tag
    assert made(here, "concurrency-limit", "reset", "db") == tag
    assert made(here, "concurrency-limit", "ls") == {"items": [tag], "next": None}
    named = made(here, "gcl", "create", "api", "--limit", "3")
    assert list(named) == list(GlobalConcurrencyLimit.__struct_fields__)
    assert made(here, "gcl", "inspect", "api") == named
    assert made(here, "gcl", "ls") == {"items": [named], "next": None}


def test_a_limit_is_replaced_reset_and_deleted(here, folder):
    here("concurrency-limit", "create", "db", "3")
    assert here("concurrency-limit", "create", "db", "1").out == "tag 'db': at most 1 run at once\n"
    assert here("concurrency-limit", "create", "other", "0").code == 0
    assert here("concurrency-limit", "ls").out.split() == [
        *("TAG", "LIMIT", "IN", "USE", "WAITING"),
        *("db", "1", "0", "0", "other", "0", "0", "0"),
    ]
    assert here("concurrency-limit", "reset", "db") == (0, "tag 'db': every slot is free\n", "")
    assert here("concurrency-limit", "delete", "db") == (0, "tag 'db': no limit any more\n", "")
    assert [one["tag"] for one in made(here, "concurrency-limit", "ls")["items"]] == ["other"]
    assert made(here, "concurrency-limit", "delete", "other") == {"deleted": 1}
    assert here("concurrency-limit", "ls") == (0, "", "asynctask: no tag has a limit\n")


@pytest.mark.parametrize("verb", ["inspect", "read", "delete", "reset"])
def test_a_tag_without_a_limit_is_a_failure_that_names_it(here, folder, verb):
    told = "asynctask: there is no concurrency limit for the tag 'nope'"
    assert here("concurrency-limit", verb, "nope") == (1, "", f"{told}: nothing has been kept yet\n")
    here("concurrency-limit", "create", "db", "3")
    assert here("concurrency-limit", verb, "nope") == (1, "", f"{told}\n")


# -- limits with a name --


def test_a_limit_with_a_name_is_made_changed_and_deleted(here, folder):
    assert here("gcl", "create", "api", "--limit", "1") == (0, "limit 'api': 1 slot\n", "")
    words = ("gcl", "create", "mail", "--limit", "10", "--slot-decay-per-second", "2.5", "--disable")
    told = "limit 'mail': 10 slots, of which 2.5 a second come back; disabled, so that it limits nothing\n"
    assert here(*words) == (0, told, "")
    assert [line.split() for line in here("gcl", "ls").out.splitlines()] == [
        ["NAME", "LIMIT", "IN", "USE", "WAITING", "BACK", "A", "SECOND", "ACTIVE"],
        ["api", "1", "0", "0", "yes"],
        ["mail", "10", "0", "0", "2.5", "no"],
    ]
    assert here("gcl", "inspect", "mail").out.splitlines() == [
        *("name:      mail", "limit:     10", "in use:    0", "waiting:   0"),
        *("active:    no: it limits nothing", "come back: 2.5 a second"),
    ]
    assert here("gcl", "delete", "mail") == (0, "limit 'mail' is deleted\n", "")
    assert made(here, "gcl", "delete", "api") == {"deleted": 1}
    told = "asynctask: there are no global limits; `asynctask concurrency-limit ls` lists those of tags\n"
    assert here("gcl", "ls") == (0, "", told)


@pytest.mark.parametrize(
    ("words", "after"),
    [
        (["update", "api", "--limit", "7"], (7, 1.5, True)),
        (["update", "api", "--slot-decay-per-second", "0"], (3, 0.0, True)),
        (["update", "api", "--disable"], (3, 1.5, False)),
        (["disable", "api"], (3, 1.5, False)),
        (["update", "off", "--enable", "--limit", "0"], (0, 0.0, True)),
        (["enable", "off"], (3, 0.0, True)),
        (["enable", "api"], (3, 1.5, True)),
        (["create", "api", "--limit", "4"], (4, 0.0, True)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_given_is_changed_and_the_rest_stays(here, folder, words, after):
    here("gcl", "create", "api", "--limit", "3", "--slot-decay-per-second", "1.5")
    here("gcl", "create", "off", "--limit", "3", "--disable")
    changed = made(here, "gcl", *words)
    assert (changed["limit"], changed["slot_decay_per_second"], changed["active"]) == after
    assert made(here, "gcl", "inspect", words[1]) == changed


def test_the_short_name_of_the_group_and_the_long_one_mean_the_same(here, folder):
    here("global-concurrency-limit", "create", "api", "--limit", "3")
    assert here("gcl", "inspect", "api") == here("global-concurrency-limit", "inspect", "api")
    assert here("gcl", "--help") == here("global-concurrency-limit", "--help")
    assert "(gcl)" in here("--help").out


@pytest.mark.parametrize("line", ["inspect", "delete", "enable", "disable", "update --limit 2"])
def test_a_name_without_a_limit_is_a_failure_that_names_it(here, folder, line):
    told = "asynctask: there is no global concurrency limit 'nope'"
    verb, *options = line.split()
    assert here("gcl", verb, "nope", *options) == (1, "", f"{told}: nothing has been kept yet\n")
    here("concurrency-limit", "create", "nope", "3")
    assert here("gcl", verb, "nope", *options) == (1, "", f"{told}\n")


def test_looking_makes_no_store(here, folder):
    for words in (["concurrency-limit", "ls"], ["gcl", "ls"]):
        assert here(*words).code == 0
        assert made(here, *words) == {"items": [], "next": None}
    assert not (folder / "home").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["concurrency-limit", "create", "db"], "CONCURRENCY_LIMIT requires an argument"),
        (["concurrency-limit", "create", "db", "many"], "many"),
        (["concurrency-limit", "create", "db", "3.5"], "a whole number is needed, not '3.5'"),
        (["gcl", "create", "api", "--limit", "1.e999"], "--limit: a whole number is needed, not '1.e999'"),
        (["concurrency-limit", "create", "db", "-1"], "not negative, and at most 2147483647, not -1"),
        (["concurrency-limit", "create", "", "1"], "a tag, a string that is not empty"),
        (["concurrency-limit", "inspect", "db", "--timeout", "3"], "--timeout goes with --watch"),
        (["gcl", "inspect", "api", "--watch", "--timeout", "-1"], "--timeout must not be negative"),
        (["gcl", "create", "api"], "--limit requires an argument"),
        (["gcl", "create", "api", "--limit=-1"], "the limit 'api' must be a whole number that is not negative"),
        (["gcl", "create", "tag:db", "--limit", "1"], "use create_concurrency_limit('db', ...)"),
        (
            ["gcl", "create", "api", "--limit", "1", "--slot-decay-per-second", "nan"],
            "finite and not negative, not nan",
        ),
        (["gcl", "update", "api"], "say what to change: --limit, --slot-decay-per-second, --enable or --disable"),
        (["gcl", "update", "api", "--enable", "--disable"], "--enable and --disable exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_two_and_makes_no_limit(here, folder, words, told):
    code, out, err = here(*words)
    assert (code, out) == (2, "")
    assert told in err
    for group in ("concurrency-limit", "gcl"):
        assert made(here, group, "ls")["items"] == []


def test_a_store_may_be_named(here, folder):
    url = f"sqlite:///{folder}/here.db"
    assert here("concurrency-limit", "create", "db", "3", "--store", url).code == 0
    assert here("--store", url, "gcl", "create", "api", "--limit", "3").code == 0
    assert [one["tag"] for one in made(here, "concurrency-limit", "ls", "--store", url)["items"]] == ["db"]
    assert made(here, "concurrency-limit", "ls")["items"] == []


# -- holders and the line --

WORK = """
import sys
from asynctask import task

@task(tags=["db"], task_run_name="\\x1b[31mw-{n}[/]")
def work(n):
    sys.stdin.readline()

futures = [work.submit(n) for n in range(3)]
print("ready", flush=True)
for future in futures:
    future.wait()
print("over", flush=True)
sys.stdin.readline()
"""


@contextmanager
def at_work(here, folder) -> Iterator[subprocess.Popen[str]]:
    """A process with a run that holds the only slot of "db" and two that wait; each line it reads lets one go."""
    (folder / "work.py").write_text(WORK)
    here("concurrency-limit", "create", "db", "1")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with running([sys.executable, "work.py"], **pipes) as child:
        try:
            assert child.stdout.readline() == "ready\n"
            while made(here, "concurrency-limit", "inspect", "db")["waiting"] != 2:
                pass
            yield child
        finally:
            child.kill()


def release(child, count=1):
    child.stdin.write("\n" * count)
    child.stdin.flush()


def test_who_holds_and_who_waits_in_another_process_is_told_with_places(here, folder):
    before = datetime.now(UTC)
    with at_work(here, folder) as child:
        found = made(here, "concurrency-limit", "inspect", "db")
        shown = here("concurrency-limit", "inspect", "db").out
        listed = here("concurrency-limit", "ls").out
    [holder] = found["holders"]
    assert found["active_slots"] == [holder["run_id"]]
    assert [one["name"] for one in (holder, *found["line"])] == [f"\x1b[31mw-{n}[/]" for n in range(3)]
    for one in (holder, *found["line"]):
        assert (one["slots"], one["pid"]) == (1, child.pid)
        since = datetime.fromisoformat(one["since"])
        assert before - timedelta(seconds=1) < since < datetime.now(UTC) + timedelta(seconds=1)
    assert listed.split()[5:] == ["db", "1", "1", "2"]
    facts, holders, line = (part.splitlines() for part in shown.split("\n\n"))
    assert facts == ["tag:     db", "limit:   1", "in use:  1", "waiting: 2"]
    assert holders[0].split() == ["HELD", "BY", "SLOTS", "FOR", "PROCESS", "RUN"]
    assert re.fullmatch(rf"\[31mw-0\[/\]  1 +\d+ s +{child.pid} +{holder['run_id']}", holders[1])
    assert line[0].split() == ["PLACE", "IN", "LINE", "SLOTS", "FOR", "PROCESS", "RUN"]
    for place, one in enumerate(found["line"], 1):
        pattern = rf"{place} +\[31mw-{place}\[/\]  1 +\d+ s +{child.pid} +{one['run_id']}"
        assert re.fullmatch(pattern, line[place])


BLOCKS = """
import os, sys, threading
from asynctask import concurrency

def block():
    with concurrency("api"):
        os.write(1, b"in\\n")
        go.wait()

go = threading.Event()
threads = [threading.Thread(target=block, name=f"thread {n}") for n in range(4)]
for thread in threads:
    thread.start()
sys.stdin.readline()
go.set()
for thread in threads:
    thread.join()
"""


def test_a_limit_changed_from_outside_serves_those_who_wait_in_a_process(here, folder):
    (folder / "blocks.py").write_text(BLOCKS)
    here("gcl", "create", "api", "--limit", "1")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with running([sys.executable, "blocks.py"], **pipes) as child:
        assert child.stdout.readline() == "in\n"
        while (found := made(here, "gcl", "inspect", "api"))["waiting"] != 3:
            pass
        here("gcl", "update", "api", "--limit", "2")
        assert child.stdout.readline() == "in\n"
        here("gcl", "disable", "api")
        assert child.stdout.readline() + child.stdout.readline() == "in\nin\n"
        child.communicate("\n", timeout=20)
    people = [*found["holders"], *found["line"]]
    assert {one["name"] for one in people} == {f"thread {n}" for n in range(4)}
    assert {(one["run_id"], one["pid"]) for one in people} == {(None, child.pid)}
    assert (found["active_slots"], child.returncode) == (1, 0)


def listed_as_waiting(here, count):
    """The runs that wait for slots, once they are so many; the newest first."""
    while True:
        runs = made(here, "runs", "ls", "--state", "awaitingconcurrencyslot")["items"]
        if len(runs) == count:
            return runs


def test_a_run_that_waits_for_a_slot_says_so_in_the_list_and_when_it_is_inspected(here, folder):
    with at_work(here, folder):
        runs = listed_as_waiting(here, 2)
        listed = here("runs", "ls").out
        inspected = here("runs", "inspect", runs[0]["id"]).out
    assert "WAITS FOR" in listed.splitlines()[0]
    assert [run["name"][-6:] for run in runs] == ["w-2[/]", "w-1[/]"]
    for run, place in zip(runs, ("second", "first"), strict=True):
        assert re.fullmatch(rf'tag "db", {place} in line, held by \x1b\[31mw-0\[/\] for \d+ s', run["waiting_on"])
        assert re.search(rf'{run["id"]}.* tag "db", {place} in line$', listed, re.MULTILINE)
    assert re.search(r'^waits for: +.*"db"', inspected, re.MULTILINE)


WATCH = [sys.executable, "-m", "asynctask", "concurrency-limit", "inspect", "db", "--watch"]


def test_the_place_of_a_run_is_the_one_it_has_now(here, folder):
    with at_work(here, folder) as child:
        listed_as_waiting(here, 2)  # so that what is kept of them is older than what follows
        release(child)
        [last] = listed_as_waiting(here, 1)
        inspected = made(here, "runs", "inspect", last["id"])
    for run in (last, inspected):
        assert re.fullmatch(r'tag "db", first in line, held by \x1b\[31mw-1\[/\] for \d+ s', run["waiting_on"])


def interrupted(watcher):
    watcher.send_signal(signal.SIGINT)
    out, err = watcher.communicate(timeout=20)
    assert watcher.returncode == 130
    return out, err


def without_times(document):
    """What may change: all but the times, which are told anew."""
    people = [[(one["name"], one["slots"], one["pid"]) for one in document[part]] for part in ("holders", "line")]
    return people, document["in_use"], document["waiting"]


def test_watching_into_a_pipe_tells_each_change_and_no_more_until_an_interrupt(here, folder):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with at_work(here, folder) as child, running([*WATCH, "--json"], **pipes) as watcher:
        seen = [json.loads(watcher.stdout.readline())]

        def read_until(holders, waiting):
            while ([one["name"][-6:] for one in seen[-1]["holders"]], seen[-1]["waiting"]) != (holders, waiting):
                seen.append(json.loads(watcher.stdout.readline()))

        read_until(["w-0[/]"], 2)
        release(child)
        read_until(["w-1[/]"], 1)
        release(child)
        read_until(["w-2[/]"], 0)
        release(child)
        read_until([], 0)
        assert child.stdout.readline() == "over\n"
        assert interrupted(watcher) == ("", "asynctask: interrupted\n")
    assert seen[-1]["in_use"] == 0
    assert all(without_times(one) != without_times(other) for one, other in pairwise(seen))


def test_watching_into_a_pipe_prints_the_whole_again_when_something_changed(here, folder):
    pipes = {"stdout": subprocess.PIPE, "text": True}
    with at_work(here, folder) as child, running(WATCH, **pipes) as watcher:
        lines = [watcher.stdout.readline()]
        while "waiting: 2\n" not in lines:
            lines.append(watcher.stdout.readline())
        release(child)
        while "waiting: 1\n" not in lines:
            lines.append(watcher.stdout.readline())
        watcher.terminate()
        watcher.communicate()
    text = "".join(lines)
    assert text.startswith("tag:     db\nlimit:   1\n")
    assert "\n\n\ntag:     db\nlimit:   1\n" in text


def test_watching_ends_by_itself_after_its_timeout(here, folder):
    here("concurrency-limit", "create", "db", "1")
    shown = here("concurrency-limit", "inspect", "db")
    assert here("concurrency-limit", "inspect", "db", "--watch", "--timeout", "0.5") == shown
    assert here("concurrency-limit", "inspect", "db", "--watch", "--timeout", "0") == shown


def test_watching_ends_when_the_limit_is_deleted(here, folder):
    here("gcl", "create", "api", "--limit", "1")
    watch = [sys.executable, "-m", "asynctask", "gcl", "inspect", "api", "--watch"]
    with running(watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout.readline() == "name:    api\n"
        here("gcl", "delete", "api")
        _, err = watcher.communicate(timeout=20)
    assert (watcher.returncode, err) == (1, "asynctask: there is no global concurrency limit 'api'\n")


def test_on_a_terminal_the_view_is_drawn_again_and_fits_and_shows_names_only_as_text(here, folder):
    ours, its = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "20"}
    seen = b""

    def read_until(pattern):
        nonlocal seen
        while not re.search(pattern, plain(seen)):
            seen += os.read(ours, 65536)

    with (
        at_work(here, folder) as child,
        running(WATCH, stdout=its, stderr=its, stdin=its, env=environment) as watcher,
    ):
        os.close(its)
        holder, line = r"HELD BY[\s\S]+\[31mw-0\[/\]", r"PLACE[\s\S]+1 +\[31mw-1[\s\S]+2 +\[31mw-2"
        read_until(rf"in use 1  waiting 2[\s\S]+{holder}[\s\S]+{line}")
        release(child)
        read_until(r"in use 1  waiting 1[\s\S]+\[31mw-1\[/\][\s\S]+1 +\[31mw-2")
        release(child, 2)
        read_until(r"in use 0  waiting 0")
        watcher.send_signal(signal.SIGINT)
        read_until("asynctask: interrupted")
        assert watcher.wait(20) == 130
    os.close(ours)
    assert b"\x1b[31mw" not in seen
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")  # the cursor is there again
    frames = re.split(rb"\x1b\[1A", seen)
    assert len(frames) > 3


def plain(seen):
    return re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z])", "", seen.decode(errors="replace"))

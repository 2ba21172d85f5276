"""`asynctask store` and `asynctask cache`, on a real store."""

import json
import time

import pytest

from asynctask import settings, task
from asynctask.blocking import drive
from asynctask.cli.opened import opened
from asynctask.scopes import Runtime, close_default
from asynctask.stores.base import StoredResult


@task
def double(n):
    return n * 2


@pytest.fixture
def kept(folder):
    """A store with three runs, and three results: two of `double`, one of them expired, and one of a hostile name."""
    settings._values = None
    close_default()
    for n in range(3):
        double(n)
    close_default()
    runtime = Runtime()
    runtime.open()
    now = time.time()
    results = [
        StoredResult(
            key=key, payload=b"x" * 2000, serializer="pickle", task_name=name, run_number=1, created=made, expires=end
        )
        for key, name, made, end in [
            ("first", "double", now - 60, now - 30),
            ("second", "double", now - 50, None),
            ("third[/]", "\x1b]0;x\x07", now - 40, now + 3600),
        ]
    ]  # fmt: skip
    drive(runtime.blocking_port.ask(runtime.store.write_results(results)))
    runtime.close()
    return folder


def keys(here, *words):
    code, out, err = here("cache", "ls", "--json", *words)
    assert (code, err) == (0, "")
    return [item["key"] for item in json.loads(out)["items"]]


def test_the_cache_is_listed_the_newest_first(here, kept):
    assert keys(here) == ["third[/]", "second", "first"]
    assert keys(here, "--task", "double") == ["second", "first"]
    assert keys(here, "--limit", "1") == ["third[/]"]


def test_the_table_of_results_shows_nothing_that_a_terminal_obeys(here, kept):
    code, out, err = here("cache", "ls")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["KEY", "TASK", "MADE", "EXPIRES", "SIZE", "SERIALIZER"]
    assert "third[/]  ]0;x " in out
    assert all(one.isprintable() or one == "\n" for one in out)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--task", "double"], ["third[/]"]),
        (["--key", "second"], ["third[/]", "first"]),
        (["--expired"], ["third[/]", "second"]),
        (["--expired", "--key", "second"], ["third[/]", "second", "first"]),
        (["--yes"], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_clearing_deletes_what_fits_all_that_is_given(here, kept, words, left):
    code, out, _ = here("cache", "clear", *words, "--json")
    assert (code, json.loads(out)) == (0, {"deleted": 3 - len(left)})
    assert keys(here) == left


def test_clearing_everything_needs_a_yes(here, kept):
    assert here("cache", "clear").code == 2
    assert len(keys(here)) == 3


def test_info_says_where_the_store_is_and_what_it_holds(here, kept):
    found = json.loads(here("store", "info", "--json").out)
    assert (found["runs"], found["results"]) == (3, 3)
    assert found["path"] == str(kept / "home" / "asynctask.db")
    with opened(None) as client:
        assert found.keys() == set(type(client.store_info()).__struct_fields__)
    code, out, err = here("store", "info")
    assert (code, err) == (0, "")
    assert f"file:    {kept}/home/asynctask.db\n" in out


def test_prune_keeps_the_newest(here, kept):
    assert here("store", "prune", "--keep", "1") == (0, "2 runs deleted\n", "")
    assert here("store", "prune", "--older-than", "1h") == (0, "0 runs deleted\n", "")
    assert json.loads(here("store", "info", "--json").out)["runs"] == 1


@pytest.mark.parametrize("words", [[], ["--keep", "many"], ["--older-than", "soon"], ["--keep=-1"]], ids=" ".join)
def test_prune_wants_to_know_exactly_what(here, kept, words):
    assert here("store", "prune", *words).code == 2
    assert json.loads(here("store", "info", "--json").out)["runs"] == 3


@pytest.mark.parametrize("words", [["runs", "ls"], ["store", "info"], ["cache", "ls"]], ids=" ".join)
def test_a_store_that_cannot_be_looked_for_is_an_error_and_not_empty(here, folder, words):
    (folder / "home").touch()
    done = here(*words)
    assert (done.code, done.out) == (1, "")
    assert "asynctask.db' cannot be opened: File exists" in done.err


def test_where_nothing_was_kept_yet_reading_makes_no_store(here, folder):
    assert here("store", "info") == (0, "", "asynctask: there is no store yet; the first run makes it\n")
    assert here("cache", "ls") == (0, "", "asynctask: no results are kept\n")
    assert here("cache", "clear", "--yes") == (0, "0 results deleted\n", "")
    assert here("store", "prune", "--keep", "0") == (0, "0 runs deleted\n", "")
    assert not (folder / "home").exists()


def test_migrate_brings_a_store_into_being_and_says_its_schema(here, folder):
    version = json.loads(here("store", "migrate", "--json", "--store", "sqlite:///new.db").out)["schema_version"]
    assert version >= 1
    assert here("store", "migrate", "--store", "sqlite:///new.db").out == f"the store has schema version {version}\n"


def test_a_file_that_is_no_store_is_a_failure_and_is_left_as_it_is(here, folder):
    (folder / "notes.txt").write_text("my notes, of some length, which are not a database at all" * 10)
    before = (folder / "notes.txt").read_bytes()
    code, out, err = here("runs", "ls", "--store", "sqlite:///notes.txt")
    assert (code, out) == (1, "")
    assert "notes.txt" in err
    assert "Traceback" not in err
    assert (folder / "notes.txt").read_bytes() == before

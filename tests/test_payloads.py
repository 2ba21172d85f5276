"""Payloads beside a database file: nothing foreign, altered or half-written is ever given out."""

import hashlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctask.errors import AsyncTaskError, DamagedResult, MissingResult, StoreError
from asynctask.stores import payloads as module
from asynctask.stores.payloads import Payloads, Sealed

LIMIT = 100
SMALL, LARGE = b"small", b"large" * 100


@pytest.fixture
def payloads(tmp_path: Path) -> Payloads:
    return Payloads(tmp_path / "runs.db", inline_limit=LIMIT)


def files(payloads: Payloads) -> list[Path]:
    """Every file of the results, whole or not."""
    return sorted(path for path in Path(payloads.folder).rglob("*") if not path.is_dir() or path.is_symlink())


def file_of(payloads: Payloads, sealed: Sealed) -> Path:
    assert sealed.file is not None
    return Path(payloads.folder, sealed.file[:2], sealed.file)


def make_old(path: Path) -> None:
    os.utime(path, (1_000_000_000, 1_000_000_000))


def run(code: str, *arguments: object) -> str:
    """What a program prints, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, LIMIT, LIMIT + 1, 3 << 20])
def test_a_payload_comes_back_also_in_another_object(payloads: Payloads, tmp_path: Path, size: int) -> None:
    payload = os.urandom(size)
    sealed = payloads.seal("key", "msgpack", payload)
    assert (sealed.size, sealed.inline is None) == (size, size > LIMIT)
    assert sealed.file == (hashlib.sha256(payload).hexdigest() if size > LIMIT else None)
    assert payloads.open("key", "msgpack", sealed) == payload
    assert Payloads(tmp_path / "runs.db").open("key", "msgpack", sealed) == payload


def test_nothing_is_touched_before_something_is_sealed(payloads: Payloads, tmp_path: Path) -> None:
    with pytest.raises(DamagedResult, match="the key that it was signed with is gone"):
        payloads.open("key", "msgpack", Sealed(b"x", None, 1, b"x" * 32))
    assert payloads.sweep(()) == 0
    assert list(tmp_path.iterdir()) == []


def test_small_payloads_make_no_files(payloads: Payloads) -> None:
    payloads.seal("key", "msgpack", SMALL)
    assert files(payloads) == []


def test_equal_contents_share_a_file(payloads: Payloads) -> None:
    first = payloads.seal("one", "msgpack", LARGE)
    second = payloads.seal("two", "json", LARGE)
    assert files(payloads) == [file_of(payloads, first)] == [file_of(payloads, second)]
    assert payloads.open("one", "msgpack", first) == payloads.open("two", "json", second) == LARGE


def test_two_paths_of_one_database_have_one_key(payloads: Payloads, tmp_path: Path) -> None:
    sealed = payloads.seal("key", "msgpack", LARGE)
    (tmp_path / "link").symlink_to(tmp_path / "runs.db")
    assert Payloads(tmp_path / "link").open("key", "msgpack", sealed) == LARGE


KEYS = {
    "upwards": "../../../../x",
    "absolute": "/etc/passwd",
    "NUL": "a\0b",
    "5 kB": "k" * 5000,
    "emoji": "😀",
    "surrogate": "\ud83d",
    "question mark": "?",
    "surrogates": "\ud83d\ude00",
    "device": "CON",
    "lower": "straße",
    "upper": "STRASSE",
    "empty": "",
    "separator": "a/b\\c",
}


def test_any_text_is_a_key_and_no_two_are_taken_for_each_other(payloads: Payloads, tmp_path: Path) -> None:
    sealed = {name: payloads.seal(key, "msgpack", LARGE) for name, key in KEYS.items()}
    for name, key in KEYS.items():
        for other in KEYS:
            if other == name:
                assert payloads.open(key, "msgpack", sealed[other]) == LARGE
            else:
                with pytest.raises(DamagedResult):
                    payloads.open(key, "msgpack", sealed[other])
    assert {path.name for path in tmp_path.iterdir()} == {"runs.db.key", "runs.db.results"}
    assert len(files(payloads)) == 1


def test_any_thread_may_seal_and_open(payloads: Payloads) -> None:
    go = threading.Barrier(8)
    wrong: list[str] = []

    def work(number: int) -> None:
        go.wait()
        for turn in range(20):
            payload = bytes([turn % 5]) * (LIMIT + 1)
            sealed = payloads.seal(f"{number}", "msgpack", payload)
            if payloads.open(f"{number}", "msgpack", sealed) != payload:
                wrong.append(f"{number}: {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(files(payloads)) == 5


# -- nothing foreign -------------------------------------------------------------------------------------------------


def refused(payloads: Payloads, sealed: Sealed, key: str = "key", serializer: str = "msgpack") -> bool:
    try:
        payloads.open(key, serializer, sealed)
    except DamagedResult:
        return True
    return False


@pytest.mark.parametrize("payload", [SMALL, LARGE], ids=["small", "large"])
def test_neither_key_nor_serializer_nor_content_can_be_exchanged(payloads: Payloads, payload: bytes) -> None:
    sealed = payloads.seal("key", "msgpack", payload)
    other = payloads.seal("key", "msgpack", payload[::-1])
    change = msgspec.structs.replace
    assert not refused(payloads, sealed)
    assert refused(payloads, sealed, key="kez")
    assert refused(payloads, sealed, key="key" + "m", serializer="sgpack")
    assert refused(payloads, sealed, serializer="pickle")
    assert refused(payloads, change(sealed, inline=other.inline, file=other.file))
    assert refused(payloads, change(sealed, mac=other.mac))
    assert refused(payloads, change(sealed, size=len(payload) - 1))
    assert refused(payloads, change(sealed, mac=sealed.mac[:-1]))
    assert refused(payloads, change(sealed, mac=b""))
    assert refused(payloads, change(sealed, inline=b"", file=None))


def test_the_same_content_in_the_row_or_in_a_file_is_the_same(payloads: Payloads) -> None:
    """Where it lies is no part of what was signed: it may be moved, and is as good there."""
    sealed = payloads.seal("key", "msgpack", LARGE)
    assert payloads.open("key", "msgpack", Sealed(LARGE, None, sealed.size, sealed.mac)) == LARGE


def test_what_another_store_signed_is_refused(payloads: Payloads, tmp_path: Path) -> None:
    foreign = Payloads(tmp_path / "other.db", inline_limit=LIMIT)
    for payload in (SMALL, LARGE):
        payloads.seal("another", "msgpack", payload)
        sealed = foreign.seal("key", "msgpack", payload)
        with pytest.raises(DamagedResult, match=r"altered, or not signed with the key in .*runs\.db\.key.*again"):
            payloads.open("key", "msgpack", sealed)


WRONG: dict[str, Callable[[Sealed], Any]] = {
    "a name that leads out": lambda sealed: Sealed(None, "../../runs.db.key", 32, sealed.mac),
    "a name in capitals": lambda sealed: Sealed(None, "A" * 64, sealed.size, sealed.mac),
    "a name and a newline": lambda sealed: Sealed(None, "a" * 64 + "\n", sealed.size, sealed.mac),
    "an empty name": lambda sealed: Sealed(None, "", sealed.size, sealed.mac),
    "both": lambda sealed: Sealed(LARGE, sealed.file, sealed.size, sealed.mac),
    "neither": lambda sealed: Sealed(None, None, 0, sealed.mac),
    "text for bytes": lambda sealed: Sealed("x", None, 1, sealed.mac),  # type: ignore[arg-type]
    "a number for a name": lambda sealed: Sealed(None, 3, 1, sealed.mac),  # type: ignore[arg-type]
    "text for a signature": lambda sealed: Sealed(SMALL, None, 5, "é"),  # type: ignore[arg-type]
    "nothing for a size": lambda sealed: Sealed(None, sealed.file, None, sealed.mac),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_row_of_any_shape_is_refused(payloads: Payloads, kind: str) -> None:
    assert refused(payloads, WRONG[kind](payloads.seal("key", "msgpack", LARGE)))


def test_a_serializer_of_any_shape_is_refused(payloads: Payloads) -> None:
    sealed = payloads.seal("key", "msgpack", SMALL)
    assert refused(payloads, sealed, serializer=b"msgpack")  # type: ignore[arg-type]
    assert refused(payloads, sealed, serializer=None)  # type: ignore[arg-type]


def test_one_flipped_bit_anywhere_in_a_row_is_refused(payloads: Payloads) -> None:
    sealed = payloads.seal("key", "msgpack", SMALL)
    assert sealed.inline is not None
    for name, whole in (("inline", sealed.inline), ("mac", sealed.mac)):
        for bit in range(len(whole) * 8):
            assert refused(payloads, msgspec.structs.replace(sealed, **{name: flipped(whole, bit)}))


def test_one_flipped_bit_anywhere_in_a_file_is_refused(payloads: Payloads) -> None:
    payload = LARGE[: LIMIT + 1]
    sealed = payloads.seal("key", "msgpack", payload)
    path = file_of(payloads, sealed)
    for bit in range(len(payload) * 8):
        path.write_bytes(flipped(payload, bit))
        assert refused(payloads, sealed)
    path.write_bytes(payload)
    assert not refused(payloads, sealed)


def flipped(whole: bytes, bit: int) -> bytes:
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@given(
    first=st.tuples(st.text(max_size=4), st.text(max_size=4)),
    second=st.tuples(st.text(max_size=4), st.text(max_size=4)),
)
def test_no_two_pairs_of_key_and_serializer_have_one_signature(first: tuple[str, str], second: tuple[str, str]) -> None:
    signatures = {module._sign(b"k" * 32, *pair, b"d" * 32) for pair in (first, second)}
    assert len(signatures) == len({first, second})


@pytest.mark.parametrize(
    "content", [b"", LARGE[:-1], LARGE + b"x", b"x" * len(LARGE)], ids=["empty", "cut", "longer", "other"]
)
def test_a_file_with_another_content_is_refused_and_then_healed(payloads: Payloads, content: bytes) -> None:
    sealed = payloads.seal("key", "msgpack", LARGE)
    file_of(payloads, sealed).write_bytes(content)
    assert refused(payloads, sealed)
    assert payloads.seal("key", "msgpack", LARGE) == sealed
    assert payloads.open("key", "msgpack", sealed) == LARGE
    assert len(files(payloads)) == 1


def test_a_file_that_is_gone_is_missing_and_can_be_made_again(payloads: Payloads) -> None:
    sealed = payloads.seal("key", "msgpack", LARGE)
    path = file_of(payloads, sealed)
    for remove in (path.unlink, path.parent.rmdir, path.parent.parent.rmdir):
        remove()
        with pytest.raises(MissingResult, match=f"the key 'key' is gone: there is no '{path}'") as caught:
            payloads.open("key", "msgpack", sealed)
        assert isinstance(caught.value, LookupError)
        assert isinstance(caught.value, AsyncTaskError)
    payloads.seal("key", "msgpack", LARGE)
    assert payloads.open("key", "msgpack", sealed) == LARGE


# -- the key ---------------------------------------------------------------------------------------------------------


RACE = """
import sys
from asynctask.stores.payloads import Payloads
payloads = Payloads(sys.argv[1], inline_limit=100)
print("ready", flush=True)
sys.stdin.readline()
sealed = payloads.seal("key", "msgpack", b"x" * 200)
print(sealed.mac.hex())
"""


def test_processes_that_begin_at_once_agree_on_one_key(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path / "runs.db")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    signatures = {racer.communicate(timeout=50)[0] for racer in racers}
    assert len(signatures) == 1
    assert len(signatures.pop()) == 65
    assert {path.name for path in tmp_path.iterdir()} == {"runs.db.key", "runs.db.results"}


def test_threads_that_begin_at_once_agree_on_one_key(tmp_path: Path) -> None:
    for turn in range(20):
        go = threading.Barrier(4)
        signatures: list[bytes] = []

        def work(turn: int = turn, go: threading.Barrier = go, found: list[bytes] = signatures) -> None:
            one = Payloads(tmp_path / f"{turn}.db")
            go.wait()
            found.append(one.seal("key", "msgpack", b"x").mac)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(signatures) == 4
        assert len(set(signatures)) == 1


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"\0" * 32], ids=["empty", "short", "long", "zeros"])
def test_a_key_file_without_a_key_is_told_and_left_alone(payloads: Payloads, content: bytes) -> None:
    sealed = payloads.seal("key", "msgpack", SMALL)
    Path(payloads.key_path).write_bytes(content)
    for use in (lambda: payloads.seal("key", "msgpack", SMALL), lambda: payloads.open("key", "msgpack", sealed)):
        with pytest.raises(StoreError, match=r"runs\.db\.key' does not hold a key of 32 bytes: restore it"):
            use()
    assert Path(payloads.key_path).read_bytes() == content


def test_a_key_that_others_could_read_is_closed_to_them(payloads: Payloads) -> None:
    sealed = payloads.seal("key", "msgpack", SMALL)
    os.chmod(payloads.key_path, 0o644)
    assert Payloads(payloads.key_path.removesuffix(".key")).open("key", "msgpack", sealed) == SMALL
    assert stat.S_IMODE(os.stat(payloads.key_path).st_mode) == 0o600


def test_a_key_that_was_put_back_is_used_and_a_new_one_is_made_for_one_that_is_lost(payloads: Payloads) -> None:
    path = Path(payloads.key_path)
    sealed = payloads.seal("key", "msgpack", SMALL)
    first = path.read_bytes()
    path.unlink()
    with pytest.raises(DamagedResult, match="is gone"):
        payloads.open("key", "msgpack", sealed)
    again = payloads.seal("key", "msgpack", SMALL)
    assert path.read_bytes() != first
    assert refused(payloads, sealed)
    assert not refused(payloads, again)
    path.write_bytes(first)
    assert not refused(payloads, sealed)
    assert refused(payloads, again)


def test_what_a_killed_maker_of_a_key_left_is_in_nobodys_way(payloads: Payloads, tmp_path: Path) -> None:
    (tmp_path / "runs.db.key.new").write_bytes(b"half")
    assert not refused(payloads, payloads.seal("key", "msgpack", SMALL))
    assert {path.name for path in tmp_path.iterdir()} == {"runs.db.key", "runs.db.results"}


# -- the disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_files_are_the_owners_alone_whatever_the_umask(payloads: Payloads, mask: int) -> None:
    before = os.umask(mask)
    try:
        sealed = payloads.seal("key", "msgpack", LARGE)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [Path(payloads.key_path), *files(payloads)]}
    assert set(modes.values()) == {0o600}
    for folder in (Path(payloads.folder), file_of(payloads, sealed).parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_was_open_to_others_is_closed_to_them(payloads: Payloads) -> None:
    os.mkdir(payloads.folder)
    os.chmod(payloads.folder, 0o777)
    payloads.seal("key", "msgpack", LARGE)
    assert stat.S_IMODE(os.stat(payloads.folder).st_mode) == 0o700


def places(payloads: Payloads, sealed: Sealed) -> Iterator[Path]:
    path = file_of(payloads, sealed)
    yield from (Path(payloads.key_path), path, path.parent, Path(payloads.folder))


@pytest.mark.parametrize("place", range(4), ids=["key", "file", "folder", "results"])
@pytest.mark.parametrize("is_dangling", [True, False], ids=["dangling", "good"])
def test_a_planted_link_is_refused_and_not_followed(
    payloads: Payloads, tmp_path: Path, place: int, is_dangling: bool
) -> None:
    sealed = payloads.seal("key", "msgpack", LARGE)
    path = list(places(payloads, sealed))[place]
    target = tmp_path / "elsewhere"
    path.rename(target)
    if is_dangling:
        target.rename(tmp_path / "away")
    path.symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    for use in (lambda: payloads.seal("key", "msgpack", LARGE), lambda: payloads.open("key", "msgpack", sealed)):
        with pytest.raises(StoreError, match="link"):
            use()
    assert path.is_symlink()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", range(4), ids=["key", "file", "folder", "results"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(
    payloads: Payloads, tmp_path: Path, place: int
) -> None:
    sealed = payloads.seal("key", "msgpack", LARGE)
    path = list(places(payloads, sealed))[place]
    path.rename(tmp_path / "away")
    os.mkfifo(path)
    for use in (lambda: payloads.seal("key", "msgpack", LARGE), lambda: payloads.open("key", "msgpack", sealed)):
        with pytest.raises(StoreError):
            use()


def test_what_belongs_to_another_user_is_refused(payloads: Payloads, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads.seal("key", "msgpack", LARGE)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(
        StoreError, match=rf"runs\.db\.key' belongs to user {user}, and this process runs as user {user + 1}"
    ):
        Payloads(payloads.key_path.removesuffix(".key")).seal("key", "msgpack", SMALL)
    os.unlink(payloads.key_path)
    with pytest.raises(StoreError, match=r"runs\.db\.results' belongs to user"):
        payloads.seal("key", "msgpack", SMALL)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"results cannot be kept: No such file or directory .*nowhere") as caught:
        Payloads(tmp_path / "nowhere" / "runs.db").seal("key", "msgpack", SMALL)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


FULL = """
import resource, signal, sys
from asynctask.errors import StoreError
from asynctask.stores.payloads import Payloads
payloads = Payloads(sys.argv[1], inline_limit=100)
payloads.seal("key", "msgpack", b"x" * 200)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    payloads.seal("key", "msgpack", b"y" * 2000)
except StoreError as error:
    print(type(error.__cause__).__name__, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert payloads.open("key", "msgpack", payloads.seal("key", "msgpack", b"y" * 2000)) == b"y" * 2000
"""


def test_a_disk_that_takes_no_more_is_told_nothing_is_left_and_it_recovers(tmp_path: Path) -> None:
    """A limit on the size of files makes the second half of a write fail, as a full disk does."""
    assert run(FULL, tmp_path / "runs.db").startswith("OSError results cannot be kept: File too large")
    found = {path.name for path in (tmp_path / "runs.db.results").rglob("*") if path.is_file()}
    assert found == {hashlib.sha256(content).hexdigest() for content in (b"x" * 200, b"y" * 2000)}


READ_ONLY = """
import ctypes, os, sys
from asynctask.errors import StoreError
from asynctask.stores.payloads import Payloads
payloads = Payloads(sys.argv[1], inline_limit=100)
sealed = payloads.seal("key", "msgpack", b"x" * 200)
if os.geteuid() == 0:  # without its capabilities, root is bound by modes as everybody else is
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
for folder, _, _ in os.walk(payloads.folder):
    os.chmod(folder, 0o500)
try:
    payloads.seal("key", "msgpack", b"y" * 200)
except StoreError as error:
    print(type(error.__cause__).__name__, error)
assert Payloads(sys.argv[1]).open("key", "msgpack", sealed) == b"x" * 200
for folder, _, _ in os.walk(payloads.folder):
    os.chmod(folder, 0o700)
"""


def test_a_disk_that_may_only_be_read_is_told_and_can_be_read(tmp_path: Path) -> None:
    assert run(READ_ONLY, tmp_path / "runs.db").startswith("PermissionError results cannot be kept: Permission denied")


def test_what_ends_a_writer_leaves_nothing(payloads: Payloads, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads.seal("key", "msgpack", SMALL)

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            payloads.seal("key", "msgpack", LARGE)
    assert files(payloads) == []


KILLED = """
import hashlib, os, pathlib, random, signal, sys, time
from asynctask.stores.payloads import Payloads

database, seed = sys.argv[1], random.Random(int(sys.argv[2]))
contents = [bytes([number]) * 1_500_000 for number in range(4)]
whole = halves = 0
for turn in range(100):
    pathlib.Path(database + ".key").unlink(missing_ok=True)
    child = os.fork()
    if not child:
        payloads = Payloads(database)
        while True:
            for content in contents:
                sealed = payloads.seal("key", "msgpack", content)
                os.unlink(pathlib.Path(payloads.folder, sealed.file[:2], sealed.file))
    time.sleep(seed.uniform(0.001, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for path in pathlib.Path(database + ".results").glob("*/*"):
        if path.name.endswith(".new"):
            halves += 1
        else:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, path
            whole += 1
        path.unlink()
    key = pathlib.Path(database + ".key")
    assert not key.exists() or len(key.read_bytes()) == 32
    payloads = Payloads(database)
    assert payloads.open("key", "msgpack", payloads.seal("key", "msgpack", b"x")) == b"x"
print(whole, halves)
"""


def test_a_hundred_kills_leave_no_half_of_a_file_under_a_final_name(tmp_path: Path) -> None:
    whole, halves = map(int, run(KILLED, tmp_path / "runs.db", 1).split())
    assert halves > 0, "no kill hit a writer at work"
    assert whole + halves <= 200


# -- sweeping --------------------------------------------------------------------------------------------------------


def test_the_sweeper_takes_what_is_old_and_used_by_nobody(payloads: Payloads) -> None:
    used, unused, young = (payloads.seal("key", "msgpack", bytes([number]) * 200) for number in range(3))
    for sealed in (used, unused):
        make_old(file_of(payloads, sealed))
    assert payloads.sweep({used.file}) == 1
    assert set(files(payloads)) == {file_of(payloads, used), file_of(payloads, young)}
    assert payloads.sweep({used.file, young.file}, age=0) == 0
    assert payloads.sweep(lambda name: name == used.file, age=-1) == 1
    assert files(payloads) == [file_of(payloads, used)]


def test_the_sweeper_takes_what_killed_writers_left_and_nothing_that_is_not_ours(payloads: Payloads) -> None:
    path = file_of(payloads, payloads.seal("key", "msgpack", LARGE))
    left = path.with_name(f"{path.name}.{'0' * 16}.new")
    young = path.with_name(f"{path.name}.{'1' * 16}.new")
    foreign = [path.with_name("notes.txt"), path.with_name(path.name + ".new"), path.parent.parent / "README"]
    for each in (left, young, *foreign):
        each.write_bytes(b"x")
    (path.parent / ("0" * 64)).mkdir()
    for each in (left, path, *foreign, path.parent / ("0" * 64)):
        make_old(each)
    assert payloads.sweep(lambda name: True) == 1
    assert set(files(payloads)) == {path, young, *foreign}


def test_the_sweeper_removes_a_link_and_not_what_it_leads_to(payloads: Payloads, tmp_path: Path) -> None:
    path = file_of(payloads, payloads.seal("key", "msgpack", LARGE))
    target = tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    os.utime(path, (1, 1), follow_symlinks=False)
    assert payloads.sweep(()) == 1
    assert (target.exists(), path.is_symlink()) == (True, False)


def test_what_is_reused_is_young_again(payloads: Payloads) -> None:
    sealed = payloads.seal("key", "msgpack", LARGE)
    make_old(file_of(payloads, sealed))
    payloads.seal("another", "msgpack", LARGE)
    assert payloads.sweep(()) == 0
    assert payloads.open("key", "msgpack", sealed) == LARGE


def test_a_file_that_is_reused_while_the_sweeper_looks_stays(payloads: Payloads) -> None:
    """The sweeper asks who uses it; just then it is sealed again, which no database knows yet."""
    sealed = payloads.seal("key", "msgpack", LARGE)
    make_old(file_of(payloads, sealed))

    def is_used(name: str) -> bool:
        payloads.seal("another", "msgpack", LARGE)
        return False

    assert payloads.sweep(is_used) == 0
    assert payloads.open("key", "msgpack", sealed) == LARGE


SWEEPER = """
import select, sys
from asynctask.stores.payloads import Payloads
payloads = Payloads(sys.argv[1])
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    payloads.sweep(())
"""


def test_sweeping_all_the_time_takes_nothing_that_was_just_sealed(payloads: Payloads) -> None:
    make_old(file_of(payloads, payloads.seal("key", "msgpack", LARGE)))
    command = [sys.executable, "-c", SWEEPER, payloads.key_path.removesuffix(".key")]
    sweepers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for sweeper in sweepers:
            assert sweeper.stdout is not None
            assert sweeper.stdout.readline() == b"ready\n"
        swept = 0
        for _ in range(500):
            swept += not files(payloads)
            sealed = payloads.seal("key", "msgpack", LARGE)
            assert payloads.open("key", "msgpack", sealed) == LARGE
            make_old(file_of(payloads, sealed))
        assert swept, "nobody swept"
    finally:
        for sweeper in sweepers:
            sweeper.communicate(b"stop\n", timeout=20)

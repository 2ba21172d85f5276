"""joblib: `Parallel` with loky's processes or threads, kept open, in batches of its own choice; `Memory` on disk.

Calls have results, in order, and nothing else. One call after another cannot be sent without waiting for it. A hit of
`Memory` is read from disk each time: it has no other place.
"""

from collections.abc import Iterator

from harness import FOLDER, MEGABYTE, THREADS, WORKERS, main, workload
from joblib import Memory, Parallel, delayed

TITLE = "joblib"
REQUIREMENTS = ["joblib==1.6.0"]
VARIANTS = {"": "nothing"}
IMPORT = "import joblib"
ABSENT = {
    "awaited": "nothing is awaited: see processes",
    "submitted": "see processes",
    "asleep": "a thread for each",
    "asleep, 100,000": "a thread for each",
    "limited": "its limit is the number of its threads",
    "chain": "it has no futures",
    "retry": "it does not try again",
    "recorded": "it keeps no record of calls",
}


def nothing() -> None:
    pass


def one() -> int:
    return 1


def add_one(number: int) -> int:
    return number + 1


def add(left: int, right: int) -> int:
    return left + right


def give(value: bytes) -> bytes:
    return value


@workload("mapped")
def mapped() -> Iterator[object]:
    with Parallel(n_jobs=WORKERS) as parallel:
        yield lambda count: parallel(delayed(add_one)(number) for number in range(count))


@workload("processes")
def processes() -> Iterator[object]:
    with Parallel(n_jobs=WORKERS) as parallel:
        yield lambda count: parallel(delayed(nothing)() for _ in range(count))


@workload("threads")
def threads() -> Iterator[object]:
    with Parallel(n_jobs=THREADS, prefer="threads") as parallel:
        yield lambda count: parallel(delayed(nothing)() for _ in range(count))


@workload("megabyte")
def megabyte() -> Iterator[object]:
    def run(count: int) -> None:
        for _ in range(count):
            [value] = parallel([delayed(give)(MEGABYTE)])
            assert len(value) == len(MEGABYTE)

    with Parallel(n_jobs=WORKERS) as parallel:
        yield run


@workload("hit")
def hit() -> Iterator[object]:
    cached = Memory(FOLDER, verbose=0).cache(add)

    def run(count: int) -> None:
        for _ in range(count):
            cached(1, 2)

    yield run


@workload("tree")
def tree() -> Iterator[object]:
    def run(count: int) -> None:
        level = parallel(delayed(one)() for _ in range(count))
        while len(level) > 1:
            level = parallel(delayed(add)(*pair) for pair in zip(level[::2], level[1::2], strict=True))
        assert level == [count]

    with Parallel(n_jobs=WORKERS) as parallel:
        yield run


if __name__ == "__main__":
    main()

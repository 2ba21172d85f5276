"""What is staged in a transaction until it ends: values, results and hooks, what has joined it, what is under way.

1. Each run in a transaction has one of its own, a child of that one; so does each nested block. Children join their
   parent in the order in which they end, and bring their results.
2. Nothing here waits, and nothing is called; any thread may start a run in it, end one, or roll it back. See `commits`
   for how it ends.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, Self

from .cache_policies import IsolationLevel
from .errors import TransactionError
from .runs import Run, wake_all
from .serializers import encode
from .states import COMPLETED
from .stores.base import Store, StoredResult
from .waiting import Services

_MISSING: Any = object()


class CommitMode(Enum):
    """When a transaction is committed: as its block ends, with the outermost block, or only by `commit()`."""

    EAGER = "EAGER"
    LAZY = "LAZY"
    OFF = "OFF"


class TransactionState(Enum):
    """Where a transaction stands."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    STAGED = "STAGED"
    COMMITTED = "COMMITTED"
    ROLLED_BACK = "ROLLED_BACK"


class Staged(NamedTuple):
    """A result that is written when its transaction is committed."""

    store: Store
    result: StoredResult
    #: Whether it is kept in memory as well.
    at_hand: bool = True


class Staging:
    """One transaction, without the ways to end it."""

    def __init__(
        self,
        services: Services,
        keeper: Any,
        *,
        now: Callable[[], float],
        key: str | None = None,
        commit_mode: CommitMode | None = None,
        isolation_level: IsolationLevel | None = None,
        overwrite: bool = False,
        parent: Self | None = None,
        run: Run | None = None,
    ) -> None:
        self.store = services.store
        #: Begins the keeping of runs inside, if their tasks have none of their own.
        self.keeper = keeper
        self.key = key
        self.parent = parent
        # OFF is for who says so: a block inside such a one joins it.
        inherited = CommitMode.EAGER if parent and parent.commit_mode is CommitMode.EAGER else CommitMode.LAZY
        self.commit_mode: CommitMode = commit_mode or inherited
        self.isolation_level = isolation_level or IsolationLevel.READ_COMMITTED
        self.overwrite = overwrite
        self.run = run
        self.state = TransactionState.PENDING if run is None else TransactionState.ACTIVE
        self.children: list[Self] = []
        self.on_commit_hooks: list[Callable[[Any], Any]] = [] if run is None else list(run.spec.options.on_commit)
        self.on_rollback_hooks: list[Callable[[Any], Any]] = [] if run is None else list(run.spec.options.on_rollback)
        #: Results that are written when it is committed, its children's included.
        self.results: dict[tuple[Store, str], Staged] = {}
        #: Whether its block or run is over.
        self.is_left = False
        self._services = services
        self._now = now
        self._values: dict[str, Any] = {}
        self._staged: Any = None
        self._has_key = False
        #: Emptied by who rolls it back: of several threads, one.
        self._claims = [self.key]
        self.is_committing = False
        #: Whether it is going to be rolled back: something in it was, or did not complete.
        self._is_doomed = False
        #: Runs started in it that are not settled, and who waits for them.
        self._under_way: dict[int, Run] = {}
        self._wakes: list[Callable[[], None]] = []

    # -- what users see -----------------------------------------------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """Keep a value here, for hooks and for what is nested inside."""
        self._values[name] = value

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """A copy of the value kept under `name`, here or in a parent. Raises `ValueError` if there is none."""
        one: Staging | None = self
        while one is not None:
            if name in one._values:
                return copy.deepcopy(one._values[name])
            one = one.parent
        if default is _MISSING:
            raise ValueError(f"nothing was set under {name!r} in this transaction; give get() a default, or set it")
        return default

    def stage(
        self,
        value: Any,
        on_rollback_hooks: Sequence[Callable[[Any], Any]] = (),
        on_commit_hooks: Sequence[Callable[[Any], Any]] = (),
    ) -> None:
        """What is kept under the transaction's key once it is committed, and more hooks for it."""
        if self.is_committed() or self.is_rolled_back():
            raise TransactionError(f"the transaction is {self.state.name}; nothing can be staged in it any more")
        self._staged = value
        self.on_rollback_hooks += on_rollback_hooks
        self.on_commit_hooks += on_commit_hooks
        self.state = TransactionState.STAGED

    @property
    def staged_value(self) -> Any:
        return self._staged

    def is_active(self) -> bool:
        return self.state is TransactionState.ACTIVE

    def is_pending(self) -> bool:
        return self.state is TransactionState.PENDING

    def is_staged(self) -> bool:
        return self.state is TransactionState.STAGED

    def is_committed(self) -> bool:
        """Whether it is committed; of one with a key, also whether that was done before, by somebody else."""
        return self.state is TransactionState.COMMITTED

    def is_rolled_back(self) -> bool:
        return self.state is TransactionState.ROLLED_BACK

    # -- what is under way in it --------------------------------------------------------------------------------------

    def started(self, run: Run) -> None:
        """`run` was started inside it."""
        inside = self.joinable()
        if inside is not None:
            inside._watch(run, dooms=True)

    def joinable(self) -> Self | None:
        """The transaction, this one or the nearest around it, that what begins now is part of."""
        one: Self | None = self
        while one is not None and (one.is_left or one.is_committed() or one.is_committing):
            one = one.parent
        return one

    def is_empty(self) -> bool:
        return not self._under_way

    def when_empty(self, wake: Callable[[], None]) -> None:
        self._wakes.append(wake)
        if not self._under_way:
            wake_all(self._wakes)

    def _watch(self, run: Run, dooms: bool) -> None:
        if run.number not in self._under_way:
            self._under_way[run.number] = run
            run.when_settled(partial(self._settled, run, dooms))

    def _settled(self, run: Run, dooms: bool) -> None:
        if dooms and run.states[-1].type is not COMPLETED:
            self._is_doomed = True
        self._under_way.pop(run.number, None)
        if self._wakes and not self._under_way:
            wake_all(self._wakes)

    # -- what has joined it -------------------------------------------------------------------------------------------

    def _outer(self) -> Self | None:
        """The transaction that this one joins as it ends; one that was rolled back, if that is what it was part of."""
        one = self.parent
        while one is not None and not one.is_rolled_back() and (one.is_left or one.is_committed()):
            one = one.parent
        return one

    def _join(self, child: Self) -> None:
        if not child.is_committed():
            child.state = TransactionState.STAGED
            self.results.update(child.results)
            self.children.append(child)

    def _stage_record(self) -> None:
        """What says that its key was committed. Raises `SerializationError` for a staged value that cannot be kept."""
        if self.key is not None:
            serializer, payload = encode(self._staged)
            result = StoredResult(
                key=self._stored_key, payload=payload, serializer=serializer, task_name="transaction", run_number=0,
                created=self._now(),
            )  # fmt: skip
            self.results[self.store, result.key] = Staged(self.store, result)

    def _tree(self) -> list[Self]:
        """Children first, each before those that joined after it."""
        found: list[Self] = []
        for child in self.children:
            if not child.is_committed():
                found += child._tree()
        found.append(self)
        return found

    def _rolled_back(self) -> list[Self]:
        """Turn it and its children into ROLLED_BACK; those whose hooks are to be called now, in order.

        Of several who do so at once, in whichever threads, exactly one gets each.
        """
        found: list[Self] = []
        if not self.is_committed() and self._claims:
            try:
                self._claims.pop()
            except IndexError:  # another thread was faster
                return found
            self.state = TransactionState.ROLLED_BACK
            self.results.clear()
            run = self.run
            if run is not None and run.states[-1].type is COMPLETED:
                if run.result is not None:
                    run.note(result=None)
                run.enter(COMPLETED, "RolledBack", "its transaction was rolled back")
                if run.is_settled:
                    run.journal.keep(run.traced())
            found.append(self)
        while self.children:
            try:
                child = self.children.pop()
            except IndexError:  # taken by another thread
                break
            found += child._rolled_back()
        return found

    def _committed(self) -> None:
        self.state = TransactionState.COMMITTED
        self.results.clear()
        self.children.clear()  # with `parent`, a ring
        self.give_key()

    @property
    def _stored_key(self) -> str:
        """What its key is among those of results: a task's cache key may be the same text."""
        return f"transaction:{self.key}"

    def give_key(self) -> None:
        """Give the lock of its key back, if it has it."""
        if self._has_key:
            self._has_key = False
            self.store.give_key(self._stored_key)

    def __repr__(self) -> str:
        what = self.run.name if self.run is not None else self.key
        return f"<Transaction {what!r} {self.state.name}>" if what else f"<Transaction {self.state.name}>"

"""A transaction: what ends together. Runs and nested transactions join it; it is committed or rolled back as one.

1. Each run in a transaction has one of its own, a child of that one; so does each nested block. Children join their
   parent in the order in which they end.
2. Committing calls the `on_commit` hooks, children first, then writes every result that was staged, all or none. A hook
   that raises is logged, and all is rolled back.
3. Rolling back calls the `on_rollback` hooks, its own first and then the children's, each in reverse order, and turns
   the states of completed runs into RolledBack. A hook that raises is logged, and the rest goes on.
4. What is rolled back rolls its parent back. What is committed stays so.
5. A transaction ends only when the runs that were started in it have ended.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from enum import Enum
from typing import Any

import anyio

from .cache_policies import IsolationLevel
from .errors import TransactionError
from .options import Hook
from .runs import Run, current_transaction, stop
from .states import COMPLETED
from .stores.base import Store, StoredResult
from .waiting import Port

logger = logging.getLogger("asynctask")

#: Seconds between two tries to take the lock of a key, growing from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.001, 0.02

TransactionHook = Callable[["Transaction"], Any]
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


class Transaction:
    """What `with transaction()` and `get_transaction()` give, and what `on_commit` and `on_rollback` hooks get."""

    def __init__(
        self,
        store: Store,
        keeper: Any,
        *,
        key: str | None = None,
        commit_mode: CommitMode | None = None,
        isolation_level: IsolationLevel | None = None,
        overwrite: bool = False,
        parent: Transaction | None = None,
        run: Run | None = None,
    ) -> None:
        self.store = store
        #: What runs in it begin with; see `results`.
        self.keeper = keeper
        self.key = key
        self.parent = parent
        inherited = CommitMode.LAZY if parent is None else parent.commit_mode
        self.commit_mode: CommitMode = commit_mode or inherited
        self.isolation_level = isolation_level or IsolationLevel.READ_COMMITTED
        self.overwrite = overwrite
        self.run = run
        self.state = TransactionState.PENDING
        self.children: list[Transaction] = []
        self.on_commit_hooks: list[TransactionHook] = [] if run is None else list(run.spec.options.on_commit)
        self.on_rollback_hooks: list[TransactionHook] = [] if run is None else list(run.spec.options.on_rollback)
        #: Results that are written when it is committed.
        self.results: list[StoredResult] = []
        self._values: dict[str, Any] = {}
        self._staged: Any = None
        self._has_key = False
        #: Runs in it that are under way.
        self._under_way: dict[int, Run] = {}

    # -- what users see -----------------------------------------------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """Keep a value here, for hooks and for what is nested inside."""
        self._values[name] = value

    def get(self, name: str, default: Any = _MISSING) -> Any:
        """A copy of the value kept under `name`, here or in a parent. Raises `ValueError` if there is none."""
        one: Transaction | None = self
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
        on_rollback_hooks: Sequence[TransactionHook] = (),
        on_commit_hooks: Sequence[TransactionHook] = (),
    ) -> None:
        """What is kept under the transaction's key once it is committed, and more hooks for it."""
        if self.state is TransactionState.COMMITTED or self.state is TransactionState.ROLLED_BACK:
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

    # -- beginning and ending -----------------------------------------------------------------------------------------

    async def begin(self, port: Port, now: float) -> None:
        """Take the lock of the key if isolation asks for it, and look whether it was committed before."""
        if self.key is not None:
            if self.isolation_level is IsolationLevel.SERIALIZABLE:
                await take_key(self.store, self.key, port)
                self._has_key = True
            found = None if self.overwrite else await port.ask(self.store.read_result(self.key))
            if found is not None and found.is_fresh(now):
                self.state = TransactionState.COMMITTED
                return
        self.state = TransactionState.ACTIVE

    async def leave(
        self, port: Port, error: BaseException | None, record: Callable[[Transaction], StoredResult]
    ) -> None:
        """End it as its block ends. `record` makes what is kept under its key."""
        try:
            if self.key is not None and self.state in (TransactionState.ACTIVE, TransactionState.STAGED):
                self.results.append(record(self))
            with anyio.CancelScope(shield=True) if port.is_async and error is not None else nullcontext():
                await self._until_runs_end(port, error)
                if error is not None or self.is_rolled_back():
                    await self.roll_back(port)
                elif self.is_committed():
                    return
                elif self.commit_mode is CommitMode.EAGER or (self.commit_mode is CommitMode.LAZY and not self.parent):
                    await self.commit(port)
                elif self.parent is None:
                    await self.roll_back(port)
                else:
                    self.state = TransactionState.STAGED
                    self.parent.children.append(self)
        except BaseException:
            await self.roll_back(port)
            raise
        finally:
            if self._has_key and self.key is not None:
                self._has_key = False
                self.store.give_key(self.key)

    def activate(self) -> None:
        """Begin one that has no key."""
        self.state = TransactionState.ACTIVE

    def all_results(self) -> list[StoredResult]:
        """What is staged here and in its children."""
        return [result for one in self._tree() for result in one.results]

    def as_hook(self, hook: TransactionHook) -> Hook:
        """`hook(txn)` as a hook of a run."""
        return lambda task, run, state: hook(self)

    def started(self, run: Run) -> None:
        self._under_way[run.number] = run

    async def _until_runs_end(self, port: Port, error: BaseException | None) -> None:
        for run in list(self._under_way.values()):
            if error is not None:
                stop(run, "its transaction was rolled back")
            if not run.is_settled:
                await port.until_settled(run)

    def ended(self, child: Transaction) -> None:
        """The run of `child` is over; completed, it is staged here."""
        if child.run is not None:
            self._under_way.pop(child.run.number, None)
        child.state = TransactionState.STAGED
        self.children.append(child)

    async def commit(self, port: Port) -> bool:
        """Commit it with all its children; False if it was rolled back instead. Raises `StoreError`."""
        if self.is_committed() or self.is_rolled_back():
            return self.is_committed()
        tree = [one for one in self._tree() if not one.is_committed()]
        for one in tree:
            for hook in one.on_commit_hooks:
                try:
                    await port.call_user(hook, one)
                except Exception:
                    logger.exception("on_commit hook %r raised; its transaction is rolled back", _name(hook))
                    await self.roll_back(port)
                    return False
        results = [result for one in tree for result in one.results]
        if results:
            await port.ask(self.store.write_results(results))
        for one in tree:
            one.state = TransactionState.COMMITTED
        return True

    async def roll_back(self, port: Port) -> None:
        """Roll it back with all its children, and then its parent; what is committed stays."""
        if self.is_committed():
            return
        was_rolled_back = self.is_rolled_back()
        self.state = TransactionState.ROLLED_BACK
        if not was_rolled_back:
            for hook in reversed(self.on_rollback_hooks):
                try:
                    await port.call_user(hook, self)
                except Exception:
                    logger.exception("on_rollback hook %r raised; the rollback goes on", _name(hook))
            run = self.run
            if run is not None and run.states[-1].type is COMPLETED:
                run.enter(COMPLETED, "RolledBack", "its transaction was rolled back")
                if run.is_settled:
                    run.note()
        for child in reversed(self.children):
            if not child.is_rolled_back():
                child.parent = None  # it comes back here otherwise
                await child.roll_back(port)
        parent = self.parent
        if parent is not None and not parent.is_rolled_back():
            await parent.roll_back(port)

    def _tree(self) -> list[Transaction]:
        """Children first, each before those that joined after it."""
        found: list[Transaction] = []
        for child in self.children:
            found += child._tree()
        return [*found, self]

    def __repr__(self) -> str:
        what = self.run.name if self.run is not None else self.key
        return f"<Transaction {what!r} {self.state.name}>" if what else f"<Transaction {self.state.name}>"


async def take_key(store: Store, key: str, port: Port) -> None:
    """Wait until the lock of `key` is ours, over all processes of the store."""
    pause = FIRST_PAUSE
    while not await port.ask(store.try_take_key(key)):
        await port.pause(pause)
        pause = min(LAST_PAUSE, pause * 2)


def transaction_here() -> Transaction | None:
    """The transaction that this code is in."""
    found: Transaction | None = current_transaction.get()
    return found


def _name(hook: Any) -> str:
    return getattr(hook, "__name__", None) or type(hook).__name__

"""How a transaction begins and ends: committed, or rolled back, as one.

1. Committing calls the `on_commit` hooks, children first, then writes every result that was staged, all or none. A hook
   that raises is logged, and all is rolled back.
2. Rolling back turns the states of completed runs into RolledBack and calls the `on_rollback` hooks, its own first and
   then the children's, each in reverse order, and each once. A hook that raises is logged, and the rest goes on.
3. What is rolled back rolls its parent back: a block at once, a run when it ends, because it may be tried again. What
   is committed stays so.
4. A block ends only when the runs that were started in it have ended. One that did not complete rolls it back.
5. Hooks are called outside any transaction. Once the write has begun, a cancellation waits for what comes of it.
6. The lock of a key is given back when the transaction that took it is committed or its rollback is done.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import anyio

from . import loops
from .blocking import Blocking, drive, refuse_to_hang
from .cache_policies import IsolationLevel
from .endings import stop
from .errors import BlockingWaitError, TransactionError
from .options import Hook
from .runs import Run, current_run, current_transaction
from .staging import CommitMode, Staged, Staging, TransactionState
from .stores.base import Store
from .waiting import Loop, Port

logger = logging.getLogger("asynctask")

#: Seconds between two tries to take the lock of a key, growing from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.001, 0.02

TransactionHook = Callable[["Transaction"], Any]


class Transaction(Staging):
    """What `with transaction()` and `get_transaction()` give, and what `on_commit` and `on_rollback` hooks get."""

    # -- what users see -----------------------------------------------------------------------------------------------

    def commit(self) -> bool:
        """Commit it now, and wait in this thread until that is done; False if it was rolled back instead.

        Raises `StoreError` if it cannot be written, `BlockingWaitError` if runs in it need this thread's event loop.
        """
        done: bool = drive(self._commit_by_hand(Blocking(self._services)))
        return done

    async def commit_async(self) -> bool:
        """Commit it now; False if it was rolled back instead. Raises `StoreError` if it cannot be written."""
        return await self._commit_by_hand(Loop(self._services))

    def rollback(self) -> bool:
        """Roll it back now, and the block around it, waiting in this thread; False if it was committed before."""
        drive(self.roll_back(Blocking(self._services)))
        return self.is_rolled_back()

    async def rollback_async(self) -> bool:
        """Roll it back now, and the block around it; False if it was committed before."""
        await self.roll_back(Loop(self._services))
        return self.is_rolled_back()

    # -- a block ------------------------------------------------------------------------------------------------------

    async def begin(self, port: Port) -> None:
        """Take the lock of the key if isolation asks for it, and look whether it was committed before."""
        if self.key is not None:
            try:
                if self.isolation_level is IsolationLevel.SERIALIZABLE:
                    self._refuse_to_wait_for_itself()
                    await take_key(self.store, self._stored_key, port)
                    self._has_key = True
                found = None if self.overwrite else await port.ask(self.store.read_result(self._stored_key))
            except BaseException:
                self.give_key()
                raise
            if found is not None and found.is_fresh(self._now()):
                self.state = TransactionState.COMMITTED
                return
        self.state = TransactionState.ACTIVE

    async def leave(self, port: Port, error: BaseException | None) -> None:
        """End it as its block ends, by `error` if it does."""
        outer = self._outer()
        try:
            if error is not None:
                await self._abort(port, error)
                return
            await self._until_runs_end(port)
            if self.is_committed():
                return
            if self._is_doomed or self.is_rolled_back() or (outer is not None and outer.is_rolled_back()):
                await self.roll_back(port)
            elif self.commit_mode is CommitMode.EAGER or (self.commit_mode is CommitMode.LAZY and outer is None):
                await self.commit_by(port)
            elif self.commit_mode is CommitMode.LAZY and outer is not None:
                self._stage_record()
                outer._join(self)
            else:
                await self.roll_back(port)
        except BaseException as later:
            if error is None:
                await self._abort(port, later)
            raise
        finally:
            self.is_left = True
            if not self.is_staged():
                self.give_key()

    async def _abort(self, port: Port, error: BaseException) -> None:
        """End the runs in it, and roll it back."""
        for run in list(self._under_way.values()):
            stop(run, "its transaction was rolled back")
        if port.is_async and isinstance(error, GeneratorExit):  # its coroutine is being closed, and may not wait
            self.roll_back_now(port)
            return
        try:
            # Where this thread's loop has to end them, nobody can wait here: each is rolled back as it ends.
            if self._blocked_by(port) is None:
                await port.until_empty_shielded(self)
        finally:
            await self.roll_back(port)

    # -- a run --------------------------------------------------------------------------------------------------------

    async def end_with_run(self, port: Port, completed: bool) -> None:
        """Its run has its final state: join the block around it; alone, commit or roll back. Raises `StoreError`."""
        outer = self._end()
        if not completed or self._is_doomed or (outer is not None and outer.is_rolled_back()):
            await self.roll_back(port)
        elif outer is not None:
            outer._join(self)
        else:
            await self.commit_by(port)

    def end_now(self, port: Port) -> None:
        """Its run is cancelled or crashed, where nothing may be awaited: what is around it rolls back as it ends."""
        if self.is_left:
            return
        outer = self._end()
        if outer is None or outer.is_rolled_back():
            self.roll_back_now(port)
        else:
            outer.children.append(self)
            outer._is_doomed = True

    def _end(self) -> Transaction | None:
        """Its run is over; those that it has started and not waited for, the block around it has to wait for."""
        outer = self._outer()
        self.is_left = True
        if outer is not None:
            for run in list(self._under_way.values()):
                outer._watch(run, dooms=not self.is_rolled_back())
        return outer

    async def next_attempt(self, port: Port) -> Transaction:
        """The transaction for another attempt of its run. What the one that failed has done is rolled back."""
        if not (self.children or self.results or self._under_way or self._values or self._is_doomed):
            return self
        run = self.run
        assert run is not None
        following = Transaction(self._services, self.keeper, now=self._now, parent=self.parent, run=run)
        for started in list(self._under_way.values()):
            stop(started, f"the attempt of {run.name!r} that started it failed")
            following._watch(started, dooms=False)
        self.is_left = True
        self.on_rollback_hooks = []  # of the run: for when it fails for good
        await _call_rollback_hooks(self._rolled_back(), port)
        return following

    async def _until_runs_end(self, port: Port) -> None:
        """Raises `BlockingWaitError` where waiting for them could only hang."""
        run = self._blocked_by(port)
        if run is not None:
            refuse_to_hang(run, "write `async with transaction()`, or await it inside the block")
            raise BlockingWaitError(
                f"a transaction would block the event loop that has to run {run.name!r}; "
                f"write `async with transaction()`, or await it inside the block"
            )
        await port.until_empty(self)

    def _blocked_by(self, port: Port) -> Run | None:
        """A run in it that this thread's event loop has to end, where waiting would block that."""
        here = None if port.is_async else loops.current_loop()
        if here is None:
            return None
        return next((run for run in list(self._under_way.values()) if run.home is None or run.home.is_here()), None)

    # -- committing ---------------------------------------------------------------------------------------------------

    async def _commit_by_hand(self, port: Port) -> bool:
        run = current_run.get()
        while run is not None:
            if run.number in self._under_way:
                raise TransactionError(f"run {run.name!r} is part of the transaction, which is committed when it ends")
            run = run.parent
        if not self.is_left:
            await self._until_runs_end(port)
            if self._is_doomed:
                await self.roll_back(port)
        return await self.commit_by(port)

    async def commit_by(self, port: Port) -> bool:
        """Commit it with all its children; False if it was rolled back instead. Raises `StoreError`."""
        if self.is_committing or self.is_committed() or self.is_rolled_back():
            return self.is_committed()
        self.is_committing = True
        try:
            self._stage_record()
            tree = self._tree()
            for one in tree:
                for hook in one.on_commit_hooks:
                    try:
                        await _call(hook, one, port)
                    except Exception:
                        logger.exception("on_commit hook %r raised; its transaction is rolled back", _name(hook))
                        await self.roll_back(port)
                    if self.is_rolled_back():
                        return False
            if self.results:
                await port.carry_out(self._write(tree))
            else:
                for one in tree:
                    one._committed()
        except BaseException as error:
            if port.is_async and isinstance(error, GeneratorExit):
                self.roll_back_now(port)
            else:
                await self.roll_back(port)
            raise
        finally:
            self.is_committing = False
        return True

    async def _write(self, tree: Sequence[Transaction]) -> None:
        """Write every staged result, all of a store's or none, and then call it committed."""
        by_store: dict[Store, list[Staged]] = {}
        for staged in self.results.values():
            by_store.setdefault(staged.store, []).append(staged)
        for store, several in by_store.items():
            await store.write_results([one.result for one in several], at_hand=all(one.at_hand for one in several))
        for one in tree:
            one._committed()

    # -- rolling back -------------------------------------------------------------------------------------------------

    async def roll_back(self, port: Port) -> None:
        """Roll it back with all its children, and then the block around it (rule 4); what is committed stays."""
        if self.is_committed():
            return
        try:
            await _call_rollback_hooks(self._rolled_back(), port)
        finally:
            outer = self._outer()
            if outer is not None and outer.run is not None:
                outer._is_doomed = True
            elif outer is not None:
                await outer.roll_back(port)

    def roll_back_now(self, port: Port) -> None:
        """The same where nothing may be awaited; an async hook of a run goes on in a child of its own."""
        for one in self._rolled_back():
            for hook in reversed(one.on_rollback_hooks):
                if one.run is not None:
                    port.call_hooks_now([_as_hook(hook, one)], one.run, one.run.state)
                elif inspect.iscoroutinefunction(hook):
                    logger.error("on_rollback hook %r is not called: its block is being closed", _name(hook))
                else:
                    try:
                        hook(one)
                    except Exception:
                        logger.exception("on_rollback hook %r raised; the rollback goes on", _name(hook))
            one.give_key()
        outer = self._outer()
        if outer is not None:
            outer._is_doomed = True

    def _refuse_to_wait_for_itself(self) -> None:
        one = self.parent
        while one is not None:
            if one._has_key and one.key == self.key:
                raise TransactionError(f"the key {self.key!r} is held by a transaction around this one")
            one = one.parent


async def _call(hook: TransactionHook, one: Transaction, port: Port) -> None:
    token = current_transaction.set(None)
    try:
        await port.call_user(hook, one)
    finally:
        current_transaction.reset(token)


async def _call_rollback_hooks(transactions: Sequence[Transaction], port: Port) -> None:
    """All of them, whatever happens meanwhile: a cancellation or an interrupt is raised afterwards."""
    later: BaseException | None = None
    for one in transactions:
        for hook in reversed(one.on_rollback_hooks):
            try:
                with anyio.CancelScope(shield=True) if port.is_async else nullcontext():
                    await _call(hook, one, port)
            except Exception:
                logger.exception("on_rollback hook %r raised; the rollback goes on", _name(hook))
            except GeneratorExit:
                raise
            except BaseException as error:  # deliberate: raised once the others are done
                later = error
        one.give_key()
    if later is not None:
        try:
            raise later
        finally:
            del later  # its traceback leads here


def _as_hook(hook: TransactionHook, one: Transaction) -> Hook:
    return lambda task, run, state: hook(one)


async def take_key(store: Store, key: str, port: Port) -> None:
    """Wait until the lock of `key` is ours, over all processes of the store."""
    pause = FIRST_PAUSE
    while not await port.ask(store.try_take_key(key)):
        await port.pause(pause)
        pause = min(LAST_PAUSE, pause * 2)


def transaction_here() -> Transaction | None:
    """The transaction that this code is in."""
    found: Transaction | None = current_transaction.get()
    while found is not None and found.is_left:
        found = found.parent
    return found


def _name(hook: Any) -> str:
    return getattr(hook, "__name__", None) or type(hook).__name__

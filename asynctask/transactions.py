"""`with transaction() as txn:`, and `async with`: tasks that are committed together, or rolled back together."""

from __future__ import annotations

from contextvars import Token
from types import TracebackType
from typing import Any

from .blocking import drive
from .cache_policies import IsolationLevel as IsolationLevel
from .cache_policies import checked_isolation_level
from .commits import Transaction as Transaction
from .commits import transaction_here
from .errors import OptionError
from .redact import shown
from .results import KEEPER
from .runs import current_run, current_transaction
from .scopes import Runtime, runtime_here
from .staging import CommitMode as CommitMode
from .staging import TransactionState as TransactionState
from .waiting import Port


class transaction:  # in lower case, as it is read: `with transaction() as txn`
    """A block whose runs are committed together as it ends, or, when it is left by an error, rolled back together.

    `key` names what is done in it: once committed, `txn.is_committed()` is true from the start for the next one with
    that key, unless `overwrite` says otherwise. Nested blocks join the one around them, except with
    `commit_mode=CommitMode.EAGER`. `isolation_level=SERIALIZABLE` lets one process at a time in, and needs a key.
    A generator task that is iterated is no part of it, but what its body calls is, and a submitted one is.
    Raises `OptionError` for what cannot be, at once.
    """

    def __init__(
        self,
        key: str | None = None,
        *,
        commit_mode: CommitMode | str | None = None,
        isolation_level: IsolationLevel | str | None = None,
        overwrite: bool = False,
    ) -> None:
        if key is not None and (not isinstance(key, str) or not key):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"transaction(key=...) must be a string that is not empty, not {shown(key, 80)}")
        if isinstance(commit_mode, str):
            if commit_mode.upper() not in CommitMode.__members__:
                raise OptionError(
                    f"transaction(commit_mode=...) must be {' or '.join(CommitMode.__members__)}, not {commit_mode!r}"
                )
            commit_mode = CommitMode[commit_mode.upper()]
        if commit_mode is not None and not isinstance(commit_mode, CommitMode):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(
                f"transaction(commit_mode=...) must be a CommitMode or its name, not {shown(commit_mode, 80)}"
            )
        if not isinstance(overwrite, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"transaction(overwrite=...) must be True or False, not {shown(overwrite, 80)}")
        level = None if isolation_level is None else checked_isolation_level(isolation_level)
        if level is IsolationLevel.SERIALIZABLE and key is None:
            raise OptionError(
                "transaction(isolation_level=SERIALIZABLE) needs a key: it is what others are kept out by"
            )
        self._key = key
        self._commit_mode = commit_mode
        self._isolation_level = level
        self._overwrite = overwrite
        #: Each entry that is not left: it may be entered several times, also at once.
        self._open: list[tuple[Transaction, Port, Token[Any]]] = []

    async def _enter(self, is_async: bool) -> Transaction:
        run = current_run.get()
        runtime: Runtime = runtime_here() if run is None or run.inside is None else run.inside.runtime
        port: Port = runtime.loop_port if is_async else runtime.blocking_port
        here = transaction_here()
        made = Transaction(
            runtime.services,
            KEEPER,
            now=runtime.journal.now,
            key=self._key,
            commit_mode=self._commit_mode,
            isolation_level=self._isolation_level,
            overwrite=self._overwrite,
            parent=None if here is None else here.joinable(),
        )
        await made.begin(port)
        self._open.append((made, port, current_transaction.set(made)))
        return made

    async def _exit(self, is_async: bool, error: BaseException | None) -> None:
        here = current_transaction.get()
        entry = next((one for one in self._open if one[0] is here), self._open[-1])
        self._open.remove(entry)
        made, port, token = entry
        try:
            current_transaction.reset(token)
        except ValueError:  # left in another context than entered
            pass
        await made.leave(port, error)

    def __enter__(self) -> Transaction:
        made: Transaction = drive(self._enter(is_async=False))
        return made

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        drive(self._exit(is_async=False, error=error))

    async def __aenter__(self) -> Transaction:
        return await self._enter(is_async=True)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit(is_async=True, error=error)


def get_transaction() -> Transaction | None:
    """The transaction that this code is in: in a task with hooks, or inside another transaction, the run's own."""
    return transaction_here()

"""What is kept of a run's result: looking it up first, one run for many with the same key, and keeping it afterwards.

1. The look-up comes before any slot and any attempt. A run whose result is there goes from Pending to Cached.
2. A key that cannot be made, and an entry that cannot be read, leave the run uncached, with one warning: it runs.
3. A value is kept as bytes and made anew for each who gets it: nobody shares a mutable object with a stranger.
4. What is kept is durable before the run is Completed; inside a transaction, when that is committed.
5. An exception is kept under the run's own key, never under that of a cache.
6. Whatever way the run ends, `end` gives back the key and lets the next one run. It waits for nothing.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import msgspec

from .cache_keys import compute_key
from .cache_keys import prepare as prepare_key
from .cache_policies import CacheContext, CachePolicy, Inputs, IsolationLevel
from .commits import Transaction, take_key, transaction_here
from .errors import AsyncTaskError, MissingResult, OptionError, SerializationError, StoreError
from .flights import Flights, Seat
from .lock_managers import acquire_lock
from .options import Options
from .records import own_key
from .runs import Run, are_small, current_transaction
from .serializers import ERROR, Serializer, decode, decode_error, encode, encode_error, serializer_of
from .settings import settings
from .specs import TaskSpec
from .staging import Staged
from .states import COMPLETED, State
from .stores.base import Store, StoredResult
from .waiting import Port

logger = logging.getLogger("asynctask")


#: Types whose values are told apart by their types and equality (floats are not: 0.0 equals -0.0).
_PLAIN = frozenset((int, str, bool, bytes, type(None)))
#: Keys that a task remembers.
MOST_KNOWN = 1_000


class Keeping:
    """What one run keeps, from its look-up to its end."""

    __slots__ = (
        "has_lock",
        "key",
        "lock",
        "options",
        "seat",
        "store",
        "stored",
        "token",
        "transaction",
    )

    def __init__(self, run: Run, store: Store) -> None:
        self.options = run.spec.options
        self.store = store
        #: The run's own, if it is in one, or has hooks for it.
        self.transaction: Transaction | None = None
        self.key: str | None = None
        self.seat: Seat | None = None
        self.has_lock = False
        self.lock: Any = None
        self.stored: StoredResult | None = None
        self.token: Any = None

    async def keep(self, run: Run, value: Any, port: Port) -> Any:
        """Keep what the body returned, if it completes the run, and give it back. Raises `SerializationError`."""
        await self._keep(run, value, port)
        return value

    async def _keep(self, run: Run, value: Any, port: Port) -> None:
        if isinstance(value, State):
            if value.type is not COMPLETED:
                return
            value = value.data
        elif isinstance(value, (list, tuple, set)) and value and all(isinstance(one, State) for one in value):  # pyright: ignore[reportUnknownVariableType]
            return  # they stand for one state, which may be a failure
        options = self.options
        key = self.key
        if key is None:
            if not keeps_own(options):
                return
            key = own_key(run.number)
        stored = self.stored = made_result(run, key, value)
        own = self.transaction
        if own is not None and not own.is_committed():
            own.results[self.store, key] = Staged(self.store, stored, options.cache_result_in_memory)
            run.note(result=key)
            return
        try:
            await port.ask(self.store.write_results([stored], at_hand=options.cache_result_in_memory))
        except StoreError as error:
            logger.error("The result of run %r is not kept: %s", run.name, error)
        else:
            run.note(result=key)

    async def finish(self, run: Run, port: Port) -> None:
        """The run has its final state: commit or roll back what is its own, keep its exception."""
        completed = run.states[-1].type is COMPLETED
        if not completed and run.error is not None and keeps_own(self.options):
            key = own_key(run.number)
            serializer, payload = encode_error(run.error)
            stored = StoredResult(
                key=key, payload=payload, serializer=serializer, task_name=run.spec.name, run_number=run.number,
                created=run.journal.now(),
            )  # fmt: skip
            try:
                await port.ask(self.store.write_results([stored]))
            except StoreError as error:
                logger.error("The exception of run %r is not kept: %s", run.name, error)
            else:
                run.note(result=key)
        if self.transaction is not None:
            await self.transaction.end_with_run(port, completed)

    async def again(self, port: Port) -> None:
        """There will be another attempt."""
        if self.transaction is not None:
            self.transaction = await self.transaction.next_attempt(port)
            current_transaction.set(self.transaction)

    def end(self, run: Run, port: Port) -> None:
        """The run is over, whichever way: whoever waits for its key goes on."""
        if self.token is not None:
            try:
                current_transaction.reset(self.token)
            except ValueError:  # closed by the garbage collector, from wherever it ran: nothing to undo here
                pass
        if self.transaction is not None:
            self.transaction.end_now(port)
        if self.has_lock and self.key is not None:
            if self.lock is None:
                self.store.give_key(self.key)
            else:
                port.call_hooks_now([self._release], run, run.state)
        if self.seat is not None:
            own = self.transaction  # what is only staged, nobody outside may have
            done = run.states[-1].type is COMPLETED and (own is None or own.is_committed())
            flights_of(self.store).land(self.seat, self.stored if done else None)

    def _release(self, task: object, run: Run, state: State) -> Any:
        return self.lock.release_lock(self.key, str(run.id))


class Keeper:
    """Begins the keeping of runs; tasks that keep results, and runs in a transaction, have one in their way."""

    __slots__ = ("_folder", "_is_caching", "_is_plain", "_known", "_refresh")

    def __init__(self, spec: TaskSpec | None = None) -> None:
        """What is decided once for a task, by its options; without one, for runs that are only in a transaction."""
        options = None if spec is None else spec.options
        policy = None if options is None else options.cache_policy
        self._is_caching = options is not None and is_cached(options)
        self._refresh = None if options is None else options.refresh_cache
        #: The keys of plain arguments seen before, by their types and values, where the key is made of nothing else.
        self._known: dict[Any, str] = {}
        self._is_plain = (
            spec is not None
            and spec.options.cache_key_fn is None
            and spec.options.result_storage_key is None
            and type(policy) is Inputs
            and all(  # a default may be an object that changes
                one.default is one.empty or type(one.default) in _PLAIN for one in spec.signature.parameters.values()
            )
        )
        #: Where results are kept, if not in the runtime's store.
        self._folder = policy.key_storage if isinstance(policy, CachePolicy) else None
        if self._folder is None and options is not None:
            self._folder = options.result_storage

    async def begin(self, run: Run, port: Port) -> Keeping | None:
        """Look the result up, or wait for who makes it. None if it is there: then the run is Completed."""
        services = port.services
        store = services.store if self._folder is None else services.stores_at.find(self._folder)
        key = self._key(run) if self._is_caching else None
        refreshes = False
        if key is not None:
            refreshes = settings.values.tasks_refresh_cache if self._refresh is None else self._refresh
            if not refreshes:
                found = store.result_at_hand(key) if current_transaction.get() is None else staged(key, store)
                if found is not None and _hit(run, found):
                    return None
        keeping = Keeping(run, store)
        keeping.key = key
        try:
            if key is not None and not refreshes:
                await self._look_up(run, keeping, port, key)
                if run.states[-1].type is COMPLETED:
                    keeping.end(run, port)
                    return None
            self._join_transaction(run, keeping, port)
        except BaseException:
            keeping.end(run, port)
            raise
        return keeping

    def _key(self, run: Run) -> str | None:
        """The key of a run; for plain arguments that were seen before, 0.4 us instead of 2."""
        if run.kwargs or not self._is_plain:
            return _key_of(run)
        args = run.args
        kinds = tuple(map(type, args))
        if not _PLAIN.issuperset(kinds):
            return _key_of(run)
        call = (kinds, args)  # by type as well: 1, True and 1.0 are one key for a dict, and three for us
        key = self._known.get(call)
        if key is None:
            key = _key_of(run)
            if key is not None and are_small(args):
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                self._known[call] = key
        return key

    async def _look_up(self, run: Run, keeping: Keeping, port: Port, key: str) -> None:
        flights = flights_of(keeping.store)
        seat = flights.board(key, run)
        if seat is None:  # it would wait for itself: a task that calls itself with the same arguments
            keeping.key = None
            return
        keeping.seat = seat
        if not seat.is_called:
            await self._wait(run, seat, flights, port)
        if seat.result is not None and _hit(run, seat.result, is_new=True):
            return
        if current_transaction.get() is not None and _hit(run, staged(key, keeping.store)):
            return
        keeping.stored = await _read(run, keeping, port)
        if _hit(run, keeping.stored):
            return
        policy = keeping.options.cache_policy
        if isinstance(policy, CachePolicy) and policy.isolation_level is IsolationLevel.SERIALIZABLE:
            await self._take_lock(run, keeping, port, policy.lock_manager)
            keeping.stored = await _read(run, keeping, port)
            _hit(run, keeping.stored)

    async def _wait(self, run: Run, seat: Seat, flights: Flights, port: Port) -> None:
        run.blocker = f"run {seat.flight.leader.run.name}, which has the same cache key"
        limits = port.services.limits
        lent = None
        try:
            lent = limits.begin_following(run, seat)
            await port.until_called(run, seat)
        except BaseException:
            flights.leave(seat)
            raise
        finally:
            if lent is not None:
                limits.end_wait(lent)
        run.blocker = None

    async def _take_lock(self, run: Run, keeping: Keeping, port: Port, manager: Any) -> None:
        key = keeping.key
        assert key is not None
        run.blocker = "the lock of its cache key, which another process has"
        if manager is None:
            await take_key(keeping.store, key, port)
        else:
            await acquire_lock(manager, key, run, port)
        run.blocker = None
        keeping.lock = manager
        keeping.has_lock = True

    def _join_transaction(self, run: Run, keeping: Keeping, port: Port) -> None:
        here = transaction_here()
        parent = None if here is None else here.joinable()
        options = keeping.options
        if parent is None and not options.on_commit and not options.on_rollback:
            return
        own = keeping.transaction = Transaction(port.services, KEEPER, now=run.journal.now, parent=parent, run=run)
        keeping.token = current_transaction.set(own)
        if parent is not None:
            parent.started(run)


KEEPER = Keeper()


def is_cached(options: Options) -> bool:
    """Whether runs have a key under which others may find their result."""
    if options.cache_policy is None and options.cache_key_fn is None and options.result_storage_key is None:
        return False
    return options.persist_result is not False


def keeps_own(options: Options) -> bool:
    """Whether a run without such a key keeps its result under its own."""
    if options.persist_result is not None:
        return options.persist_result
    return options.result_storage is not None or options.result_serializer is not None


def prepare(spec: TaskSpec) -> None:
    """Check the options of a new task or flow, and put the keeper in the way of its runs.

    Raises `OptionError`, naming it and the option.
    """
    options = spec.options
    what = f"{spec.what} {spec.name!r}"
    if is_cached(options) and spec.is_generator:
        raise OptionError(f"{what}: a generator is never cached; return a list, or leave the option out")
    try:
        serializer = None if options.result_serializer is None else serializer_of(options.result_serializer)
    except OptionError as error:
        raise OptionError(f"{what}: option 'result_serializer': {error}") from error
    spec.options = msgspec.structs.replace(options, result_serializer=serializer)
    prepare_key(spec)
    if options.persist_result is False and is_cached(msgspec.structs.replace(options, persist_result=None)):
        logger.warning("%s: persist_result=False turns its caching off", what)
    spec.keeper = Keeper(spec)


def made_result(run: Run, key: str, value: Any) -> StoredResult:
    """The value of a run as it is kept. Raises `SerializationError`, naming the task."""
    options = run.spec.options
    serializer: Serializer | None = options.result_serializer
    try:
        name, payload = encode(value, serializer)
    except SerializationError as error:
        raise SerializationError(f"{run.spec.what} {run.spec.name!r}: its result cannot be kept: {error}") from error
    now = run.journal.now()
    expiration: timedelta | None = options.cache_expiration
    expires = None if expiration is None else now + expiration.total_seconds()
    return StoredResult(
        key=key, payload=payload, serializer=name, task_name=run.spec.name, run_number=run.number, created=now,
        expires=expires,
    )  # fmt: skip


def value_of(stored: StoredResult) -> Any:
    """The value that is kept. Raises the exception that is, and `SerializationError`."""
    if stored.serializer == ERROR:
        raise decode_error(stored.serializer, stored.payload)
    return decode(stored.serializer, stored.payload)


def staged(key: str, store: Store) -> StoredResult | None:
    """What was staged under `key` in the transactions that this code is in, or else what is at hand."""
    one: Transaction | None = current_transaction.get()
    while one is not None:
        found = one.results.get((store, key))
        if found is not None:
            return found.result
        one = one.parent
    return store.result_at_hand(key)


def _hit(run: Run, stored: StoredResult | None, *, is_new: bool = False) -> bool:
    """Complete the run with what is kept, if that is fresh and can be read."""
    if stored is None or (not is_new and not stored.is_fresh(run.journal.now())):
        return False
    try:
        value = decode(stored.serializer, stored.payload)
    except AsyncTaskError as error:
        logger.warning("Run %r is not taken from the cache, and runs: %s", run.name, error)
        return False
    run.value = value
    run.note(result=stored.key)
    run.enter(COMPLETED, "Cached")
    return True


async def _read(run: Run, keeping: Keeping, port: Port) -> StoredResult | None:
    key = keeping.key
    assert key is not None
    try:
        return await port.ask(keeping.store.read_result(key, at_hand=keeping.options.cache_result_in_memory))
    except (StoreError, MissingResult) as error:
        logger.warning("Run %r is not taken from the cache, and runs: %s", run.name, error)
        return None


def _key_of(run: Run) -> str | None:
    template = run.spec.options.result_storage_key
    if template is not None:
        context = CacheContext(run, run.parameters)
        try:
            filled = template.format(
                parameters=context.parameters, task_run=context.task_run, flow_run=run.flow, **context.parameters
            )
            filled.encode()  # no database takes a lone surrogate, as in the name of a file that is not UTF-8
            return filled
        except Exception as error:
            logger.warning("Run %r is not cached: its result_storage_key %r: %r", run.name, template, error)
            return None
    key, problem = compute_key(run)
    if problem is not None:
        logger.warning("Run %r is not cached: %s", run.name, problem)
    return key


def flights_of(store: Store) -> Flights:
    return store.flights

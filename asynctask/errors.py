"""Every exception of asynctask, as one tree.

    AsyncTaskError
    ├── OptionError (TypeError, ValueError)     a decorator was given a wrong option
    ├── HashError (TypeError)                   an argument that no cache key can be made of
    ├── CacheKeyError (ValueError)              a cache key function gave no key that can be used
    ├── ReservedArgumentError (TypeError)       a parameter has a name that asynctask uses
    ├── SettingsError (ValueError)              an environment variable or settings file is wrong
    ├── UsageError (ValueError)                 a command was given what does not exist or does not fit
    ├── BenchmarkError (RuntimeError)           a workload could not be measured
    ├── OutputClosed                            whoever read what a command prints has gone
    ├── ParameterBindError (TypeError)          a call does not fit the function's signature
    ├── ParameterValidationError (ValueError)   a flow's argument does not fit its annotation
    ├── MappingLengthMismatch (ValueError)      `map` over iterables of different lengths
    ├── MappingMissingIterable (ValueError)     `map` with nothing to map over
    ├── BlockingWaitError (RuntimeError)        a blocking wait that could only hang
    ├── RuntimeClosedError (RuntimeError)       work given to a Runtime that is closed
    ├── RuntimeInUseError (RuntimeError)        a Runtime entered twice
    ├── TransitionError (RuntimeError)          a move that `states.MOVES` does not allow
    ├── TransactionError (RuntimeError)         a transaction was used after its end, or would wait for itself
    ├── ObjectNotFound (LookupError)            no such run or limit in the store
    │   └── ConcurrencySlotAcquisitionError     `concurrency(strict=True)` on a limit that does not exist
    ├── AcquireConcurrencySlotTimeoutError (TimeoutError)   `concurrency` waited for its `timeout_seconds`
    ├── StoreError (RuntimeError)               the store cannot be opened, read or written
    │   ├── StoreBusy                           another process kept it locked for too long
    │   ├── StoreDamaged                        the database is damaged; it was not touched
    │   └── DamagedResult                       a stored result is not what this store wrote
    ├── MissingResult (LookupError)             a result was not kept, or its file is gone
    ├── SerializationError (TypeError)          a result cannot become bytes, or bytes a result
    └── RunError                                a run did not give a value
        ├── UnfinishedRun                       its result was asked for too early
        ├── UpstreamTaskError                   it never started: something it needs did not complete
        ├── ConcurrencyLimitAborted             it never started: a limit is 0, or less than it wants
        ├── DeadlockError                       it would have waited for ever
        ├── TaskTimeoutError (TimeoutError)     an attempt took longer than `timeout_seconds`
        ├── FailedRun                           it ended Failed and left no exception
        ├── CancelledRun                        it was cancelled
        └── CrashedRun                          it was ended by an interrupt, an exit, a closing loop
            └── WorkerLostError                 its worker process died, or could not start

`Interrupted` stands apart: a BaseException thrown into a thread whose body must stop.
"""

from __future__ import annotations


class AsyncTaskError(Exception):
    """Base of every exception that asynctask raises on its own account."""


class OptionError(AsyncTaskError, TypeError, ValueError):
    """A decorator or `with_options` was given an option that does not exist, or a wrong value for one."""


class HashError(AsyncTaskError, TypeError):
    """An argument cannot be hashed for a cache key; the text names it, its type, and what to write instead."""


class CacheKeyError(AsyncTaskError, ValueError):
    """A `cache_key_fn` or a cache policy raised (the cause), or what it gave cannot be a key."""


class ReservedArgumentError(AsyncTaskError, TypeError):
    """A function has a parameter named `wait_for` or `return_state`, which calls of tasks use themselves."""


class SettingsError(AsyncTaskError, ValueError):
    """An environment variable or a settings file holds a value that cannot be used."""


class UsageError(AsyncTaskError, ValueError):
    """A command was given a name that does not exist, or a value that does not fit: it ends with exit code 2."""


class BenchmarkError(AsyncTaskError, RuntimeError):
    """A workload could not be measured: its setup failed, its process was lost, or a report is none."""


class OutputClosed(AsyncTaskError):
    """A command cannot print any more, because whoever read it has gone, as `head` does."""


class ParameterBindError(AsyncTaskError, TypeError):
    """The arguments of a call do not fit the function's signature."""


class ParameterValidationError(AsyncTaskError, ValueError):
    """An argument of a flow does not fit the parameter's annotation."""


class MappingLengthMismatch(AsyncTaskError, ValueError):
    """`map` was given iterables of different lengths."""


class MappingMissingIterable(AsyncTaskError, ValueError):
    """`map` was given nothing to map over."""


class BlockingWaitError(AsyncTaskError, RuntimeError):
    """A blocking wait on the very event loop that would have to do the work; the text says what to write instead."""


class RuntimeClosedError(AsyncTaskError, RuntimeError):
    """Work was given to a Runtime that is closing or closed."""


class RuntimeInUseError(AsyncTaskError, RuntimeError):
    """A Runtime was entered a second time, or on a second event loop."""


class TransitionError(AsyncTaskError, RuntimeError):
    """A run was asked to make a move that the table `states.MOVES` does not allow; nothing was changed."""


class TransactionError(AsyncTaskError, RuntimeError):
    """Something was staged in a transaction that has ended, or it would have had to wait for itself."""


class ObjectNotFound(AsyncTaskError, LookupError):
    """The store holds no run, or no limit, of that id or name."""


class ConcurrencySlotAcquisitionError(ObjectNotFound):
    """`concurrency(..., strict=True)` or `rate_limit` names a limit that does not exist."""


class AcquireConcurrencySlotTimeoutError(AsyncTaskError, TimeoutError):
    """`concurrency` waited for slots as long as its `timeout_seconds`; nothing was taken."""


class StoreError(AsyncTaskError, RuntimeError):
    """The store, or a file beside it, cannot be opened, read or written; the text says which and what to do."""


class StoreBusy(StoreError):
    """Another process kept the store locked for longer than we wait."""


class StoreDamaged(StoreError):
    """The database file is damaged, or is none; nothing in it was changed."""


class DamagedResult(StoreError):
    """A stored result was cut, altered, or not written by this store; nothing of it was decoded."""


class MissingResult(AsyncTaskError, LookupError):
    """A run has kept no result, or it is gone: deleted, or its file is no longer there."""


class SerializationError(AsyncTaskError, TypeError):
    """A result cannot be turned into bytes that would give it back, or stored bytes cannot be turned into a result."""


class RunError(AsyncTaskError):
    """A run gave no value; base of the errors that say why."""


class UnfinishedRun(RunError):
    """The result of a run was asked for before the run ended."""


class UpstreamTaskError(RunError):
    """A run did not start, because a run that it depends on did not complete."""


class ConcurrencyLimitAborted(RunError):
    """A run did not start, because one of its tags has a limit of 0; or a block wants more than there is."""


class DeadlockError(RunError):
    """A wait could never have ended: those it is for wait for it in turn. The text draws the ring."""


class TaskTimeoutError(RunError, TimeoutError):
    """An attempt took longer than the task's `timeout_seconds`."""


class FailedRun(RunError):
    """A run ended Failed without an exception of its own, for instance by returning `states.Failed(...)`."""


class CancelledRun(RunError):
    """A run was cancelled: by its caller, its flow, or `TaskFuture.cancel()`."""


class CrashedRun(RunError):
    """A run was ended by an interrupt, an interpreter exit, a closing event loop or a lost worker."""


class WorkerLostError(CrashedRun):
    """The worker process that ran the body died: killed by the system, by `os._exit`; or it could not start."""


class Interrupted(BaseException):
    """Thrown into a thread to end a body whose run is over (timed out or cancelled); never seen by callers."""

"""asynctask: put `@task` on a function, and every call of it is a tracked, retryable run. No server."""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from .annotations import allow_failure, opaque, quote, unmapped
from .flows import AsyncFlow, Flow, flow
from .futures import TaskFuture, TaskFutureList, as_completed, wait
from .late import late as _late
from .logging import get_run_logger
from .records import TaskRun
from .runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from .scopes import Runtime
from .secrets import Secret
from .settings import settings, temporary_settings
from .states import State, StateType
from .tasks import AsyncGeneratorTask, AsyncTask, GeneratorTask, Task, tags, task

if _TYPE_CHECKING:
    from .client import get_client
    from .concurrency import concurrency, rate_limit
    from .dask_runner import DaskTaskRunner
    from .ray_runner import RayTaskRunner
    from .transactions import get_transaction, transaction

__version__ = "0.1.0"

__all__ = [
    "AsyncFlow",
    "AsyncGeneratorTask",
    "AsyncTask",
    "DaskTaskRunner",
    "Flow",
    "GeneratorTask",
    "ProcessPoolTaskRunner",
    "RayTaskRunner",
    "Runtime",
    "Secret",
    "State",
    "StateType",
    "Task",
    "TaskFuture",
    "TaskFutureList",
    "TaskRun",
    "ThreadPoolTaskRunner",
    "allow_failure",
    "as_completed",
    "concurrency",
    "flow",
    "get_client",
    "get_run_logger",
    "get_transaction",
    "opaque",
    "quote",
    "rate_limit",
    "settings",
    "tags",
    "task",
    "temporary_settings",
    "transaction",
    "unmapped",
    "wait",
]

#: Names whose files are imported when somebody asks for them: what they need takes longer than all the rest.
_LATE = {
    "DaskTaskRunner": "dask_runner",
    "RayTaskRunner": "ray_runner",
    "concurrency": "concurrency",
    "get_client": "client",
    "get_transaction": "transactions",
    "rate_limit": "concurrency",
    "transaction": "transactions",
}


def __getattr__(name: str) -> _Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_late(_LATE[name]), name)
    return value

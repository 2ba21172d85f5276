"""asynctask: put `@task` on a function, and every call of it is a tracked, retryable run. No server."""

from .annotations import allow_failure, opaque, quote, unmapped
from .client import get_client
from .flows import AsyncFlow, Flow, flow
from .futures import TaskFuture, TaskFutureList, as_completed, wait
from .logging import get_run_logger
from .records import TaskRun
from .runners import ThreadPoolTaskRunner
from .scopes import Runtime
from .secrets import Secret
from .settings import settings, temporary_settings
from .states import State, StateType
from .tasks import AsyncGeneratorTask, AsyncTask, GeneratorTask, Task, tags, task

__version__ = "0.1.0"

__all__ = [
    "AsyncFlow",
    "AsyncGeneratorTask",
    "AsyncTask",
    "Flow",
    "GeneratorTask",
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
    "flow",
    "get_client",
    "get_run_logger",
    "opaque",
    "quote",
    "settings",
    "tags",
    "task",
    "temporary_settings",
    "unmapped",
    "wait",
]

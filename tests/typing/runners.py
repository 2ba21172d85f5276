"""Task runners of one's own, and the contract that judges them, as type checkers see them."""

from concurrent.futures import Executor, ThreadPoolExecutor
from typing import assert_type

from asynctask import Runtime, task
from asynctask.options import TaskRunner
from asynctask.testing import TaskRunnerContract


class OneThread:
    def executor(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)

    def close(self) -> None:
        pass


class TestOneThread(TaskRunnerContract):
    nests = False
    patience = 60

    def runner(self) -> OneThread:
        return OneThread()


def uses(runner: TaskRunner) -> Executor:
    return runner.executor()


assert_type(TestOneThread().runner(), OneThread)
assert_type(uses(OneThread()), Executor)
Runtime(task_runner=OneThread())


@task(task_runner=OneThread())
def page(number: int) -> str:
    return str(number)


assert_type(page(3), str)

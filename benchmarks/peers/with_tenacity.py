"""tenacity: `@retry` round a function, which is awaited in the caller's task.

Nothing is started, counted or kept. Four attempts and no delay between them, so that what is seen is the wrapper alone.
"""

from harness import main, workload
from tenacity import retry, stop_after_attempt, wait_none

TITLE = "tenacity"
REQUIREMENTS = ["tenacity==9.2.1"]
VARIANTS = {"": "nothing"}
IMPORT = "import tenacity"
ABSENT = {
    "awaited": "see the retry wrapper: awaiting a wrapped function is the same",
    "others": "it wraps a function, and starts, keeps and limits nothing",
}


@retry(stop=stop_after_attempt(4), wait=wait_none())
async def succeeds() -> None:
    pass


@workload("retry")
async def retried(count: int) -> None:
    for _ in range(count):
        await succeeds()


if __name__ == "__main__":
    main()

"""What an editor shows for tasks and flows that are methods: `self` and `cls` are taken off."""

from collections.abc import AsyncGenerator, Generator
from typing import assert_type

from asynctask import TaskFuture, TaskFutureList, flow, task


class Shelf:
    @task
    def plain(self, number: int) -> str:
        return str(number)

    @task
    async def coloured(self, number: int) -> str:
        return str(number)

    @task(retries=1)
    async def optioned(self, number: int, *, text: str = "") -> str:
        return str(number) + text

    @task
    def steps(self, number: int) -> Generator[str, None, None]:
        yield str(number)

    @task
    async def async_steps(self, number: int) -> AsyncGenerator[str, None]:
        yield str(number)

    @staticmethod
    @task
    def static(number: int) -> str:
        return str(number)

    @staticmethod
    @task(retries=1)
    async def async_static(number: int) -> str:
        return str(number)

    @flow
    def whole(self, number: int) -> str:
        return str(number)

    @flow
    async def async_whole(self, number: int) -> str:
        return str(number)


async def of_an_instance(shelf: Shelf) -> None:
    assert_type(shelf.plain(1), str)
    assert_type(await shelf.coloured(1), str)
    assert_type(await shelf.optioned(1, text="a"), str)
    assert_type(shelf.plain.submit(1), TaskFuture[str])
    assert_type(await shelf.coloured.submit(1), str)
    assert_type(shelf.coloured.map([1, 2]), TaskFutureList[str])
    assert_type(shelf.plain.with_options(retries=1)(1), str)
    for value in shelf.steps(1):
        assert_type(value, str)
    async for value in shelf.async_steps(1):
        assert_type(value, str)
    assert_type(shelf.whole(1), str)
    assert_type(await shelf.async_whole(1), str)


async def of_the_class(shelf: Shelf) -> None:
    assert_type(Shelf.plain(shelf, 1), str)
    assert_type(await Shelf.coloured(shelf, 1), str)
    assert_type(Shelf.plain.name, str)


async def static() -> None:
    assert_type(Shelf.static(1), str)
    assert_type(await Shelf.async_static(1), str)
    assert_type(Shelf.static.submit(1), TaskFuture[str])

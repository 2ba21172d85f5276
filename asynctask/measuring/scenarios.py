"""What is measured: a scenario of works, each a call with its share of the load.

1. Any task, flow, plain function or coroutine function is a scenario of one work.
2. What the setup gives, unless it is None, is the first argument of every work, and the argument of the teardown.
   A setup that is a generator gives what it yields; what follows the `yield` is the teardown.
3. The teardown is called whenever the setup has returned, whatever became of the load.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

from ..definitions import Definition
from ..errors import OptionError
from ..redact import shown
from ..specs import colour_of, name_of

#: What a setup gives after its end.
DONE = object()


class Work:
    """One call of a scenario: of a task, a flow, or a plain function, sync or async.

    `weight` is its share of the calls, against those of the other works. With `each`, the calls get one of its values
    in turn, as the argument that follows `args`. `name` is what it is called in the report.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        args: Iterable[Any] = (),
        *,
        kwargs: Mapping[str, Any] | None = None,
        weight: float = 1.0,
        name: str | None = None,
        each: Iterable[Any] | None = None,
    ) -> None:
        if not callable(call) or isinstance(call, type):
            raise OptionError(f"Work: call must be a task, a flow or a function, not {shown(call)}")
        self.name = name or (call.name if isinstance(call, Definition) else name_of(call))
        if isinstance(args, (str, bytes)):
            raise OptionError(f"work {self.name!r}: args must be a tuple of arguments, not {shown(args)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(f"work {self.name!r}: weight must be a number above 0, not {shown(weight)}")
        self.call = call
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.weight = float(weight)
        self.each = None if each is None else list(each)
        if self.each == []:
            raise OptionError(f"work {self.name!r}: each has no values to call it with")

    @property
    def is_async(self) -> bool:
        """Whether its body runs on an event loop."""
        return self.call.spec.is_async if isinstance(self.call, Definition) else colour_of(self.call)[0]

    @property
    def is_generator(self) -> bool:
        return self.call.spec.is_generator if isinstance(self.call, Definition) else colour_of(self.call)[1]

    @property
    def is_flow(self) -> bool:
        return isinstance(self.call, Definition) and self.call.spec.is_flow

    @property
    def kind(self) -> str:
        """What people call it."""
        what = self.call.what if isinstance(self.call, Definition) else "function"
        return f"{'async' if self.is_async else 'sync'} {what}"

    def __repr__(self) -> str:
        return f"<Work {self.name!r}, {self.kind}>"


class Scenario:
    """Works with their shares of the load, and what is done before and after: `Scenario(Work(a, weight=3), Work(b))`.

    Instead of a `Work`, the task or function itself will do. `setup` and `teardown` are plain or async; what the setup
    returns or yields, unless it is None, is the first argument of every work. Both are called in each process that
    measures, inside its runtime. Raises `OptionError` for what cannot be called.
    """

    def __init__(
        self,
        *works: Work | Callable[..., Any],
        setup: Callable[..., Any] | None = None,
        teardown: Callable[..., Any] | None = None,
        name: str | None = None,
    ) -> None:
        if not works:
            raise OptionError("Scenario: it needs at least one work: Scenario(Work(call, args))")
        self.works = [one if isinstance(one, Work) else Work(one) for one in works]
        names = [one.name for one in self.works]
        doubled = sorted({one for one in names if names.count(one) > 1})
        if doubled:
            raise OptionError(f"Scenario: two works are called {doubled[0]!r}; give one of them a name: Work(name=...)")
        for what, given in (("setup", setup), ("teardown", teardown)):
            if given is not None and not callable(given):
                raise OptionError(f"Scenario: {what} must be a function, not {shown(given)}")
        if teardown is not None and setup is not None and colour_of(setup)[1]:
            raise OptionError("Scenario: what follows the `yield` of setup is the teardown; there cannot be another")
        self.setup = setup
        self.teardown = teardown
        self.name = name or " + ".join(names)

    def __repr__(self) -> str:
        return f"<Scenario {self.name!r}, {len(self.works)} works>"

    @asynccontextmanager
    async def prepared(self) -> AsyncGenerator[tuple[Any, ...], None]:
        """The setup, and at the end the teardown; gives the arguments that every work has before its own."""
        steps: Any = None
        value: Any = None
        if self.setup is not None:
            is_async, is_generator = colour_of(self.setup)
            steps = self.setup() if is_generator else None
            value = await _done(_next_of(steps, is_async) if is_generator else self.setup)
        given = () if value is None else (value,)
        try:
            yield given
        finally:
            if self.teardown is not None:
                with anyio.CancelScope(shield=True):  # also when the measurement is broken off
                    await _done(self.teardown, *given)
            elif steps is not None and await _done(_next_of(steps, hasattr(steps, "__anext__"), DONE)) is not DONE:
                await _done(getattr(steps, "aclose", None) or steps.close)
                raise OptionError(f"scenario {self.name!r}: setup yields twice; it may yield once")


def scenario_of(target: Scenario | Work | Callable[..., Any]) -> Scenario:
    """The scenario that a target means (rule 1). Raises `OptionError` for what cannot be called."""
    return target if isinstance(target, Scenario) else Scenario(target)


async def _done(function: Callable[..., Any], *args: Any) -> Any:
    value = function(*args)
    return await value if inspect.isawaitable(value) else value


def _next_of(steps: Any, is_async: bool, *default: Any) -> Callable[[], Any]:
    """What goes on with a setup that is a generator."""
    return partial(anext if is_async else next, steps, *default)

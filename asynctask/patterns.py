"""Runs that differ in their last argument only, as those of a stream do: what they have in common is found out once."""

from __future__ import annotations

import contextvars
from typing import Any

from .engine import execute
from .loops import EventLoop, Work
from .runs import NO_KWARGS, SMALL, Run, are_small, current_run, current_transaction
from .scopes import Scope
from .states import PENDING, State


class Pattern:
    """What the runs of one reader have in common: what he has round him (run, tags, transaction) when it is made.

    They are begun where they are made, in a child that is there already, on the loop `here`; unless the scope has its
    runs on another loop.
    """

    __slots__ = ("_bound", "_family", "_home", "_journal", "_port", "_scope", "_spec", "_tags", "_transaction",
                 "context", "is_here", "reader")  # fmt: skip

    def __init__(self, example: Run, here: EventLoop) -> None:
        """`example` is never begun. Its last argument is not kept."""
        self._spec = example.spec
        self._tags = example.tags
        self._family = (example.parent_number, example.flow_number, example.parent, example.flow)
        self._bound = example.args[:-1]
        self._journal = example.journal
        self._scope: Scope = example.inside
        self._port = self._scope.runtime.loop_port
        #: Nothing can be inside a run that has ended; then it is time for another pattern.
        self.reader = current_run.get()
        self._transaction = current_transaction.get()
        self._home = here.for_begun()
        #: Each run has a copy of it.
        self.context = contextvars.copy_context()
        self.is_here = self._scope.home_of(here) == here

    def run(self, value: Any) -> tuple[Run, Work]:
        """A run for `value`, and what takes it to its end, or waits for that. Raises `RuntimeClosedError`."""
        scope, journal = self._scope, self._journal
        parent_number, flow_number, parent, flow = self._family
        if self._bound:
            args: tuple[Any, ...] = (*self._bound, value)
            is_small = are_small(args)
        else:
            args = (value,)
            is_small = value.__class__ in SMALL or are_small(args)
        now = journal.now()
        run = Run(
            self._spec, journal.new_id(now), (State(PENDING, "Pending", now),), self._tags, parent_number, flow_number,
            None, None, args, NO_KWARGS, None, journal, parent, flow, scope, is_small, True, True, self._home,
        )  # fmt: skip
        if scope.is_closed or scope.runtime.is_closing:
            scope.refuse_if_closed(run, self.reader)
        if not self.is_here:
            future = self.context.copy().run(scope.submit, run)
            return run, future.wait_async()  # type: ignore[return-value]
        scope.enlist(run, self._transaction)
        return run, execute(run, self._port)  # type: ignore[return-value]

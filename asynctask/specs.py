"""What a decorated function is: its name, key, kind and signature, decided once, at decoration.

The engine knows a `TaskSpec`; the `Task` that people hold (floor 6) is known only to itself.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import string
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from .errors import OptionError, ParameterBindError, ReservedArgumentError
from .options import Options
from .redact import shown_as, text_of
from .secrets import MASK, is_secret_name

RESERVED = ("wait_for", "return_state")


class TaskSpec(msgspec.Struct, eq=False, weakref=True, dict=True):
    """One decorated function; `body` is `fn` with the user's `around` wrapped about it."""

    fn: Callable[..., Any]
    body: Callable[..., Any]
    options: Options
    key: str
    is_async: bool
    is_generator: bool
    is_flow: bool
    #: How many positional arguments fit, if there are no others.
    least: int = 0
    most: int = 0
    #: The object that people hold; handed to hooks.
    task: Any = None
    #: The text of the function, for cache policies that ask for it.
    source: str | None = None
    #: Set by flows: runs one attempt inside a scope of its own, as `enclose(run, port)`.
    enclose: Callable[[Any, Any], Any] | None = None
    #: Set for tasks that keep results: what looks them up first, and keeps them (see `results`).
    keeper: Any = None
    #: What of it travels to workers, once one has been called (see `parcels`).
    sent: Any = None
    #: Set by flows that check their arguments: for those that were futures at the call, once they are filled in.
    check_filled: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None

    @property
    def name(self) -> str:
        return self.options.name

    @property
    def what(self) -> str:
        """What messages call it: "task" or "flow"."""
        return "flow" if self.is_flow else "task"

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        try:
            return inspect.signature(self.fn)
        except (TypeError, ValueError):  # a builtin that does not tell: only the call itself knows what fits
            return inspect.signature(_anything)

    @functools.cached_property
    def has_defaults(self) -> bool:
        """Whether a call without arguments has parameters to show all the same."""
        return any(one.default is not one.empty for one in self.signature.parameters.values())

    def parameters(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by parameter name, with defaults filled in.

        Raises `ParameterBindError` when they do not fit. Costs 5 us, so it is called only where names are needed.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            hint = ""
            if next(iter(self.signature.parameters), None) == "cls" and not self.is_flow:
                hint = "; under @classmethod only a call passes the class on (from Python 3.13): put @task on top"
            raise ParameterBindError(
                f"{self.what} {self.name!r}: {text_of(error)}; its signature is {shown_signature(self.signature)}{hint}"
            ) from None
        bound.apply_defaults()
        return bound.arguments

    @functools.cached_property
    def names_and_defaults(self) -> tuple[tuple[str, ...], tuple[Any, ...]] | None:
        """Every parameter and its default (`empty` if it has none), in order; None with `*args` or `**kwargs`."""
        parameters = self.signature.parameters.values()
        if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters):
            return None
        return tuple(one.name for one in parameters), tuple(one.default for one in parameters)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What `parameters` gives, for a call that is known to fit: 0.3 us where there is no `*args` or `**kwargs`."""
        simple = self.names_and_defaults
        if simple is None:
            return self.parameters(args, kwargs)
        names, defaults = simple
        count = len(args)
        if count == len(names):
            return dict(zip(names, args, strict=True))
        named = dict(zip(names, args + defaults[count:], strict=True))
        if kwargs:
            named.update(kwargs)
        return named


class _Default:
    """In the place of a default value, where a signature is shown: a text for it, without a secret or a large value."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def shown_signature(signature: inspect.Signature) -> str:
    """The signature as people write it, with defaults as the records of runs show values."""
    parameters = [
        one if one.default is one.empty else one.replace(default=_Default(shown_as(one.name, one.default, 80)))
        for one in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters))


def make_spec(what: str, fn: Callable[..., Any], options: Options) -> TaskSpec:
    """The spec of a function. Raises `ReservedArgumentError` for a parameter name that calls use themselves."""
    is_async, is_generator = colour_of(fn)
    spec = TaskSpec(
        fn=fn,
        body=fn,
        options=options,
        key=key_of(fn, options.name),
        is_async=is_async,
        is_generator=is_generator,
        is_flow=what == "flow",
    )
    _count_arguments(spec)
    for reserved in RESERVED:
        if reserved in spec.signature.parameters:
            raise ReservedArgumentError(
                f"{what} {options.name!r}: a parameter may not be called {reserved!r}, "
                f"because calls use that name themselves; rename it"
            )
    _check_run_name(spec)
    return spec


def _check_run_name(spec: TaskSpec) -> None:
    """Raise `OptionError` for a run name that no call could fill in."""
    run_name = spec.options.run_name
    where = f"{spec.what} {spec.name!r}: option '{spec.what}_run_name'"
    if isinstance(run_name, str):
        for field in _fields(run_name):
            if field not in spec.signature.parameters:
                shown = f"{{{field}}}" if field and not field.isdigit() else "a field without a name"
                raise OptionError(
                    f"{where} has {shown}, which is no parameter; there are: {', '.join(spec.signature.parameters)}"
                )
    elif run_name is not None:
        if inspect.iscoroutinefunction(kind_of(run_name)):
            raise OptionError(f"{where} must be a plain function, not the async {name_of(run_name)!r}")
        try:
            parameters = inspect.signature(run_name).parameters.values()
        except (TypeError, ValueError):  # a builtin that does not tell
            return
        for one in parameters:
            is_variable = one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            if one.name != "parameters" and one.default is one.empty and not is_variable:
                raise OptionError(
                    f"{where} must be a function of nothing, or of one argument called 'parameters', "
                    f"not of {one.name!r}"
                )


def _fields(template: str) -> set[str]:
    """The names that a format string begins its fields with, those in nested format specifications included."""
    names: set[str] = set()
    for _, field, specification, _ in string.Formatter().parse(template):
        if field is not None:
            names.add(re.split(r"[.\[]", field, maxsplit=1)[0])
            names |= _fields(specification or "")
    return names


@functools.lru_cache(maxsize=1024)
def without_secrets(template: str) -> str:
    """The format string with a mask for each field that goes by the name of a secret."""
    parts: list[str] = []
    for literal, field, specification, conversion in string.Formatter().parse(template):
        parts.append(literal.replace("{", "{{").replace("}", "}}"))
        if field is None:
            continue
        if any(map(is_secret_name, re.split(r"[.\[\]]+", field))):
            parts.append(MASK)
        else:
            sign = f"!{conversion}" if conversion else ""
            parts.append(f"{{{field}{sign}:{specification}}}")
    return "".join(parts)


def _anything(*args: Any, **kwargs: Any) -> None:
    """Has the signature of what has none."""


def _count_arguments(spec: TaskSpec) -> None:
    least = most = 0
    for parameter in spec.signature.parameters.values():
        is_required = parameter.default is parameter.empty
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            least, most = least + is_required, most + 1
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = sys.maxsize
        elif parameter.kind is parameter.KEYWORD_ONLY and is_required:
            least = sys.maxsize  # positional arguments alone never fit: always bind
            break
    spec.least, spec.most = least, most


def unwrapped(fn: Callable[..., Any]) -> Any:
    """What a `functools.partial`, or a partial of partials, calls in the end."""
    inner: Any = fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    return inner


def plain_function(fn: Any) -> Callable[..., Any]:
    """The function inside a `classmethod` or `staticmethod`; anything else as it is."""
    function: Callable[..., Any] = fn.__func__ if isinstance(fn, (classmethod, staticmethod)) else fn  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return function


def kind_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function whose colour decides: through partials, wrappers and callable objects."""
    inner = unwrapped(fn)
    if not inspect.isroutine(inner) and not isinstance(inner, type):
        inner = type(inner).__call__
    function: Callable[..., Any] = inner
    return function


def colour_of(fn: Callable[..., Any]) -> tuple[bool, bool]:
    """Whether the function is async, and whether it is a generator."""
    inner = kind_of(fn)
    is_async_generator = inspect.isasyncgenfunction(inner)
    return (
        is_async_generator or inspect.iscoroutinefunction(inner),
        is_async_generator or inspect.isgeneratorfunction(inner),
    )


def name_of(fn: Callable[..., Any]) -> str:
    """The function's own name; the class's name for a callable object."""
    inner = unwrapped(fn)
    name: str = getattr(inner, "__name__", None) or type(inner).__name__
    return name


def key_of(fn: Callable[..., Any], name: str) -> str:
    """A stable key from name and fully qualified name; the code is no part of it, so that it survives an edit."""
    inner = unwrapped(fn)
    where: Any = inner if hasattr(inner, "__qualname__") else inner.__class__
    module = getattr(where, "__module__", None) or "builtins"
    module = public_module(module)
    import hashlib  # 2 ms, so not before there is a task

    text = f"{name}\0{module}.{where.__qualname__}".encode(errors="surrogatepass")  # a name may be any string
    return f"{name}-{hashlib.blake2b(text, digest_size=6).hexdigest()}"


#: The second is what a spawned child process calls the program's own file.
MAIN = ("__main__", "__mp_main__")


def public_module(module: str) -> str:
    """The name under which others import the module: it is part of what is kept for them."""
    return main_module() if module in MAIN else module


def main_module() -> str:
    """The name under which the file being run as a script would be imported."""
    # While a spawned child process imports the file, `__main__` is still a line of multiprocessing's own.
    main = sys.modules.get("__mp_main__") or sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        name: str = spec.parent if spec.name.endswith(".__main__") else spec.name
        return name
    file = getattr(main, "__file__", None)
    return os.path.splitext(os.path.basename(file))[0] if file else "__main__"


def refuse_unusable(what: str, fn: object) -> None:
    """Raise `OptionError` for something that cannot become a task or flow."""
    if isinstance(fn, type):
        raise OptionError(f"@{what} on the class {fn.__name__!r}: decorate its methods, or an instance with __call__")
    if not callable(fn):
        raise OptionError(f"@{what} needs a function or another callable, not {type(fn).__name__}")

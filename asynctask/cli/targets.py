"""What `FILE.py:NAME` and `module:name` mean: the flow or task, and the values for its parameters.

1. A file is loaded as a script would be: its own folder is `sys.path[0]`, `sys.argv[0]` is its name. Only its
   `__name__` is not `"__main__"` but the name that it would be imported by, so that its main block does not run,
   and its tasks have the keys that `python FILE.py` gives them.
2. A module is imported as `python -m` would: from the current folder, then from where Python finds modules.
3. A value is JSON if its text is and the annotation takes it so; else the text itself, as the annotation converts it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import typing
from decimal import Decimal
from types import ModuleType
from typing import Any

import msgspec

from ..definitions import Definition
from ..errors import ParameterValidationError, UsageError
from ..flows import checks_of, coerced
from ..measuring.scenarios import Scenario, Work
from ..tasks import make_task

AnyDefinition = Definition[Any]


def find_target(target: str) -> AnyDefinition:
    """The flow or task. Raises `UsageError`, saying what there is, and whatever the user's code raises as it loads."""
    place, name = _parts(target)
    module = _load(place)
    return _only_one(module, place) if name is None else _named(module, place, name)


def bench_target(target: str, given: list[str]) -> Scenario:
    """The scenario, or that of a task, flow or plain function, with the arguments that `--arg name=value` mean."""
    place, name = _parts(target)
    module = _load(place)
    found: Any = _scenario_or_callable(module, name)
    if isinstance(found, Scenario):
        if given:
            raise UsageError(f"--arg {given[0]}: {target} is a scenario, whose works have their arguments already")
        return found
    definition: AnyDefinition
    if found is not None:
        definition = make_task(found, {})
    else:
        definition = found = _only_one(module, place) if name is None else _named(module, place, name)
    args, kwargs = bound(definition, given, option="--arg")
    return Scenario(Work(found, args, kwargs=kwargs))


def _scenario_or_callable(module: ModuleType, name: str | None) -> Any:
    """What only a benchmark can have for its target; without a name, the only scenario of the module."""
    if name is None:
        scenarios = [value for value in vars(module).values() if isinstance(value, Scenario)]
        return scenarios[0] if len(scenarios) == 1 else None
    value = _attribute(module, name)
    is_plain = callable(value) and not isinstance(value, (type, Definition))
    return value if is_plain or isinstance(value, Scenario) else None


def _load(place: str) -> ModuleType:
    return _load_file(place) if _is_file(place) else _load_module(place)


def _parts(target: str) -> tuple[str, str | None]:
    place, colon, name = target.rpartition(":")
    if not colon or os.path.isfile(target) or name.endswith(".py"):  # C:\\flow.py has a colon, and no name
        return target, None
    if not place or not name:
        raise UsageError(f"{target!r} names nothing to run; write FILE.py, FILE.py:NAME or module:name")
    return place, name


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or os.path.isfile(place)


def _load_file(place: str) -> ModuleType:
    path = os.path.realpath(place)
    if not os.path.isfile(path):
        raise UsageError(f"there is no file {place!r}")
    stem = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{place!r} is not a Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    _look_first_in(os.path.dirname(path))
    sys.argv[:] = [place]
    # A file called like a module that is loaded already (inspect.py, say) must not take its place for everybody.
    known = sys.modules.setdefault(stem, module) is not module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if not known:
            del sys.modules[stem]
        raise
    return module


def _load_module(name: str) -> ModuleType:
    _look_first_in(os.getcwd())
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            found = None  # a parent package of it is missing; anything else is an error inside one
        elif isinstance(error, ValueError) or name.startswith("."):  # a name without a spec; "." is relative to nothing
            raise UsageError(f"{name!r} is no module name: {error}") from error
        else:
            raise
    if found is None:
        raise UsageError(f"there is no module {name!r}, nor a file of that name")
    return importlib.import_module(name)


def _look_first_in(folder: str) -> None:
    """Put `folder` where a script's own folder would be: there is ours now, unless Python was asked for a safe path."""
    sys.path[0 : 0 if sys.flags.safe_path else 1] = [folder]


def _here(module: ModuleType) -> dict[str, AnyDefinition]:
    """The flows and tasks that the module defines, not those that it imports; all of them if there are no others."""
    every = {name: value for name, value in vars(module).items() if isinstance(value, Definition)}
    own = {name: value for name, value in every.items() if getattr(value, "__module__", None) == module.__name__}
    return own or every


def _only_one(module: ModuleType, place: str) -> AnyDefinition:
    found = _here(module)
    every = _distinct(found)
    flows = [one for one in every if one.spec.is_flow]
    candidates = flows or every
    if len(candidates) == 1:
        return candidates[0]
    raise UsageError(
        f"{place} has {len(candidates) or 'no'} {'flows' if flows else 'flows or tasks'}"
        + (f"; say which: {_listed(place, found)}" if found else "")
    )


def _distinct(found: dict[str, AnyDefinition]) -> list[AnyDefinition]:
    """Each flow or task once, though it may have several names."""
    distinct: list[AnyDefinition] = []
    for one in found.values():
        if not any(one is other for other in distinct):
            distinct.append(one)
    return distinct


def _listed(place: str, found: dict[str, AnyDefinition]) -> str:
    names = sorted(found, key=lambda name: (not found[name].spec.is_flow, name))
    return ", ".join(f"{place}:{name} ({found[name].what})" for name in names)


def _attribute(module: ModuleType, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            break
    return value


def _named(module: ModuleType, place: str, name: str) -> AnyDefinition:
    value = _attribute(module, name)
    if value is None:  # by the name that it was given: `@flow(name="nightly import")`
        called = [one for one in _distinct(_here(module)) if one.name == name]
        value = called[0] if len(called) == 1 else None
    if isinstance(value, Definition):
        return value
    found = _here(module)
    there_are = f"there are: {_listed(place, found)}" if found else "there are no flows or tasks in it"
    if value is None:
        raise UsageError(f"{place} has no {name!r}; {there_are}")
    raise UsageError(f"{place}:{name} is {_kind(value)}, not a flow or task; {there_are}")


def _kind(value: object) -> str:
    return f"a plain {type(value).__name__} (put @task or @flow on it)" if callable(value) else type(value).__name__


def bound(
    definition: AnyDefinition, given: list[str], *, option: str = "--param"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that `--param name=value`, or another option, mean, by the signature. Raises `UsageError`."""
    spec = definition.spec
    signature = spec.signature
    known = list(signature.parameters.values())[len(definition._bound) :]  # pyright: ignore[reportPrivateUsage]
    by_name = {one.name: one for one in known}
    takes_any = next((one for one in known if one.kind is one.VAR_KEYWORD), None)
    hints = checks_of(spec)
    values: dict[str, Any] = {}
    more: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} {text!r} has no value; write {option} name=value")
        if name in values or name in more:
            raise UsageError(f"{option} {name} is given twice")
        parameter = by_name.get(name)
        if parameter is not None and parameter.kind is parameter.VAR_POSITIONAL:
            raise UsageError(f"{option} {name}: *{name} cannot be given on the command line")
        if parameter is not None and parameter is not takes_any:
            values[name] = _converted(definition, name, value, hints.get(name, Any))
        elif takes_any is not None:
            more[name] = _json_or_text(value)
        else:
            raise UsageError(f"{spec.what} {spec.name!r} has no parameter {name!r}; {_parameters(by_name)}")
    missing = [
        one.name
        for one in known
        if one.default is one.empty and one.name not in values and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if missing:
        wanted = " ".join(f"{option} {name}=..." for name in missing)
        raise UsageError(f"{spec.what} {spec.name!r} needs {', '.join(missing)}: add {wanted}")
    args = tuple(values.pop(one.name) for one in known if one.kind is one.POSITIONAL_ONLY and one.name in values)
    return args, {**values, **more}


def _parameters(by_name: dict[str, inspect.Parameter]) -> str:
    return f"it has: {', '.join(map(str, by_name.values()))}" if by_name else "it takes none"


def _converted(definition: AnyDefinition, name: str, text: str, hint: Any) -> Any:
    value = _json_or_text(text)
    if hint is str or hint is Any:
        return text if hint is str else value
    # 123 is JSON, but for `str | None` it is text; and 1.10 as a Decimal has a digit more than JSON's 1.1.
    readings = [text, value] if Decimal in (hint, *typing.get_args(hint)) else [value, text]
    try:
        return coerced(definition.spec, name, readings[0], hint)
    except ParameterValidationError as error:
        try:
            return coerced(definition.spec, name, readings[1], hint)
        except ParameterValidationError:
            raise UsageError(str(error)) from error


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return text

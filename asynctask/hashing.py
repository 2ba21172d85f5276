"""A digest of values that is the same in every process and interpreter run, and different for different values.

1. Nothing here calls `hash()`, and an `id()` only tells whether an object was met before.
2. A value is hashed from its leaves up, each part by its own digest (`shapes` says what the parts are); so the digests
   can be sorted where order means nothing, and it makes no difference which equal parts are one object.
3. Nothing recurses. Parts that lead back to each other are hashed together: each is told apart by what it consists of,
   then by what its parts consist of, and so on until no more can be told apart.
4. Large bytes, arrays and frames are read where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from types import FunctionType
from typing import Any

import msgspec

from .errors import HashError
from .redact import text_of
from .shapes import LONG, ORDERED, PAIRED, SORTED, atom, shape_of, type_name

#: Parts that lead back to each other are told apart within a few rounds, unless they form a long chain of like ones:
#: one of 2,000 takes 1,000 rounds. So after these rounds the steps are numbered, which take a second or two.
FREE_ROUNDS = 20
MOST_STEPS = 1_000_000

_PLAIN: frozenset[type] = frozenset((int, bool, type(None)))
_encode = msgspec.json.Encoder(order="deterministic").encode
_sha256: Any = None


def inputs_digest(parameters: Mapping[str, Any], *, salt: str = "", of_flow: bool = False) -> str:
    """128 bits, in hexadecimal, for the arguments of a call. About 1 us for texts and numbers.

    Another `salt` gives another digest: hashing it along costs nothing, and hashing again 0.4 us.
    Raises `HashError`, naming the argument and the type, for what cannot be hashed.
    """
    for value in parameters.values():  # as `shapes.is_plain`, without the call
        kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]
        if kind is str:
            if len(value) > LONG:
                break
        elif kind is float:
            if value - value != 0.0:  # NaN or infinite, for both of which JSON says null
                break
        elif kind not in _PLAIN:
            break
    else:
        try:
            data = _encode(parameters)
            if salt:
                data = salt.encode("utf-8", "surrogatepass") + data
            digest: str = (_sha256 or _load())(data).hexdigest()
            return digest[:32]
        except (OverflowError, TypeError, ValueError):  # an int too long, half a surrogate pair, no dict
            pass
    walked = _walked(parameters, of_flow)
    return text_digest(salt + walked) if salt else walked


def digest(value: Any) -> str:
    """128 bits, in hexadecimal, for one value. Raises `HashError`, naming the type, for what cannot be hashed."""
    try:
        return _hash(b"value " + _Walk().part(value)).hex()
    except HashError as error:
        raise HashError(f"cannot hash {_type_of(value)}: it is, or holds, {error}") from error.__cause__
    except Exception as error:
        raise HashError(f"cannot hash {_type_of(value)}: {type(error).__name__}: {text_of(error)}") from error


def text_digest(text: str) -> str:
    """128 bits, in hexadecimal, for a text."""
    digest: str = (_sha256 or _load())(text.encode("utf-8", "surrogatepass")).hexdigest()
    return digest[:32]


def _walked(parameters: Mapping[str, Any], of_flow: bool) -> str:
    walk = _Walk()
    parts: list[bytes] = []
    for name in sorted(parameters):
        try:
            parts += (walk.part(name), walk.part(parameters[name]))
        except HashError as error:
            raise HashError(_refusal(name, of_flow, f"it is, or holds, {error}")) from error.__cause__
        except Exception as error:
            why = f"taking {_type_of(parameters[name])} apart raised {type(error).__name__}: {text_of(error)}"
            raise HashError(_refusal(name, of_flow, why)) from error
    return _hash(b"inputs " + b"".join(parts)).hex()


def _refusal(name: str, of_flow: bool, why: str) -> str:
    if of_flow:
        return f"flow parameter {name!r} cannot be hashed for a cache key: {why}; use a policy without FLOW_PARAMETERS"
    return (
        f"argument {name!r} cannot be hashed for a cache key: {why}; "
        f"leave it out with `cache_policy=INPUTS - {name!r}`, or make the key yourself with cache_key_fn"
    )


def _type_of(value: Any) -> str:
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]
    return type_name(kind)


def _load() -> Any:
    global _sha256
    import hashlib  # 2 ms

    _sha256 = hashlib.sha256
    return _sha256


def _hash(data: bytes) -> bytes:
    digest: bytes = (_sha256 or _load())(data).digest()
    return digest[:16]


#: Of the values without parts, these are worth remembering: what many objects have in common, and what may be long.
_KEPT = (type, FunctionType, bytes, str, bytearray)


class _Node:
    """A value on the way: its parts so far, each either its bytes or a node that is not known yet."""

    __slots__ = ("children", "head", "index", "low", "order", "parts", "value")

    def __init__(self, value: Any, head: bytes, children: Iterator[Any], order: int, index: int) -> None:
        self.value = value
        self.head = head
        self.children = children
        self.order = order
        self.parts: list[bytes | _Node] = []
        #: When it was met, and the earliest met of those that it leads back to (Tarjan's algorithm).
        self.index = self.low = index

    def joined(self, names: Mapping[_Node, bytes]) -> bytes:
        """The head and the parts, with the names of those that are not known yet."""
        parts = [part if isinstance(part, bytes) else names[part] for part in self.parts]
        if self.order == SORTED:
            parts.sort()
        elif self.order == PAIRED:
            parts = list(chain.from_iterable(sorted(zip(parts[::2], parts[1::2], strict=True))))
        return b"%d:%b%d,%d;%b" % (len(self.head), self.head, self.order, len(parts), b"".join(parts))


class _Walk:
    """One walk over values; it remembers what it has met, so that a part that is shared is hashed once."""

    __slots__ = ("kept", "known")

    def __init__(self) -> None:
        #: Digests by the identity of what they are of, which `kept` keeps alive as long.
        self.known: dict[int, bytes] = {}
        self.kept: list[Any] = []

    def part(self, value: Any) -> bytes:
        """What stands for a value within a larger one."""
        result: list[bytes | _Node] = []
        top = _Node(None, b"", iter((value,)), ORDERED, -1)
        top.parts = result
        path = [top]
        #: Met and not known yet: by identity, and in the order of meeting. The nodes keep the values alive.
        met: dict[int, _Node] = {}
        waiting: list[_Node] = []
        while True:
            node = path[-1]
            for child in node.children:
                part = atom(child) or self.known.get(id(child)) or met.get(id(child))  # deliberate: alive until known
                if part is None:
                    head, children, order = shape_of(child)
                    if children == ():
                        part = self.leaf(child, head)
                    else:
                        below = _Node(child, head, iter(children), order, len(waiting))
                        met[id(child)] = below  # deliberate: alive until known
                        waiting.append(below)
                        path.append(below)
                        break
                elif isinstance(part, _Node):
                    node.low = min(node.low, part.index)
                node.parts.append(part)
            else:
                path.pop()
                if not path:
                    first = result[0]
                    assert isinstance(first, bytes)
                    return first
                above = path[-1]
                if node.low < node.index:
                    above.low = min(above.low, node.low)
                    above.parts.append(node)
                else:
                    above.parts.append(self.close(node, waiting, met))

    def leaf(self, value: Any, head: bytes) -> bytes:
        part = b"#" + _hash(b"%d:%b%d,0;" % (len(head), head, ORDERED))
        if isinstance(value, _KEPT):
            self.known[id(value)] = part  # deliberate: kept alive one line below
            self.kept.append(value)
        return part

    def close(self, node: _Node, waiting: list[_Node], met: dict[int, _Node]) -> bytes:
        """Give digests to a node and to those after it, which lead back to it and to nothing before it."""
        together = waiting[node.index :]
        del waiting[node.index :]
        for one in together:
            del met[id(one.value)]  # deliberate: the node still holds it
        if len(together) == 1 and node.low == node.index and node not in node.parts:
            self.keep(node, _hash(node.joined({})))
        else:
            for one, digest in _digests_of_circle(together):
                self.keep(one, digest)
        return self.known[id(node.value)]  # deliberate: it is kept now

    def keep(self, node: _Node, digest: bytes) -> None:
        self.kept.append(node.value)
        self.known[id(node.value)] = b"#" + digest  # deliberate: kept alive one line above


def _digests_of_circle(nodes: list[_Node]) -> Iterator[tuple[_Node, bytes]]:
    """A digest for each of several nodes that lead to each other, whichever of them was met first."""
    names = dict.fromkeys(nodes, b"?")
    different, steps = 1, -FREE_ROUNDS * len(nodes)
    while True:
        longer = {node: b"#" + _hash(node.joined(names)) for node in nodes}
        count = len(set(longer.values()))
        if count == different:  # stable: nothing more can be told apart, and `longer` says what leads to what
            break
        names, different = longer, count
        steps += len(nodes)
        if steps > MOST_STEPS:
            raise HashError(f"{_type_of(nodes[0].value)} in a circle of {len(nodes):,} parts, too long to follow")
    whole = b"circle " + b"".join(sorted(set(longer.values())))
    for node in nodes:
        yield node, _hash(whole + longer[node])

"""Tasks that are methods: instance, class and static ones, in both orders of the decorators."""

import abc
import gc
import inspect
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from asynctask import AsyncTask, Task, task
from asynctask.errors import OptionError, ParameterBindError


class Account:
    rate = 1

    def __init__(self, owner: str) -> None:
        self.owner = owner

    @task
    def greet(self, word: str = "hello") -> str:
        """Greets the owner."""
        return f"{word} {self.owner}"

    @task
    async def agreet(self, word: str = "hello") -> str:
        await anyio.sleep(0)
        return f"{word} {self.owner}"

    @task
    def letters(self) -> Iterator[str]:
        yield from self.owner

    @task
    async def aletters(self) -> Any:
        for letter in self.owner:
            yield letter

    @task
    @classmethod
    def inner_class(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x * cls.rate

    @classmethod
    @task
    def outer_class(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x * cls.rate

    @task
    @classmethod
    async def inner_aclass(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x * cls.rate

    @classmethod
    @task
    async def outer_aclass(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x * cls.rate

    @task
    @staticmethod
    def inner_static(x: int) -> int:
        return x + 1

    @staticmethod
    @task
    def outer_static(x: int) -> int:
        return x + 1

    @task(retries=1)
    @staticmethod
    async def inner_astatic(x: int) -> int:
        return x + 1


class Savings(Account):
    rate = 10


def test_a_method_gets_its_own_instance() -> None:
    a, b = Account("a"), Account("b")
    bound_a, bound_b = a.greet, b.greet
    assert (bound_a(), bound_b()) == ("hello a", "hello b")
    assert (bound_b("bye"), bound_a(word="bye")) == ("bye b", "bye a")
    assert isinstance(bound_a, Task)


def test_two_instances_never_mix_from_many_threads() -> None:
    accounts = [Account(str(number)) for number in range(20)]
    together = threading.Barrier(20)
    seen: dict[str, str] = {}

    def work(account: Account) -> None:
        bound = account.greet
        together.wait(20)
        seen[account.owner] = bound()

    threads = [threading.Thread(target=work, args=(account,)) for account in accounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {account.owner: f"hello {account.owner}" for account in accounts}


async def test_every_form_of_call_works_on_a_method() -> None:
    a, b = Account("a"), Account("b")
    assert await a.greet.submit("hi") == "hi a"
    assert await b.greet.map(["x", "y"]) == ["x b", "y b"]
    assert await a.agreet() == "hello a"
    assert await b.agreet.submit() == "hello b"
    assert await a.agreet.map(["x", "y"]) == ["x a", "y a"]
    assert (await b.agreet(return_state=True)).result() == "hello b"
    assert [s async for s in a.agreet.stream(["p", "q"], concurrency=1)] == ["p a", "q a"]
    assert list(Account("xy").letters()) == ["x", "y"]
    assert [letter async for letter in Account("xy").aletters()] == ["x", "y"]
    assert await Account("xy").aletters.submit() == ["x", "y"]


def test_a_method_taken_from_the_class_wants_the_instance() -> None:
    assert Account.greet(Account("a"), "hi") == "hi a"
    assert Account.greet(self=Account("a")) == "hello a"
    with pytest.raises(ParameterBindError, match="'self'"):
        Account.greet()
    with pytest.raises(ParameterBindError, match="too many positional"):
        Account("a").greet("hi", "ho")


#: From Python 3.13 on, a call is all that `@classmethod` passes the class on for, so `@task` belongs on top of it.
WHOLE_CLASS_METHODS = ["inner_class", "outer_class"] if sys.version_info < (3, 13) else ["inner_class"]


@pytest.mark.parametrize("name", WHOLE_CLASS_METHODS)
def test_a_class_method_gets_the_class_it_is_called_on(name: str) -> None:
    for owner, expected in ((Account, ("Account", 2)), (Savings, ("Savings", 20)), (Savings("s"), ("Savings", 20))):
        method = getattr(owner, name)
        assert method(2) == expected
        assert method(x=2) == expected
        assert method.submit(2).result(20) == expected
        assert method.map([2]).result(20) == [expected]
        assert method.with_options(retries=1)(2) == expected


@pytest.mark.parametrize("name", ["inner_aclass", "outer_aclass"][: len(WHOLE_CLASS_METHODS)])
async def test_an_async_class_method_gets_the_class_it_is_called_on(name: str) -> None:
    for owner, expected in ((Account, ("Account", 2)), (Savings, ("Savings", 20)), (Savings("s"), ("Savings", 20))):
        method = getattr(owner, name)
        assert isinstance(method, AsyncTask)
        assert await method(2) == expected
        assert await method.submit(2) == expected
        assert await method.map([2]) == [expected]


def test_a_task_under_classmethod_can_be_called_where_classmethod_does_not_chain() -> None:
    """From Python 3.13 on, `@classmethod` above `@task` makes a plain bound method of the task."""
    assert types.MethodType(vars(Account)["outer_class"].__func__, Savings)(2) == ("Savings", 20)


def test_submitting_without_the_class_says_what_to_do() -> None:
    """Where `@classmethod` does not chain, `C.method.submit` is the task's own, which has no class."""
    with pytest.raises(ParameterBindError, match="put @task on top"):
        vars(Account)["outer_class"].__func__.submit(2)


@pytest.mark.parametrize("name", ["inner_static", "outer_static"])
def test_a_static_method_gets_neither(name: str) -> None:
    for owner in (Account, Account("a"), Savings):
        method = getattr(owner, name)
        assert method(1) == 2
        assert method.submit(1).result(20) == 2
        assert method.map([1, 2]).result(20) == [2, 3]
        assert method.with_options(retries=1)(1) == 2


async def test_an_async_static_method_keeps_its_options() -> None:
    assert await Account.inner_astatic(1) == 2
    assert Account("a").inner_astatic.retries == 1


def test_with_options_of_a_bound_method_stays_bound() -> None:
    a = Account("a")
    changed = a.greet.with_options(name="greeting", retries=2)
    assert (changed(), changed.name, a.greet.name) == ("hello a", "greeting", "greet")


def test_a_bound_method_shares_name_key_and_description() -> None:
    a = Account("a")
    assert a.greet.task_key == Account.greet.task_key == Savings("s").greet.task_key
    assert (a.greet.name, a.greet.description) == ("greet", "Greets the owner.")
    assert Account.greet.task_key != Account.agreet.task_key


def test_self_is_the_first_recorded_parameter() -> None:
    seen: list[Any] = []

    class Shop:
        @task(on_completion=lambda t, run, s: seen.append(run.parameters))
        def buy(self, thing: str, count: int = 1) -> str:
            return thing

    shop = Shop()
    shop.buy("pear")
    assert seen == [{"self": shop, "thing": "pear", "count": 1}]


def test_a_hook_on_the_classs_task_is_for_every_instance() -> None:
    seen: list[str] = []

    class Shop:
        @task
        def buy(self) -> None: ...

        @buy.on_completion
        def bought(task: Any, run: Any, state: Any) -> None:
            seen.append(state.name)

        @task
        @classmethod
        def make(cls) -> None: ...

    Shop().buy()
    Shop().buy()
    assert seen == ["Completed"] * 2
    Shop.make.on_completion(lambda t, r, s: seen.append("made"))
    Shop.make()
    Shop.make.with_options(retries=1)()
    assert seen == ["Completed"] * 2 + ["made"] * 2


def test_a_hook_cannot_be_put_on_one_instance() -> None:
    """A bound method is made anew at each look-up, so such a hook would be lost, or else be everybody's."""
    with pytest.raises(OptionError, match=r"task 'greet'.*on_failure.*with_options"):
        Account("a").greet.on_failure(lambda t, r, s: None)


def test_a_task_method_does_not_keep_its_instance_alive() -> None:
    a = Account("a")
    gone = threading.Event()
    weakref.finalize(a, gone.set)
    assert a.greet() == "hello a"
    assert a.greet.submit().result(20) == "hello a"
    del a
    gc.collect()
    assert gone.wait(20)  # the worker thread may still be on its way out of the call


def test_a_method_of_a_slotted_class_is_a_task() -> None:
    class Slotted:
        __slots__ = ("x",)

        @task
        def get(self) -> int:
            return self.x

    slotted = Slotted()
    slotted.x = 3
    assert slotted.get() == 3


def test_super_finds_the_task_of_the_parent() -> None:
    class Child(Account):
        @task
        def greet(self, word: str = "hello") -> str:
            return super().greet(word).upper()

    assert Child("a").greet() == "HELLO A"


def test_what_binds_nothing_as_a_class_attribute_binds_nothing_as_a_task() -> None:
    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

    class Holder:
        add = task(Adder())
        size = task(len)
        join = task(", ".join)

    assert (Holder().add(1), Holder().size("abc"), Holder().join(["a", "b"])) == (2, 3, "a, b")
    assert Holder.add(1) == 2


def test_an_abstract_task_stays_abstract() -> None:
    class Base(abc.ABC):
        @task
        @abc.abstractmethod
        def work(self) -> int: ...

    class Done(Base):
        @task
        def work(self) -> int:
            return 1

    assert inspect.isabstract(Base)
    assert Done().work() == 1


def test_the_signature_of_a_bound_task_is_that_of_a_bound_method() -> None:
    account = Account("Ada")
    for name in ("greet", "agreet", "letters", "inner_class", "outer_class"):
        assert "self" not in inspect.signature(getattr(account, name)).parameters
        assert "cls" not in inspect.signature(getattr(account, name)).parameters
    assert list(inspect.signature(account.greet).parameters) == ["word"]
    assert list(inspect.signature(account.inner_class).parameters) == ["x"]
    assert list(inspect.signature(Account.greet).parameters) == ["self", "word"]
    inspect.signature(Task)  # the class is not disturbed

    class Any_:
        @task
        def all(*values: Any) -> None: ...

    assert list(inspect.signature(Any_().all).parameters) == ["values"]


def test_a_bound_task_is_equal_to_itself_each_time_it_is_looked_up() -> None:
    ada, other = Account("Ada"), Account("Ada")
    listeners = [ada.greet, other.greet]
    listeners.remove(other.greet)
    assert listeners == [ada.greet]
    assert {ada.greet: 1}[ada.greet] == 1
    assert ada.greet != ada.greet.with_options(retries=1)
    assert ada.greet not in (Account.greet, ada.agreet, other.greet)
    assert Account.greet == Account.greet != Account.greet.with_options(retries=1)

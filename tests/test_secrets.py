"""What counts as a secret, and that none reaches a log, a record or a message of ours, whatever goes wrong."""

import copy
import enum
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import msgspec
import pydantic
import pytest

import asynctask
from asynctask import Secret, flow, get_client, states, task, temporary_settings
from asynctask.errors import AsyncTaskError, OptionError, ParameterBindError, ParameterValidationError, SettingsError
from asynctask.redact import shown
from asynctask.secrets import is_secret_name, masked, masked_url
from testkit import fresh

CANARY = "canary" + "-7f3a"  # in two pieces, so that a traceback that shows this line does not show it


@pytest.mark.parametrize(
    "name",
    [
        *("password", "PASSWORD", "db_password", "dbPassword", "DBPassword", "pgpassword", "password2", "new-password"),
        *("passwd", "pwd", "db_pwd", "passphrase", "smtp_pass", "DB_PASS", "pw", "passwords", "password_hash"),
        *("secret", "client_secret", "clientSecret", "secrets", "secret_id", "app_secret_value", "SECRET_KEY"),
        *("token", "access_token", "accessToken", "X-Auth-Token", "tokens_secret", "refresh_tokens", "authtoken"),
        *("csrfmiddlewaretoken", "token_2", "jwt", "id_token", "GITHUB_TOKEN", "user.token"),
        *("api_key", "apikey", "apiKey", "APIKey", "X-Api-Key", "api_keys", "access_key", "AWS_ACCESS_KEY_ID"),
        *("private_key", "privateKey", "ssh_key", "encryption_key", "signing_key", "credential", "credentials"),
        *("aws_credentials", "creds", "auth", "basic_auth", "Authorization", "Proxy-Authorization", "auth_header"),
        *("cookie", "Set-Cookie", "cookies", "session_id", "sessionid", "sessionId", "session_key", "otp"),
        "x" * 1_000_000 + "_password",
    ],
    ids=lambda name: name[-30:],
)
def test_the_name_of_a_secret_is_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("token_count", "max_tokens", "tokens", "tokenizer", "tokenize", "num_tokens", "prompt_tokens", "token_ids"),
        *("max_token", "pad_token", "eos_token", "next_token", "page_token", "token_limit", "token_type", "n_tokens"),
        *("author", "authority", "authors", "passed", "passes", "first_pass", "bypass", "compass", "passenger"),
        *("secretary", "secret_name", "password_file", "passwordLength", "password_policy", "has_password"),
        *("is_secret", "auth_url", "auth_method", "authenticated", "cookie_name", "cookie_domain", "credentials_path"),
        *("key", "keys", "public_key", "primary_key", "cache_key", "sort_key", "keyboard", "monkey", "id", "user_id"),
        *("session", "sessions", "private", "api", "access", "user", "name", "", "1", "\ud800", "ключ"),
    ],
    ids=ascii,
)
def test_a_name_that_only_looks_like_one_is_shown(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://ada:pw@host:5432/db", "postgresql://ada:***@host:5432/db"),
        ("postgresql://ada@host/db", "postgresql://ada@host/db"),
        ("redis://:pw@host", "redis://:***@host"),
        ("amqp://ada:p@w:x@host", "amqp://ada:***@host"),
        ("postgresql://ada:p/w?x#y@host", "postgresql://ada:***@host"),
        ("postgresql://ada:p w@host", "postgresql://ada:***@host"),
        ("postgresql://ada:p w/x@host", "postgresql://ada:***@host"),
        ("https://ghp_token@github.com/a", "https://***@github.com/a"),
        ("http://host:80/users/@ada", "http://host:80/users/@ada"),
        ("http://host:80?x=@ada", "http://host:80?x=@ada"),
        ("postgresql://host/db?user=ada&password=pw&x=1", "postgresql://host/db?user=ada&password=**********&x=1"),
        ("https://host/?X-Amz-Signature=abc&sig=def", "https://host/?X-Amz-Signature=abc&sig=**********"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("memory://", "memory://"),
        ("ada:pw@host", "ada:pw@host"),
    ],
)
def test_a_url_shows_without_its_password(url: str, text: str) -> None:
    assert masked_url(url) == text


@pytest.mark.parametrize(
    ("text", "masked_text"),
    [
        ("see postgresql://ada:pw@host and redis://:pw@h", "see postgresql://ada:***@host and redis://:***@h"),
        ("host=h password=pw user=ada", "host=h password=********** user=ada"),
        ("Server=h;Pwd=pw;User=ada", "Server=h;Pwd=**********;User=ada"),
        ('{"password": "p\\"w", "a": 1}', '{"password": "**********", "a": 1}'),
        ("{'api_key': 'pw', 'a': 1}", "{'api_key': '**********', 'a': 1}"),
        ("f(token=['a', 'b'])", "f(token=**********"),
        ("password=None", "password=None"),
        ("the token: expected", "the token: expected"),
        ("max_tokens=5", "max_tokens=5"),
    ],
)
def test_passwords_in_a_text_are_masked(text: str, masked_text: str) -> None:
    assert masked(text) == masked_text


@pytest.mark.parametrize("before", [0, 150, 190, 195, 400])
@pytest.mark.parametrize("length", [5, 300, 5000])
def test_a_password_in_a_url_does_not_show_where_the_text_is_cut(before: int, length: int) -> None:
    value = " " * before + "postgresql://ada:" + "7" * length + "x@host/" + "y" * 1000
    for one in (value, value.encode(), [value], ValueError(value), {"a": value}):
        assert "77" not in shown(one)


@pytest.mark.parametrize("before", [0, 150, 190, 195])
def test_a_token_in_a_url_does_not_show_where_the_text_is_cut(before: int) -> None:
    value = " " * before + "https://" + "7" * 250 + "x@github.com/" + "y" * 1000
    for one in (value, value.encode(), [value], ValueError(value), {"a": value}):
        assert "77" not in shown(one)


# -- Secret -------------------------------------------------------------------------------------------------------


def test_a_secret_shows_as_a_mask_in_every_form() -> None:
    secret = Secret(CANARY)
    texts = (repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", f"{secret:>20}", repr([secret]))
    assert [text for text in texts if "canary" in text or "*****" not in text] == []
    assert secret.get() == CANARY
    assert not hasattr(secret, "__dict__")


def test_a_secret_equals_another_of_an_equal_value_and_not_the_value() -> None:
    assert Secret([1]) == Secret([1])
    assert Secret(1) != Secret(2)
    assert Secret(1) != 1
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Secret([1]))


@pytest.mark.parametrize("value", ["", "a", 0, 1, None, [], [0]])
def test_a_secret_is_true_or_false_as_its_value_is(value: object) -> None:
    assert bool(Secret(value)) is bool(value)


def test_a_secret_travels_and_is_copied_with_its_value() -> None:
    for copied in (
        pickle.loads(pickle.dumps(Secret(CANARY))),
        copy.deepcopy(Secret(CANARY)),
        copy.copy(Secret(CANARY)),
    ):
        assert copied == Secret(CANARY)
        assert copied.get() == CANARY


def test_a_secret_cannot_be_changed() -> None:
    secret = Secret(1)
    with pytest.raises(AttributeError):
        secret.value = 2
    with pytest.raises(AttributeError):
        secret._value = 2  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(AttributeError):
        del secret._value  # pyright: ignore[reportPrivateUsage]
    assert secret.get() == 1


def test_nothing_encodes_a_secret_as_plain_data() -> None:
    with pytest.raises(TypeError):
        msgspec.json.encode({"a": Secret(CANARY)})


def test_a_flow_makes_a_secret_of_an_argument_that_is_annotated_as_one() -> None:
    @flow
    def login(password: Secret[str], other: Secret[str] | None = None) -> tuple[Any, Any]:
        return password, other

    assert login("a") == (Secret("a"), None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert login(Secret("a"), Secret("b")) == (Secret("a"), Secret("b"))


def test_secret_is_exported() -> None:
    assert asynctask.Secret is Secret


# -- nothing leaks ------------------------------------------------------------------------------------------------


class Kind(enum.Enum):
    A = "a"


class Config(msgspec.Struct):
    password: Kind


class Model(pydantic.BaseModel):
    password: int
    user: str


class Quoting(pydantic.BaseModel):
    """Quotes what is wrong in its own words."""

    password: str

    @pydantic.field_validator("password")
    @classmethod
    def is_long(cls, value: str) -> str:
        raise ValueError(f"{value} is too short")


@pytest.fixture
def noted(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Texts that must hold no canary: those added to it, and the log at DEBUG."""
    texts: list[str] = []
    with caplog.at_level(logging.DEBUG):
        yield texts
        assert texts or caplog.text
        assert [text for text in [*texts, caplog.text] if CANARY in text] == []


def carriers() -> dict[str, dict[str, Any]]:
    """Arguments that carry the canary, in each way that is masked."""
    return {
        "by name": {"password": CANARY, "value": None},
        "in a dict": {"password": None, "value": {"a": [{"api_key": CANARY}], "token": CANARY}},
        "in a Secret": {"password": None, "value": Secret(CANARY)},
        "in a URL": {"password": None, "value": f"postgresql://ada:{CANARY}@host/db"},
        "in a struct": {"password": None, "value": [msgspec.convert({"password": "a"}, Config), Secret(CANARY)]},
    }


def raising(*_: object) -> bool:
    raise RuntimeError("broken")


def fails(password: object, value: object) -> None:
    raise ValueError("no good")


def raising_name() -> str:
    raise RuntimeError("broken")


def exits(password: object, value: object) -> None:
    raise SystemExit(3)


def spins(password: object, value: object) -> None:
    while True:
        pass


def forgets(password: object, value: object) -> Any:
    return anyio.sleep(0)


def returns_no_end(password: object, value: object) -> Any:
    return states.Running()


def completes(password: object, value: object) -> None: ...


#: What goes wrong: a body and the options of its task.
PATHS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "nothing": (completes, {}),
    "the body": (fails, {}),
    "a retry": (fails, {"retries": 1}),
    "retry_condition_fn": (fails, {"retries": 1, "retry_condition_fn": raising}),
    "hooks": (fails, {"on_running": raising, "on_failure": raising}),
    "the name's template": (fails, {"task_run_name": "{password.missing}{value.missing}"}),
    "the name's function": (fails, {"task_run_name": raising_name}),
    "an exit": (exits, {}),
    "a coroutine returned": (forgets, {}),
    "a state returned": (returns_no_end, {}),
    "time": (spins, {"timeout_seconds": 0.01}),
    "a limit of 0": (fails, {"tags": ["none"]}),
}


@pytest.mark.parametrize("carrier", carriers())
@pytest.mark.parametrize("path", PATHS)
async def test_a_run_leaves_no_secret_in_logs_messages_or_its_record(path: str, carrier: str, noted: list[str]) -> None:
    arguments = carriers()[carrier]
    async with fresh(), get_client() as client:
        await client.create_concurrency_limit("none", 0)
        body, options = PATHS[path]
        future = task(**options)(body).submit(**arguments)
        live = await client.read_task_run(future.task_run_id)
        state = await future.wait_async()
        assert state is not None
        record = await client.read_task_run(future.task_run_id)
        assert "**" in str(live.parameters)
        noted += [repr(live), repr(record), repr(state), state.message, repr(state.data), repr(future)]


def unreachable() -> None:
    raise ConnectionError(f"no route to postgresql://ada:{CANARY}@host/db")


async def test_the_state_of_a_failed_run_shows_the_url_in_its_error_without_the_password(noted: list[str]) -> None:
    async with fresh(), get_client() as client:
        future = task(unreachable).submit()
        await future.wait_async()
        record = await client.read_task_run(future.task_run_id)
    assert record.state.message == "ConnectionError: no route to postgresql://ada:***@host/db"
    noted.append(repr(record))


@pytest.mark.parametrize("carrier", carriers())
def test_a_call_that_does_not_fit_tells_names_and_no_values(carrier: str, noted: list[str]) -> None:
    arguments = carriers()[carrier]
    url_with_password = f"a://b:{CANARY}@c"

    def body(
        password: object, value: object, *, more: object, api_key: str = CANARY, url: str = url_with_password
    ) -> None: ...

    for made in (task(body), flow(body)):
        wrong: list[dict[str, Any]] = [{}, {"more": 1, "other": CANARY}]
        for extra in wrong:
            with pytest.raises(ParameterBindError, match="password") as caught:
                made(**arguments, **extra)
            noted.append(str(caught.value))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, CANARY),
        (Kind, CANARY),
        (list[Kind], [CANARY]),
        (dict[str, int], {"a": CANARY}),
        (pydantic.PositiveInt, CANARY),
        (Model, {"password": CANARY}),
        (Quoting, {"password": CANARY}),
        (Config, {"password": CANARY}),
        (type("Opaque", (), {}), CANARY),
    ],
    ids=str,
)
def test_an_argument_that_is_refused_does_not_show_what_it_was(annotation: Any, value: Any, noted: list[str]) -> None:
    """Neither in the message nor in what a traceback shows of its causes."""

    def by_name(password: object) -> None: ...
    def inside(config: object) -> None: ...

    by_name.__annotations__["password"] = annotation
    inside.__annotations__["config"] = annotation
    checked = [flow(by_name)] + ([flow(inside)] if annotation in (Model, Quoting, Config) else [])
    for made in checked:
        with pytest.raises(ParameterValidationError) as caught:
            made(value)
        error: BaseException | None = caught.value
        while error is not None:
            noted.append(str(error))
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_refused_argument_that_is_no_secret_is_shown() -> None:
    @flow
    def count(number: int) -> None: ...

    with pytest.raises(ParameterValidationError, match="it was given 'five'"):
        count("five")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_store_url_shows_without_its_password(noted: list[str]) -> None:
    url = f"nosuch://ada:{CANARY}@host/db"
    with pytest.raises(OptionError, match="ada") as refused:
        asynctask.Runtime(store=url)
    noted.append(str(refused.value))
    with pytest.raises(SettingsError, match="store_url") as wrong, temporary_settings(store_url=[url]):
        raise AssertionError("entered")
    noted.append(str(wrong.value))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda value: task(lambda: None).submit(wait_for=value),
        lambda value: asynctask.wait([value]),
        lambda value: task(lambda one: one).stream(value, concurrency=1),
    ],
    ids=["wait_for", "wait", "stream"],
)
def test_a_value_in_the_wrong_place_is_shown_masked(misuse: Callable[[Any], Any], noted: list[str]) -> None:
    class Holder(msgspec.Struct, frozen=True):
        password: str

    with pytest.raises((AsyncTaskError, TypeError)) as caught:
        misuse(Holder(CANARY))
    assert "Holder(" in str(caught.value)
    noted.append(str(caught.value))

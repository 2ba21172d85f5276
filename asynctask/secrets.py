"""What is a secret, and is not shown: by its type (`Secret`), by its name, and inside a text."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")

MASK = "**********"
MASKED = repr(MASK)


class Secret(Generic[T]):
    """A value that no log, record or message shows: `Secret(value)`, and `.get()` gives it back.

    It equals another secret of an equal value, is hashable and true or false as the value is, and can be pickled
    (the value goes along).
    """

    __slots__ = ("__weakref__", "_value")
    _value: T

    def __init__(self, value: T) -> None:
        object.__setattr__(self, "_value", value)

    def get(self) -> T:
        """The value itself."""
        return self._value

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret cannot be changed; make another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret cannot be changed; make another one")

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return bool(self._value == other._value)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> tuple[type[Secret[T]], tuple[T]]:
        return type(self), (self._value,)

    def __repr__(self) -> str:
        return f"Secret({MASKED})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, specification: str) -> str:
        return format(MASK, specification)


# -- names -------------------------------------------------------------------------------------------------------

# Patterns are compiled when they are first needed, not at import: 0.7 ms.
_WORDS = r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+"
#: A word that ends in one of these stands for a secret ("dbpassword" too) ...
_NOUNS = (
    *("password", "passwords", "passwd", "passphrase", "passphrases", "passcode", "pwd", "passwort", "kennwort"),
    *("secret", "secrets", "token", "credential", "credentials", "creds", "cookie", "cookies", "jwt", "sessionid"),
    *("apikey", "apikeys", "accesskey", "accesskeys", "privatekey", "privatekeys", "secretkey", "authkey", "bearer"),
)
_EXACT = frozenset(("pw", "cred", "otp", "totp"))
#: ... unless the name ends in one of these: then it only says something about a secret.
_ABOUT = frozenset(
    (
        *("age", "algorithm", "attempts", "backend", "bucket", "budget", "class", "cls", "cost", "count", "counts"),
        *("domain", "embedding", "embeddings", "enabled", "encoding", "endpoint", "env", "expiration", "expires"),
        *("expiry", "field", "fields", "file", "filename", "format", "function", "ids", "idx", "index", "indices"),
        *("len", "length", "lengths", "lifetime", "limit", "limits", "location", "manager", "max", "method", "min"),
        *("minutes", "mode", "name", "names", "parser", "path", "paths", "pattern", "policy", "position", "positions"),
        *("prefix", "price", "provider", "rate", "regex", "required", "rotation", "rules", "scope", "seconds", "size"),
        *("sizes", "strength", "timeout", "ttl", "type", "types", "uri", "url", "usage", "validator", "version"),
    )
)
#: A token that comes after one of these is a piece of text, or a place in a list.
_NO_SECRET_TOKEN = frozenset(
    (
        *("bos", "cancel", "cancellation", "cls", "continuation", "count", "end", "eos", "max", "min", "n", "next"),
        *("num", "number", "pad", "page", "per", "sep", "special", "start", "stop", "total", "unk"),
    )
)
#: Tokens, in the plural, are mostly pieces of text too; these are not.
_SECRET_TOKENS = frozenset(
    ("access", "api", "auth", "bearer", "csrf", "identity", "oauth", "refresh", "secret", "security", "session")
)
_SECRET_KEYS = frozenset(
    (
        *("access", "account", "api", "auth", "decryption", "encryption", "hmac", "master", "private", "secret"),
        *("session", "shared", "signing", "ssh"),
    )
)
_HAVE_PASS = frozenset(
    (
        *("account", "admin", "basic", "database", "db", "email", "ftp", "http", "imap", "login", "mail", "mysql"),
        *("pg", "postgres", "proxy", "redis", "root", "smtp", "ssh", "sudo", "user"),
    )
)
_AUTH_IS = frozenset(("bytes", "code", "data", "header", "headers", "key", "string", "value"))


def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is a secret: `db_password`, `apiKey`, `X-Auth-Token`; not `max_tokens`."""
    return _is_secret_name(name if len(name) <= 100 else name[-100:])


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    words = [word.lower() for word in re.findall(_WORDS, name)]
    if len(words) > 1 and (words[-1] in _ABOUT or words[0] in ("is", "has")):
        return False
    return any(_is_secret_word(words, place) for place in range(len(words)))


def _is_secret_word(words: list[str], place: int) -> bool:
    word = words[place]
    before = words[place - 1] if place else ""
    if word == "tokens":
        return before in _SECRET_TOKENS
    if word == "token":
        return before not in _NO_SECRET_TOKEN
    if word in ("key", "keys"):
        return before in _SECRET_KEYS
    if word in ("auth", "authorization"):
        return place == len(words) - 1 or words[place + 1] in _AUTH_IS
    if word == "id":
        return before == "session"
    if word == "pass":
        return before in _HAVE_PASS
    return word in _EXACT or word.endswith(_NOUNS)


# -- texts -------------------------------------------------------------------------------------------------------

#: `://user:password@`, where the password may hold anything, a slash or a blank too; not `://host:80/@someone`.
_LOGIN = r"://([^\s/?#:@]*)(?::(?!\d+(?:[/?#\s]|$))(\S*|[^@/\n]*))?@"
#: The same, cut off before the `@`.
_LOGIN_CUT = r"://([^\s/?#:@]*):[^\s@]*\Z"
#: `name=value`, `'name': value`, `"name": value`, where a value in brackets reaches to the end of the text.
_ASSIGNED = (
    r"""(?s)(?<![\w.\-])(?P<name>[A-Za-z_][\w.\-]{0,100})(?P<sign>["']\s*:\s*|["']?\s*=\s*)"""
    r"""(?:(?:b?(?P<quote>['"])(?:(?!(?P=quote))[^\\]|\\.)*(?:(?P=quote))?)|[\[({].*|(?P<bare>[^\s,;&)\]}'"<>#]+))"""
)
_SIGNATURES = ("sig", "signature")  # secret in a URL, but not the name of a secret elsewhere


def masked_url(url: str) -> str:
    """The URL without its password, and without secrets among its query parameters."""
    scheme, mark, rest = url.partition("://")
    login, _, place = rest.rpartition("@")
    if ":" in login and any(blank in login for blank in " \t\r\n"):  # then it is no URL, but may be meant as one
        url = f"{scheme}{mark}{login.partition(':')[0]}:***@{place}"
    return masked(url)


def masked(text: str, *, is_cut: bool = False) -> str:
    """`text` without the passwords in it: those of URLs, and those in `password=...`; it may be cut off at its end."""
    is_url = "://" in text
    if is_url:
        text = re.sub(_LOGIN, _without_login, text)
        if is_cut:
            text = re.sub(_LOGIN_CUT, r"://\1:***", text)
    if "=" in text or "':" in text or '":' in text or "' :" in text or '" :' in text:
        text = re.sub(_ASSIGNED, partial(_without_value, is_url), text)
    return text


def _without_login(found: re.Match[str]) -> str:
    user, password = found.groups()
    if password:
        return f"://{user}:***@"
    scheme = found.string[max(0, found.start() - 5) : found.start()].lower()
    if user and scheme.endswith(("http", "https")):  # an access token, in the place of a name
        return "://***@"
    return found[0]


def _without_value(is_url: bool, found: re.Match[str]) -> str:
    name, bare = found["name"], found["bare"]
    if bare == "None" or not (is_secret_name(name) or (is_url and name.lower() in _SIGNATURES)):
        return found[0]
    quote = found["quote"] or ""
    return f"{name}{found['sign']}{quote}{MASK}{quote}"

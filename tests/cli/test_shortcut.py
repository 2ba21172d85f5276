"""Lines read without cyclopts mean what cyclopts says they mean; all others are left to it."""

import pytest

from asynctask.cli.main import COMMANDS, application
from asynctask.cli.shortcut import plain_call

PLAIN = [
    "version",
    "version --json",
    "runs ls",
    "runs ls --json --limit 3",
    "runs ls --limit=3 --state failed",
    "runs ls --tag a --tag b --tag=c",
    "runs ls --flows --since 2h --before=2030-01-31T12:00",
    "runs ls --cursor 01a --store sqlite:///x.db?y=1",
    "runs ls --name a=b",
    "runs inspect @last",
    "runs inspect --json 01a2",
    "runs logs 01a2 --json",
    "runs watch 01a2",
    "config view",
    "config set store_url memory://",
    "config unset store_url",
    "cache ls --task [x]",
    "concurrency-limit inspect db --watch",
    "concurrency-limit read db --json",
    "global-concurrency-limit create api --limit 3 --disable",
    "global-concurrency-limit ls",
    "cache clear --expired",
    "store info --json",
    "run flow.py",
    "run flow.py:main --param a=1 --param b=[1] --json",
    "run flow.py --param=a=b=c",
]
UNUSUAL = [
    "",
    "nope",
    "runs",
    "runs nope",
    "--help",
    "runs --help",
    "runs ls --help",
    "runs ls -h",
    "runs ls extra",
    "runs ls --nope",
    "runs ls --limit",
    "runs ls --limit --json",
    "runs ls --limit many",
    "runs ls --limit -3",
    "runs ls --limit \uff13",
    "runs ls --limit 3 --limit 4",
    "runs ls --json --json",
    "runs ls --json=true",
    "runs ls --no-json",
    "runs ls --state",
    "runs ls --state=",
    "runs ls --state -x",
    'runs ls --tag ["a"]',
    "runs ls --tag_ a",
    "runs ls -- --json",
    "runs inspect",
    "runs inspect a b",
    "runs inspect -- -x",
    "runs delete a b",
    "runs watch a --timeout 1.5",
    "run flow.py --backend trio",
    "config set store_url",
    "store prune --keep 3",
    "concurrency-limit create db 3",
    "global-concurrency-limit create api",
    "global-concurrency-limit update api --limit 3",
    "completion bash",
]


@pytest.mark.parametrize("line", PLAIN)
def test_a_plain_line_is_read_as_cyclopts_reads_it(line):
    words = line.split()
    call = plain_call(COMMANDS, words)
    function, bound, _ = application().parse_args(words, exit_on_error=False, print_error=False)
    assert call is not None
    assert call.func is function
    assert (call.args, call.keywords) == (bound.args, bound.kwargs)


@pytest.mark.parametrize("line", UNUSUAL)
def test_an_unusual_line_is_left_to_cyclopts(line):
    assert plain_call(COMMANDS, line.split(" ") if line else []) is None


def test_every_command_has_a_function_and_a_line_of_help():
    app = application()
    for path, (_, text) in COMMANDS.items():
        one = app
        for name in path:
            one = one[name]
        assert callable(one.default_command), path
        assert text.endswith("."), path

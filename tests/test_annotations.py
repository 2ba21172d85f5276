"""The marks themselves; what they do to arguments is in test_inputs and test_map."""

from typing import Any

import pytest

from asynctask import allow_failure, opaque, quote, unmapped

MARKS = [unmapped, allow_failure, quote, opaque]


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_holds_one_value_and_gives_it_back(mark: Any) -> None:
    value = object()
    assert mark(value).unwrap() is value
    assert mark(value).value is value
    with pytest.raises(TypeError):
        mark()
    with pytest.raises(TypeError):
        mark(1, 2)


@pytest.mark.parametrize("mark", MARKS)
def test_rewrap_puts_the_same_mark_on_another_value(mark: Any) -> None:
    again = mark(1).rewrap([2])
    assert type(again) is mark
    assert again.unwrap() == [2]


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_is_immutable_and_compares_by_value_and_kind(mark: Any) -> None:
    with pytest.raises(AttributeError):
        mark(1).value = 2
    assert mark(1) == mark(1) != mark(2)
    assert hash(mark(1)) == hash(mark(1))
    for other in MARKS:
        assert (mark(1) == other(1)) is (mark is other)


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_shows_itself_and_its_value(mark: Any) -> None:
    assert mark.__name__ in repr(mark(5))
    assert "5" in repr(mark(5))


def test_a_mark_is_no_iterable_and_hides_nothing() -> None:
    with pytest.raises(TypeError):
        list(unmapped([1]))  # type: ignore[call-overload]

"""The histogram of durations: how exact it is, and that adding and JSON change nothing."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctask.bench import Histogram
from asynctask.measuring.histogram import BITS, bucket_of, merged, middle_of

#: Up to eleven days, in nanoseconds.
durations = st.one_of(st.integers(0, 2000), st.integers(0, 10**15))
many = st.lists(durations, min_size=1, max_size=300)


def of(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(many, st.floats(0, 1))
def test_a_quantile_is_that_of_the_sorted_durations_within_a_256th(values: list[int], share: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert abs(of(values).quantile(share) - exact) <= exact / 2 ** (BITS + 1)


@given(many)
def test_the_ends_the_sum_and_the_count_are_exact(values: list[int]) -> None:
    histogram = of(values)
    assert (histogram.least, histogram.greatest, histogram.sum) == (min(values), max(values), sum(values))
    assert histogram.count == len(values)
    assert histogram.mean == sum(values) / len(values)
    assert histogram.quantile(1) == max(values)


@given(many, many)
def test_two_added_up_are_one_of_both_and_stay_as_they_were(left: list[int], right: list[int]) -> None:
    one, other = of(left), of(right)
    assert merged([one, Histogram(), other]) == of(left + right)
    assert (one, other) == (of(left), of(right))


@given(many)
def test_json_gives_it_back(values: list[int]) -> None:
    histogram = of(values)
    assert msgspec.json.decode(msgspec.json.encode(histogram), type=Histogram) == histogram


@given(durations, durations)
def test_buckets_are_in_the_order_of_durations_and_their_middles_lie_in_them(one: int, other: int) -> None:
    assert (bucket_of(one) <= bucket_of(other)) or one > other
    assert bucket_of(math.floor(middle_of(bucket_of(one)))) == bucket_of(one)


@given(many)
def test_several_quantiles_are_the_same_in_one_walk(values: list[int]) -> None:
    histogram = of(values)
    shares = [0.0, 0.25, 0.5, 0.5, 0.9, 0.999, 1.0]
    assert histogram.quantiles(shares) == [histogram.quantile(share) for share in shares]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_empty_one_says_nothing_took_any_time(share: float) -> None:
    assert Histogram().quantile(share) == 0
    assert (Histogram().mean, Histogram().count) == (0.0, 0)


def test_a_clock_that_was_set_back_counts_as_no_time() -> None:
    assert of([-5]) == of([0])


def test_a_million_durations_take_some_hundred_buckets() -> None:
    assert len(of([1_000_000 + 37 * number for number in range(10_000)]).counts) < 150

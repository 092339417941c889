"""Data shards: the same batches whatever the number of processes, and a position that any number can continue from."""

import itertools
import json

import pytest

from nextstep_jax.data.data_shards import DataShards, EndingDataShards
from nextstep_jax.errors import InputError


class Numbers:
    """A data shard that counts n, n + 10, n + 20, ..."""

    def __init__(self, number):
        self._next = number

    def __next__(self):
        self._next += 10
        return self._next - 10

    def get_state(self):
        return {"next": self._next}

    def set_state(self, state):
        self._next = state["next"]

    def close(self):
        self._next = None


def processes(count, data_shards=4):
    """What each of `count` processes has of `data_shards` data shards."""
    each = data_shards // count
    return [DataShards({n: Numbers(n) for n in range(i * each, (i + 1) * each)}, data_shards, list) for i in range(count)]


def steps(run, count):
    """The next batches, put together from all processes."""
    return [sum((next(part) for part in run), []) for _ in range(count)]


@pytest.mark.parametrize("before, after", list(itertools.product((1, 2, 4), repeat=2)))
def test_another_number_of_processes_continues_with_the_very_next_batch(before, after):
    assert steps(run := processes(before), 3) == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    saved = json.loads(json.dumps([part.get_state() for part in run]))
    continued = processes(after)
    for part in continued:
        part.set_state(saved)
    assert steps(continued, 2) == [[30, 31, 32, 33], [40, 41, 42, 43]]


def test_another_number_of_data_shards_is_refused():
    (run,) = processes(1, data_shards=2)
    saved = [part.get_state() for part in processes(2)]
    with pytest.raises(InputError, match="saved with config.data.data_shards=4, now it is 2"):
        run.set_state(saved)


class Ending(Numbers):
    """Shard n has n + 1 items."""

    def __init__(self, number):
        super().__init__(number)
        self._number = number

    def __next__(self):
        if self._next > 10 * self._number + self._number:
            raise StopIteration
        return super().__next__()

    def padding(self):
        return None


def test_shards_that_have_ended_are_padded_until_no_process_has_more():
    more = iter([True, True, True, True, False])  # the other process has four
    data = EndingDataShards({n: Ending(n) for n in range(3)}, 3, list, anywhere=lambda found: next(more) or found)
    start = [data.get_state()]
    run = [[0, 1, 2], [None, 11, 12], [None, None, 22]]
    assert list(data) == [*run, [None] * 3]
    data.set_state(start)  # from the start again, ended or not
    more = iter([False] * 4)
    assert list(data) == run


def test_a_position_of_the_old_form_is_refused():
    (run,) = processes(1)
    with pytest.raises(InputError, match=r"not one that this version wrote \(its key lanes is now data_shards\)"):
        run.set_state([{"lanes": {}}])

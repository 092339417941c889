"""Data shards: the parts in which the rows of every batch are read and packed, however many processes there are.

A run has a fixed number of data shards, N. Each reads its own N-th of the samples, packs its own rows and has its own saved
position; data shard n makes rows n * B/N to (n + 1) * B/N - 1 of the global batch of B. A process makes the shards whose rows
its devices hold. So the batches depend on N and not on the processes, and a run can continue on any number of them that
divides N.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

from nextstep_jax.errors import InputError

Rows = TypeVar("Rows", covariant=True)
Item = TypeVar("Item", covariant=True)


class DataShard(Protocol[Rows]):
    """What makes the rows of one data shard; `set_state(get_state())` makes its very next rows come again."""

    def __next__(self) -> Rows: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...

    def close(self) -> None: ...


class EndingDataShard(DataShard[Rows], Protocol[Rows]):
    """A data shard whose rows may end: StopIteration after the last."""

    def padding(self) -> Rows:
        """Rows that hold nothing, for when it has ended before the others."""


class DataShards(Generic[Rows, Item]):
    """Iterator over items, each made of the next rows of all of this process's data shards. The data does not end.

    Args:
      shards: {number: data shard}, those of this process.
      count: N, those of all processes.
      collate: the rows of the shards, in the order of their numbers -> the item.
    """

    def __init__(self, shards: Mapping[int, DataShard[Rows]], count: int, collate: Callable[[list[Rows]], Item]):
        self._shards, self._count, self._collate = dict(sorted(shards.items())), count, collate

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        return self._collate([next(shard) for shard in self._shards.values()])

    def get_state(self) -> dict[str, Any]:
        """{"data_shards": {number: state}}: this process's part of the saved position."""
        return {"data_shards": {str(number): shard.get_state() for number, shard in self._shards.items()}}

    def set_state(self, saved: Sequence[Any]) -> None:
        """Continue from what `get_state` returned on each of the processes that saved, in their order.

        Raises:
          InputError: there was another number of data shards, or the state is not one that this version wrote.
        """
        for process in saved:
            if not isinstance(process, Mapping) or not isinstance(process.get("data_shards"), Mapping):
                old = " (its key lanes is now data_shards)" if isinstance(process, Mapping) and "lanes" in process else ""
                raise InputError(f"the saved position in the data is not one that this version wrote{old}")
        states = {number: state for process in saved for number, state in process["data_shards"].items()}
        if states.keys() != {str(number) for number in range(self._count)}:
            raise InputError(
                f"the position in the data was saved with config.data.data_shards={len(states)}, now it is {self._count}; "
                "a run keeps its number of data shards"
            )
        for number, shard in self._shards.items():
            shard.set_state(states[str(number)])

    def close(self) -> None:
        """End the readers."""
        for shard in self._shards.values():
            shard.close()


class EndingDataShards(DataShards[Rows, Item]):
    """`DataShards` of data that ends. A shard that has ended before the others, here or on another process, is padded.

    Args:
      anywhere: whether what it is given is true on any process; called once an item by all of them together.
    """

    def __init__(
        self,
        shards: Mapping[int, EndingDataShard[Rows]],
        count: int,
        collate: Callable[[list[Rows]], Item],
        anywhere: Callable[[bool], bool],
    ):
        super().__init__(shards, count, collate)
        self._padding = {number: shard.padding for number, shard in shards.items()}
        self._anywhere = anywhere
        self._ended: set[int] = set()

    def __next__(self) -> Item:
        rows: dict[int, Rows] = {}
        for number in self._shards.keys() - self._ended:
            try:
                rows[number] = next(self._shards[number])
            except StopIteration:
                self._ended.add(number)
        if not self._anywhere(bool(rows)):
            raise StopIteration
        return self._collate([rows[number] if number in rows else self._padding[number]() for number in self._shards])

    def set_state(self, saved: Sequence[Any]) -> None:
        super().set_state(saved)
        self._ended.clear()

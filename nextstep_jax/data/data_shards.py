"""Data shards: the parts in which the rows of every batch are read and packed, however many processes there are.

A run has a fixed number of data shards, N. Each reads its own N-th of the samples, packs its own rows and has its own saved
position; data shard n makes rows n * B/N to (n + 1) * B/N - 1 of the global batch of B. A process makes the shards whose rows
its devices hold. So the batches depend on N and not on the processes, and a run can continue on any number of them that
divides N.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from nextstep_jax.errors import InputError

Rows = TypeVar("Rows", covariant=True)


class DataShard(Protocol[Rows]):
    """What makes the rows of one data shard; `set_state(get_state())` makes its very next rows come again."""

    def __next__(self) -> Rows: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...

    def close(self) -> None: ...


class DataShards(Generic[Rows]):
    """Iterator over the rows of this process's data shards: each item is a list with the next rows of every shard, in order.

    Args:
      shards: {number: data shard}, those of this process.
      count: N, those of all processes.
    """

    def __init__(self, shards: Mapping[int, DataShard[Rows]], count: int):
        self._shards, self._count = dict(sorted(shards.items())), count

    def __iter__(self) -> "DataShards[Rows]":
        return self

    def __next__(self) -> list[Rows]:
        return [next(shard) for shard in self._shards.values()]

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

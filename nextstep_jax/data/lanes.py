"""Lanes: the parts in which the rows of every batch are read and packed, however many processes there are.

A run has a fixed number of lanes, N. Each reads its own N-th of the samples, packs its own rows and has its own saved position;
lane n makes rows n * B/N to (n + 1) * B/N - 1 of the global batch of B. A process makes the lanes whose rows its devices hold.
So the batches depend on N and not on the processes, and a run can continue on any number of them that divides N.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from nextstep_jax.errors import InputError

Rows = TypeVar("Rows", covariant=True)


class Lane(Protocol[Rows]):
    """What makes the rows of one lane; `set_state(get_state())` makes its very next rows come again."""

    def __next__(self) -> Rows: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...

    def close(self) -> None: ...


class Lanes(Generic[Rows]):
    """Iterator over the rows of this process's lanes: each item is a list with the next rows of every lane, in lane order.

    Args:
      lanes: {number: lane}, those of this process.
      count: N, those of all processes.
    """

    def __init__(self, lanes: Mapping[int, Lane[Rows]], count: int):
        self._lanes, self._count = dict(sorted(lanes.items())), count

    def __iter__(self) -> "Lanes[Rows]":
        return self

    def __next__(self) -> list[Rows]:
        return [next(lane) for lane in self._lanes.values()]

    def get_state(self) -> dict[str, Any]:
        """{"lanes": {number: state}}: this process's part of the saved position."""
        return {"lanes": {str(number): lane.get_state() for number, lane in self._lanes.items()}}

    def set_state(self, saved: Sequence[Any]) -> None:
        """Continue from what `get_state` returned on each of the processes that saved, in their order.

        Raises:
          InputError: there was another number of lanes.
        """
        states = {number: state for process in saved for number, state in process["lanes"].items()}
        if states.keys() != {str(number) for number in range(self._count)}:
            raise InputError(
                f"the position in the data was saved with config.data.lanes={len(states)}, now it is {self._count}; "
                "a run keeps its number of lanes"
            )
        for number, lane in self._lanes.items():
            lane.set_state(states[str(number)])

    def close(self) -> None:
        """End the readers."""
        for lane in self._lanes.values():
            lane.close()

"""Progress bars: comfort for whoever watches a terminal, nothing anywhere else."""

import shutil
import sys

import tqdm


def progress_bar(description: str, unit: str, total: int | None = None, shown: bool = True) -> tqdm.tqdm:
    """A bar on standard error if that is a terminal, also one that does not tell its size. Bytes are counted in KB and MB.

    Args:
      unit: what is counted, e.g. "image"; "B" for bytes.
      shown: False for no bar at all.
    """
    size = shutil.get_terminal_size()  # 80 x 24 where it is not known; tqdm would show nothing
    return tqdm.tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        file=sys.stderr,
        disable=None if shown else True,
        ncols=size.columns,
        nrows=size.lines,
    )

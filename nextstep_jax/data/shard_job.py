"""Writing a dataset shard by shard so that it can be interrupted at any moment and resumed.

    OUT/progress/plan.json         what is being written; another plan may not use the folder
    OUT/progress/shard-00000.json  one finished shard: its index entry, its counts, what was skipped and what its samples left
                                   unused, a digest of what it was made from
    OUT/progress/lock              held while a job runs

A finished shard is kept if it was made from the same input and its file still has the digest noted; anything else is made
again. index.json appears last, so a folder with one is whole.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nextstep_jax import storage
from nextstep_jax.data import files, records, shards
from nextstep_jax.errors import DamagedDataError, InputError

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A sample left out.

    Attributes:
      index: in the source.
      reason: one of a few, to be counted.
      message: names the file and says what is wrong with it.
    """

    index: int
    reason: str
    message: str


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished shard and what its samples are. `unused` holds (reason, name) of what lay beside their parts."""

    shard: shards.Shard
    images: int
    kinds: Mapping[str, int]
    skipped: tuple[Skipped, ...]
    unused: tuple[tuple[str, str], ...]


def digest(*values: Any) -> str:
    """Identifies what a shard is made from."""
    return hashlib.sha256(json.dumps([_VERSION, *values], sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def locked(out: str | os.PathLike, plan: Mapping[str, Any]) -> Iterator[storage.Place]:
    """Take the folder `out` for a job; yields its path. A dataset that is finished there is unfinished until `finish`.

    Raises:
      InputError: naming `out`: it cannot be written, holds something else, or is in use.
    """
    out = storage.as_given(out)
    store = storage.of(out)
    store.require(out)
    path = out / "progress" / "plan.json"
    if out.exists() and not path.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already there and not an unfinished dataset; choose another folder or remove it")
    files.make_directory(path.parent)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.exclusive(path.parent / "lock"))
        except BlockingIOError as error:
            raise InputError(f"{out}: another process is writing it{error.strerror or ''}") from error
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
        plan = {"version": _VERSION, **plan}
        if path.exists():
            found = files.read_json(path)
            changed = [name for name in plan if not isinstance(found, dict) or found.get(name) != plan[name]]
            if changed:
                other = (
                    ", ".join(f"{name} = {found.get(name)!r:.100}" for name in changed)
                    if isinstance(found, dict)
                    else "unreadable"
                )
                raise InputError(f"{out}: holds a dataset made otherwise ({other[:300]}); choose another folder or remove it")
        else:
            files.write_json(path, plan)
        for leftover in (*out.glob(".*.tmp-*"), *path.parent.glob(".*.tmp-*")):
            leftover.unlink(missing_ok=True)
        (out / shards.INDEX).unlink(missing_ok=True)
        yield out


def make_shard(out: storage.Place, number: int, source: str, samples: Iterable[records.Sample | Skipped]) -> Finished:
    """Write shard `number`, or keep it as it is if it was made from `source` (a digest) and is undamaged."""
    if (found := _kept(out, number, source)) is not None:
        return found
    skipped: list[Skipped] = []
    unused: list[Any] = []
    kinds: collections.Counter[str] = collections.Counter()
    images = 0

    def packed() -> Iterator[bytes]:
        nonlocal images
        for sample in samples:
            if isinstance(sample, Skipped):
                skipped.append(sample)
            else:
                kinds[sample.kind] += 1
                images += len(sample.images)
                unused.extend(sample.unused)
                yield records.pack(sample)

    shard = shards.write_shard(out / shards.shard_name(number), packed())
    finished = Finished(shard, images, dict(kinds), tuple(skipped), tuple(unused))
    files.write_json(_entry(out, number), {"source": source} | dataclasses.asdict(finished))
    return finished


def _kept(out: storage.Place, number: int, source: str) -> Finished | None:
    try:
        value = files.read_json(_entry(out, number))
        if value["source"] != source:
            return None
        shard = shards.Shard.from_json(value["shard"])
        shards.verify_shard(out, shard)
        skipped, unused = (Skipped(**entry) for entry in value["skipped"]), ((reason, name) for reason, name in value["unused"])
        return Finished(shard, value["images"], value["kinds"], tuple(skipped), tuple(unused))
    except (InputError, DamagedDataError, KeyError, TypeError, ValueError):
        return None


def _entry(out: storage.Place, number: int) -> storage.Place:
    return out / "progress" / f"shard-{number:05d}.json"


def finish(out: storage.Place, name: str, done: Iterable[Finished], latents: Mapping[str, Any] | None = None) -> None:
    """Write the index of all shards, in order; empty ones are left out of it."""
    done = list(done)
    kinds = sum((collections.Counter(entry.kinds) for entry in done), collections.Counter())
    kept = [entry.shard for entry in done if entry.shard.samples]
    shards.write_index(out, name, kept, images=sum(entry.images for entry in done), kinds=kinds, latents=latents)

"""A cache of rewards, so that no answer is paid for twice: a small SQLite file beside a run."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nextstep_jax.errors import DamagedDataError
from nextstep_jax.rewards.protocol import Reward, RewardRequest, Score


def request_key(reward: str, request: RewardRequest) -> str:
    """A digest of everything a score depends on: the reward's name, the prompt, the metadata and the pixels."""
    digest = hashlib.blake2b(digest_size=20)
    images = [request.image, *request.sources]
    header = [reward, request.prompt, dict(request.metadata), *(image.shape for image in images)]
    digest.update(json.dumps(header, sort_keys=True, default=str).encode())
    for image in images:
        digest.update(image.tobytes())
    return digest.hexdigest()


class Cache:
    """JSON values by key in a file; for one thread.

    Raises:
      DamagedDataError: the file is not a cache of scores.
    """

    def __init__(self, path: str | os.PathLike):
        self._file = sqlite3.connect(str(path))
        try:
            with self._file:
                self._file.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score TEXT NOT NULL)")
        except sqlite3.DatabaseError as error:
            raise DamagedDataError(f"{path}: expected a cache of scores ({error})") from error

    def find(self, keys: Iterable[str]) -> dict[str, Any]:
        """What is known of these keys."""
        select = "SELECT score FROM scores WHERE key = ?"
        return {key: json.loads(row[0]) for key in keys if (row := self._file.execute(select, (key,)).fetchone())}

    def keep(self, values: Mapping[str, Any]) -> None:
        """Add values, all of them or none."""
        with self._file:
            rows = [(key, json.dumps(value)) for key, value in values.items()]
            self._file.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)

    def close(self) -> None:
        self._file.close()


class CachedReward:
    """A reward that asks only for what the file does not hold yet. Failed scores are asked for again.

    Raises:
      DamagedDataError: the file is not a cache of scores.
    """

    def __init__(self, reward: Reward, path: str | os.PathLike):
        self.name = reward.name
        self._reward = reward
        self._cache = Cache(path)

    def __call__(self, requests: Sequence[RewardRequest]) -> list[Score | None]:
        keys = [request_key(self.name, request) for request in requests]
        known: dict[str, Score | None] = dict(self._cache.find(keys))
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        if missing:
            scores = dict(zip(missing, self._reward(list(missing.values())), strict=True))
            self._cache.keep({key: score for key, score in scores.items() if score is not None})
            known |= scores
        return [known[key] for key in keys]

    def close(self) -> None:
        self._cache.close()

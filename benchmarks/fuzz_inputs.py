"""What fuzzed inputs are made of: JSON with values in the place of others, and bytes flipped, overwritten, cut and repeated."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

Files = dict[str, bytes]  # a folder: relative name and content

NUMBERS = st.sampled_from([0, 1, -1, 2, 7, 64, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, float("nan")])
TEXTS = st.sampled_from(["", "a", "\0", "/", "..", "../x", "a.b", "\ud7ff", "x" * 3000, "default", "F32", "float32", "model"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.integers() | TEXTS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed_json(draw, value: Any) -> Any:
    """The value with up to three of its parts replaced, removed, doubled or swapped."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, 3))):
        parent, key, here = None, None, value
        while isinstance(here, dict | list) and here and (parent is None or draw(st.integers(0, 3))):
            parent, key = here, draw(st.sampled_from(list(here) if isinstance(here, dict) else range(len(here))))
            here = parent[key]
        if parent is None:
            return draw(VALUES)
        match draw(st.sampled_from(["replace", "remove", "double", "add"])):
            case "replace":
                parent[key] = draw(VALUES)
            case "remove":
                del parent[key]
            case "double":
                other = draw(TEXTS) if isinstance(parent, dict) else 0
                parent[other] = copy.deepcopy(here)
            case "add" if isinstance(parent, dict):
                parent[draw(TEXTS)] = draw(VALUES)
            case _:
                parent.append(draw(VALUES))
    return value


@st.composite
def changed_bytes(draw, data: bytes) -> bytes:
    """The data with up to three places flipped, overwritten, removed, repeated or cut off."""
    content = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        stop = min(len(content), start + draw(st.integers(1, 32)))
        match draw(st.sampled_from(["flip", "write", "remove", "repeat", "cut"])):
            case "flip" if content:
                content[start] ^= 1 << draw(st.integers(0, 7))
            case "write":
                content[start:stop] = draw(st.binary(max_size=16))
            case "remove":
                del content[start:stop]
            case "repeat":
                content[start:start] = content[start:stop] * draw(st.sampled_from([1, 2, 1000]))
            case _:
                del content[start:]
    return bytes(content)


def as_json(values: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON text of a value, sometimes damaged."""
    text = values.map(lambda value: json.dumps(value).encode())
    return st.one_of(text, text, text, text.flatmap(changed_bytes))

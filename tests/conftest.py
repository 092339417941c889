"""Shared fixtures: where the golden data lies, and tiny models built once per session."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

GOLDENS = pathlib.Path(__file__).parent / "goldens"

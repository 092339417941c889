"""Flax modules and the plain functions they call. Knows `config`, `batch` and `sharding` only."""

"""NextStep-1 in JAX: one causal transformer over text ids and continuous image tokens, a language head and a flow head."""

__version__ = "0.1.0"

"""`python -m nextstep_jax` is `nextstep-jax`."""

from nextstep_jax.cli import main

if __name__ == "__main__":
    main()

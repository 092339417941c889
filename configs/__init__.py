"""One file per experiment: `nextstep-jax train --config NAME`. Its docstring holds the command and what is to be expected."""

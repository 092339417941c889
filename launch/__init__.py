"""Starting runs: the programs behind `nextstep-jax train | export-run | submit | aot`, and where to run them."""

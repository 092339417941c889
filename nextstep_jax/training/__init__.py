"""One training loop for every stage: state, optimizer, step, metrics, and the loop that reads like a recipe."""

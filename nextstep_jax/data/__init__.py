"""From files on disk to a Batch: stored samples, readers, sequences, mixtures, and the built-in dataset of shapes."""

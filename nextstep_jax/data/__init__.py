"""From files on disk to a Batch. Knows `config`, `batch` and no model.

Stored: `records` (what a sample is), `shards`, `shard_job`, `build`, `encode`, `inspection`. Read: `sources` opens what
`source` describes, from `webdataset`, `captions`, `images` and their helpers. Trained on: `augment`, `sequence`, `packing`,
`streams`, `mixture`, `data_shards`; `vocabulary` is the text tokenizer, `shapes` the built-in dataset.
"""

"""How good a model is. Knows everything but `training` and `conversion`.

`shapes` is ShapeEval, with `responses` to ask a model; `suites` are the paper's benchmarks; `tokenizer` and `reconstruction`
score image tokenizers, `fid` compares sets of images, `latents` looks at what tokenizers make; `traces` follows one generation;
`intervals` says how sure a difference is; `evaluators` are what `config.evals` can name.
"""

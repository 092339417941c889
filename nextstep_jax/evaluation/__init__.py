"""How good a model is. Knows everything but `training` and `conversion`.

`shapes` is ShapeEval, with `responses` to ask a model; `tokenizer` and `reconstruction` score image tokenizers, `latents`
looks at what they make; `traces` follows one generation; `evaluators` are what `config.evals` can name.
"""

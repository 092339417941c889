"""From prompts to images and text. Knows `models`, `data` and `checkpoints`; needs neither the data stack nor an optimizer.

`pipeline` is what a user calls, with `config` (how to generate), `load`, `prompts` and `sizes`. `token_loop` and `text` are
the compiled loops, `tokenizer` runs the VAE, `interleaved` mixes text and images, `rewriting` asks a language model first.
"""

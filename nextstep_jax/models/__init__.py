"""Flax Linen modules over one `params` collection, and the plain functions they call. Knows `config`, `batch` and `sharding`.

`nextstep` puts together `transformer` (with `attention` and `layers`) and `flow_head`; `image_tokenizer` is the VAE, with
`convolution` and `tiled_decode` for its speed and memory; `param_layouts` converts between stored, stacked, fused and int8
trees.
"""

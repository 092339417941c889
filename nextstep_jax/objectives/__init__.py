"""Losses as pure functions of arrays: draws and keys are arguments. Knows `models` and `flow`.

`multitask` (cross-entropy and velocity error), `reconstruction` (image tokenizers), `preference` (Diffusion-DPO) and
`policy_gradient` (advantages, GRPO, forward-process RL); `cross_entropy` never holds all logits at once.
"""

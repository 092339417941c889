"""Rewards: how well an image is what was asked for, as named scores. Knows `data`, `chat` and `errors`, never a model.

`protocol` says what a reward is, `loading` opens one by the name a config gives it, `combine` adds several up over groups of
images, `cache` remembers scores. The rewards themselves: `shapes` (the built-in dataset's world, read by `scene_reader`),
`text` (read words), `endpoint` (a server of scores) and `judge` (a vision-language model). Nothing here imports torch.
"""

"""The benchmarks that the paper reports, in three steps that can run on three machines: images, verdicts, numbers.

`suite` says what a benchmark is and `loading` opens one by its name; `geneval`, `genai`, `dpg`, `oneig`, `wise`, `gedit` and
`imgedit` are the benchmarks. `export` draws the images in the layout of the official scorer, `judging` asks a model behind an
endpoint about them, `results` says what both leave behind and what a score is, and a suite's `score` turns results, ours or
those of the official scorer, into the published numbers.

    OUT/nextstep.json    what was drawn: suite, digests of its files, settings, seeds, checkpoint, prompts
    OUT/images/          the official layout, and nothing else
    OUT/results.jsonl    verdicts, a line for each image and criterion
    OUT/score.json       the numbers, with all they were made of
"""

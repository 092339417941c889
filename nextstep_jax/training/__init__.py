"""One training loop for every stage. Knows everything but `conversion` and `evaluation`, whose evaluators it is handed.

`loop.train` reads like a recipe. `settings` holds every setting, `config` makes them from a config file, `stage` says what a
stage is; `multitask`, `preference` and `reconstruction` are the stages. `step`, `optimizer`, `state` and `program` are
compiled; `metrics` and `run_record` say what happened; `candidates` makes data for preferences; `aot` compiles for TPUs
ahead of time.
"""

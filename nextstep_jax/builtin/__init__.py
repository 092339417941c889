"""The small model that ships with the package: a checkpoint folder like any other, made by configs/shapes_sft.py."""

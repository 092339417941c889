"""Rectified-flow maths: paths and timestep laws, guidance, samplers. Pure functions of arrays; knows nothing of models."""

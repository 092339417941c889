"""Pure maths of rectified flow, on arrays. Knows jax and `errors`, nothing of models.

`paths` (the straight path, velocities, distributions of training times), `guidance` (branches, schedules, rescaling),
`samplers` (each a table of coefficients) and `likelihood` (densities of stochastic steps).
"""

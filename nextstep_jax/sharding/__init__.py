"""Where arrays lie. Knows jax alone.

`rules` maps logical axis names to mesh axes, `mesh` makes meshes, `params` gives parameters and states their shardings,
`topologies` describes TPU slices that need not be here.
"""

"""Distances between sets of images: FID, KID and the Inception score, and FD-own on this library's own features.

`resize` brings images to the network's size, `features` runs the network, `statistics` compares. The weights are the user's
(conversion/inception.py reads them).
"""

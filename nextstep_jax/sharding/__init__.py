"""Mesh axes, logical axis rules and placement."""

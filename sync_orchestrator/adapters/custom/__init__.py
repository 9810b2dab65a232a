"""Adapters as Python classes that ``sync.yaml`` names: base classes, loading, and the guard around them.

What a class does is up to its author. The guard turns wrong results and unexpected errors into classed failures.
"""

"""The Dagster UI, guarded against web pages of other origins.

Dagster's webserver has no login and checks neither ``Host`` nor ``Origin``: any page that an operator opens could
launch runs through it. So ``up`` starts it from here (``serve.py``), behind a check of every request (``guard.py``).
"""

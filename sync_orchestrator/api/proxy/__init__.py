"""The proxy in front of the third party, which moves callers from the legacy path to the new one in steps.

The share of each route is in ``core/service``.
"""

"""Intake of change events over HTTP: reading, signatures, fairness between senders, and the commit in groups.

Recording the events is in ``core/ledger``.
"""

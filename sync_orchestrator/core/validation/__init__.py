"""Validation: compares the third party with the archive by count, then record by record, and logs the drift.

The archive is compared with its sources in ``source_check``. Repair is in ``core/operations``.
"""

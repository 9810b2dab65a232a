"""Streams of captured changes as the ledger keeps them: position, identity, lease, and what was lost."""

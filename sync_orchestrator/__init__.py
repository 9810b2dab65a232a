"""Keeps a third party's copy of your business data in sync, and proves it."""

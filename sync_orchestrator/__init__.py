"""Keeps a third party's copy of your business data in step, and proves it."""

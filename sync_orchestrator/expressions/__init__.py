"""Expressions of ``sync.yaml``: JMESPath selectors with further functions, and Jinja templates."""

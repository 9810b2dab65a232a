"""Texts: masking of secrets, forms that can be stored, messages with the nearest name. Pure."""

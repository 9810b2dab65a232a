"""The HTTP client of all adapters: authentication, limits, transport, and the classification of responses.

It knows neither records nor entities; those are in ``adapters/rest``.
"""

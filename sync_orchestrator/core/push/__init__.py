"""One push: brings a claimed record at the third party to its newest archived state, and settles the result.

``decision`` is pure: it says what to do in a situation. Which records are due is up to ``core/drain``.
"""

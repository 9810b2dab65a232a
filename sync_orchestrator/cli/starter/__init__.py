"""What ``init`` reads before it writes a ``sync.yaml``: tables, files and OpenAPI documents.

It reads and guesses, and writes nothing. The text of the file is made by ``cli/starter/document.py``.
"""

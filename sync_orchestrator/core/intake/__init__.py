"""Changes that do not come over HTTP: polling of sources, and broker messages that cannot be read.

Events over HTTP are in ``api/intake``. All of them are recorded in ``core/ledger``.
"""

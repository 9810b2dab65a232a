"""Stock adapters: source systems and third parties reached over HTTP, set up in ``sync.yaml``."""

"""Source systems and third parties with an HTTP API, described in ``sync.yaml``: reads, writes, paging, bulk."""

"""State that belongs to the API service: its keys, and the rollout of the proxy's routes."""

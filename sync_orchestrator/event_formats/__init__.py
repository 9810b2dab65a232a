"""The formats of change events: CloudEvents, and custom formats that ``sync.yaml`` describes.

They are the same over HTTP and from brokers.
"""

"""The drain: claims change events and due records in a loop, merges them into the archive, and pushes them.

One push is in ``core/push``. Several drains share the work, and take over from each other.
"""

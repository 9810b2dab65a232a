"""What starts by itself in Dagster: sensors and schedules. They decide and request runs; the work is in ``core/``.

What has to be done all the time without a run (alerts, outcomes, polls) is done by a worker (``worker/``).
"""

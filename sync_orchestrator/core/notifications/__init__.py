"""What is reported to others: alerts to operators and outcomes to subscribers, each through an outbox.

Sending outcomes to a broker or a webhook is in ``brokers``.
"""

"""What starts by itself: sensors and schedules. They only look and request; the work is in ``core/``."""

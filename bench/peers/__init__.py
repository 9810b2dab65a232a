"""What others would use for the same work, each set up as its own docs advise, beside the same third party.

``python -m bench.peers [--quick]``. A peer's own program is in ``set_ups/``, what it needs in ``requirements/``; each
has an environment of its own in ``.peers/``. ``tables.py`` belongs to ``bench/comparison.py``.
"""

from bench.peers.measures import lines

__all__ = ["lines"]

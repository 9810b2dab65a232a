"""Whether an adapter does what the rest relies on, tried out on a real test system; for tests: ``assert_conforms``."""

from sync_orchestrator.conformance.run import assert_conforms, run_conformance

__all__ = ["assert_conforms", "run_conformance"]

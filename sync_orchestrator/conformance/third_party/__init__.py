"""What is relied on of a third party, behaviour by behaviour; each makes its own records and needs no other."""

from sync_orchestrator.conformance.third_party.all_behaviours import THIRD_PARTY

__all__ = ["THIRD_PARTY"]

from typing import Any
def source_for(*a: Any) -> Any: raise NotImplementedError
def third_party_for(*a: Any) -> Any: raise NotImplementedError

"""What the story asks of Dagster's webserver, as a person would with a click: a backfill, and how far it is."""

from __future__ import annotations

from typing import Any

import httpx

_PARTITIONS = """
query Partitions($asset: AssetKeyInput!) {
  assetNodeOrError(assetKey: $asset) { ... on AssetNode { partitionKeys } }
}
"""
_LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}
"""
_BACKFILL = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill {
      status
      assetBackfillData { assetBackfillStatuses {
        ... on AssetPartitionsStatusCounts { assetKey { path } numPartitionsTargeted numPartitionsMaterialized
          numPartitionsFailed numPartitionsInProgress } } }
    }
  }
}
"""


class Dagster:
    """The UI's own API."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self._url = f"{url}/graphql"

    def partitions(self, asset: list[str]) -> list[str]:
        """The partition keys that the asset has now."""
        node = self._ask(_PARTITIONS, asset={"path": asset})["assetNodeOrError"]
        return list(node.get("partitionKeys") or [])

    def launch_backfill(self, assets: list[list[str]], partitions: list[str]) -> str:
        """Launches a backfill and returns its id. Raises RuntimeError where Dagster refuses."""
        answer = self._ask(
            _LAUNCH,
            params={
                "assetSelection": [{"path": path} for path in assets],
                "partitionNames": partitions,
                "tags": [],
                "fromFailure": False,
            },
        )["launchPartitionBackfill"]
        if "backfillId" not in answer:
            raise RuntimeError(f"the backfill was not launched: {answer}")
        return str(answer["backfillId"])

    def backfill(self, backfill_id: str) -> tuple[str, int, int]:
        """Its status, and how many asset partitions are done of how many."""
        found = self._ask(_BACKFILL, id=backfill_id)["partitionBackfillOrError"]
        counts = (found.get("assetBackfillData") or {}).get("assetBackfillStatuses") or []
        done = sum(count.get("numPartitionsMaterialized", 0) for count in counts)
        return str(found["status"]), done, sum(count.get("numPartitionsTargeted", 0) for count in counts)

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = self._client.post(self._url, json={"query": query, "variables": variables}).json()
        if "errors" in answer:
            raise RuntimeError(str(answer["errors"][0]["message"]))
        found: dict[str, Any] = answer["data"]
        return found

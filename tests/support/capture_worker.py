"""A reader of a stream in a process of its own, to be killed; run by ``test_capture_crashes.py``.

Arguments: the ledger's URL, the configuration as JSON. It ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
import threading

from sync_orchestrator.capture import assembly, stream
from sync_orchestrator.capture.stream import StreamReader
from sync_orchestrator.config import Config
from sync_orchestrator.core.capture import streams
from sync_orchestrator.core.db.session import open_engine


def main() -> None:
    url, config = sys.argv[1], Config.model_validate(json.loads(sys.argv[2]))
    stream._FIRST_PAUSE_SECONDS, stream._WAIT_SECONDS, stream._LEASE_WAIT_SECONDS = 0.05, 0.05, 0.05
    streams.STREAM_LEASE_SECONDS, stream._MEASURE_SECONDS = 3.0, 0.2
    assembly.PIECE_ROWS = 50
    stop = threading.Event()
    reader = StreamReader(open_engine(url), config, "shop", stop)
    thread = threading.Thread(target=reader.run)
    thread.start()
    print("started", flush=True)
    sys.stdin.read()
    stop.set()
    thread.join()


if __name__ == "__main__":
    main()

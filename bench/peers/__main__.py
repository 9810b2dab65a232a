"""Shows what was measured of the peers."""

from __future__ import annotations

import argparse

import bench.peers
from bench.table import show


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.peers", description=bench.peers.__doc__)
    parser.add_argument("--quick", action="store_true")
    show("peers", list(bench.peers.lines(0.1 if parser.parse_args().quick else 1.0)))


if __name__ == "__main__":
    main()

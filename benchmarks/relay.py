"""A slow network, as a ProxyCommand of ssh. It forwards stdin and stdout to HOST:PORT with limited bandwidth per direction.

Run by link.py: python benchmarks/relay.py HOST PORT BITS_PER_SECOND
"""

import os
import select
import socket
import sys
import threading
import time

CHUNK_BYTES = 4096


def carry(source: int, target: int, bytes_per_s: float) -> None:
    """Forward data, and wait as long as it takes at `bytes_per_s`. Waits that were too long are made up for, idle time is not."""
    due = time.monotonic()
    while True:
        if not select.select([source], [], [], 0)[0]:
            select.select([source], [], [])
            due = time.monotonic()
        data = os.read(source, CHUNK_BYTES)
        if not data:
            return
        due += len(data) / bytes_per_s
        time.sleep(max(0.0, due - time.monotonic()))
        while data:
            data = data[os.write(target, data) :]


def main(host: str, port: str, bits_per_s: str) -> None:
    """Forward until either side closes."""
    with socket.create_connection((host, int(port))) as there:
        there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rate = float(bits_per_s) / 8

        def upwards() -> None:
            carry(0, there.fileno(), rate)
            there.shutdown(socket.SHUT_WR)

        threading.Thread(target=upwards, daemon=True).start()
        carry(there.fileno(), 1, rate)


if __name__ == "__main__":
    main(*sys.argv[1:])

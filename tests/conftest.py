"""What holds for every test: fixed seeds, no network, one thread."""

from __future__ import annotations

import os

# Before torch and huggingface_hub are imported, because both read these once. One thread: tiny networks lose more to
# waiting for a second core than they gain from it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ipaddress
import random
import signal
import socket
from typing import Any

import numpy as np
import pytest
import torch

# A shell's background job ignores SIGINT, and so would every program started here; the tests of Ctrl-C need it heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same global random state at the start of every test, in whatever order they run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets reach this machine only: unix sockets and loopback (which torch.distributed needs)."""
    for method in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, method, _local_only(getattr(socket.socket, method)))


def _local_only(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and not _is_loopback(address[0]):
            raise AssertionError(f"a test tried to reach the network: {address}")
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which would have to be looked up
        return False

"""Hosts that reach each other only through a relay, which can spoil what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.relay import Plan, Rates, Road
from tests.namespaces import Network, inside, run_ip

PORTS = (20_000, 20_159)
ROOT = Path(__file__).resolve().parents[2]


class RelayedNetwork(Network):
    """Like ``Network``, with a relay in place of the switch. Cables and lines can not be cut.

    Each host's card leads to a namespace of its own that has the addresses of all other hosts.
    There the relay listens, on the ports that a host's own sockets can have at all; it goes on from
    the namespace of the host that was called, so that each sees the other's true address.
    """

    def __init__(self, hosts: int, seed: int) -> None:
        self._seed = seed
        self._hosts = hosts
        self._relay: subprocess.Popen[str] | None = None
        super().__init__(hosts)

    def spoil(self, **rates: float) -> dict[str, int]:
        """From now on faults are this likely (see ``relay.Rates``); the faults so far, by kind."""
        done: dict[str, int] = json.loads(self._ask(json.dumps(asdict(Rates(**rates)))))
        return done

    def close(self) -> None:
        """End the relay, then the network."""
        if self._relay is not None:
            with self._relay:  # closes the pipes too
                self._relay.kill()
        super().close()

    def _build(self) -> None:
        facing = [f"{self.stem}f{host}" for host in range(self._hosts)]
        for host, (name, front) in enumerate(zip(self._names, facing, strict=True)):
            self._add(name)
            self._add(front)
            peer = ("peer", "name", "eth0", "netns", name)
            run_ip("-n", front, "link", "add", "p0", "type", "veth", *peer)
            run_ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            for other in range(self._hosts):
                if other != host:
                    address = f"{self.address(other)}/24"
                    run_ip("-n", front, "address", "add", address, "dev", "p0")
            for where, card in ((name, "eth0"), (name, "lo"), (front, "p0"), (front, "lo")):
                run_ip("-n", where, "link", "set", card, "up")
            with inside(name):
                Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("{} {}".format(*PORTS))
        roads = [
            Road(facing[caller], facing[called], self.address(called), self.address(caller))
            for caller in range(self._hosts)
            for called in range(self._hosts)
            if caller != called
        ]
        self._relay = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.relay"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        said = self._ask(Plan(self._seed, *PORTS, roads).to_json())
        if said != "ready":
            raise RuntimeError(f"the relay does not start: {said}")

    def _ask(self, line: str) -> Any:
        assert self._relay is not None
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.write(line + "\n")
        self._relay.stdin.flush()
        return self._relay.stdout.readline().strip()

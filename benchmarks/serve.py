"""Latency, rate, start and memory of `nightjar serve`, asked as a shop asks: sessions that grow event by event.

    python benchmarks/serve.py HOME [--items 100000] [--dims 128] [--rate 200 --rate 1000] [--index exact]
    python benchmarks/serve.py HOME --rate 500 --strangers              # each request names a user who is not known
    python benchmarks/serve.py HOME --hostile 0 --hostile 1 --hostile 4 --hostile 200

Makes a store in HOME, unless one is there (benchmarks/export.py: users, lists of 20, a GRU), starts the server in a
process of its own, and asks it from another one, over 64 connections that stay open. Requests are sent at their time,
whether earlier ones were answered or not, and a latency counts from the time at which its request was due; so a server
that falls behind cannot hide it. Reasons are not asked for.

Prints a line of JSON for each rate and a table at the end. With `--hostile`, instead: how long `/health` takes others
while so many clients send a header without end, each of which connects again as soon as it is cut.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
import yaml

CONNECTIONS = 64
SESSIONS = 500
LONGEST = 10
WARM_UP = 5.0
TOP = 20
ITEMS_A_TOPIC = 100
ENDLESS = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 65_536
PROBES_A_SECOND = 50


def main() -> None:
    """Make the store, start the server, ask it, print."""
    told = arguments()
    if told.ask:
        uvloop.run({"ask": ask, "attack": attack, "probe": probe}[told.part](told))
        return
    make_store(told)
    port = free_port()
    started = time.monotonic()
    log = (told.home / "serve.log").open("w")
    command = [
        Path(sys.executable).with_name("nightjar"),
        "serve",
        "--site",
        told.home / "site.yaml",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command, stderr=log, env=os.environ | {"NIGHTJAR_HOME": str(told.home)})
    try:
        wait_until_ready(server, port)
        ready = (round(time.monotonic() - started, 1), round(cpu_seconds(server.pid), 1))
        if told.hostile:
            for number in told.hostile:
                run_hostile(told, server, port, number)
            return
        results = [run_rate(told, server, port, rate) for rate in told.rate or [200, 1000]]
    finally:
        server.terminate()
        server.wait(20)
    print(table(results, ready))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Measure the online endpoint.")
    parser.add_argument("home", type=Path)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=128)
    parser.add_argument("--rate", type=int, action="append", help="requests a second; repeat it; default: 200 and 1000")
    parser.add_argument("--index", default="exact", help="the site's export.index; another one is exported anew")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--strangers", action="store_true", help="name a user in each request who is not known")
    parser.add_argument("--hostile", type=int, action="append", help="clients that send a header without end; repeat")
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--part", default="ask", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_store(told: argparse.Namespace) -> None:
    """A week of events, a GRU, an export, and the alias that is served."""
    import nightjar
    from pipeline.publish import open_store
    from training.tracking import Tracking, number

    if not (told.home / "mlflow.db").exists():
        maker = Path(__file__).with_name("export.py")
        sizes = {"users": told.users, "items": told.items, "dims": told.dims, "top": TOP, "buckets": 4}
        options = [text for name, size in sizes.items() for text in (f"--{name}", str(size))]
        subprocess.run([sys.executable, maker, told.home, *options, "--only", "export"], check=True, stdout=sys.stderr)
    file = told.home / "site.yaml"
    facts = yaml.safe_load(file.read_text())
    if facts["export"]["index"] != told.index:
        facts["export"]["index"] = told.index
        file.write_text(yaml.safe_dump(facts))
        site = nightjar.load_site(file, nightjar.Site, told.home)
        nightjar.export(site, open_store(site), date(2026, 3, 7))
    tracking = Tracking(nightjar.load_site(told.home / "site.yaml", nightjar.Site, told.home))
    tracking.set_alias("serving", number(tracking.versions()[0]))


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    """Until /ready says so."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the server ended; see serve.log")


def run_rate(told: argparse.Namespace, server: subprocess.Popen[bytes], port: int, rate: int) -> dict[str, Any]:
    """One rate, from a process of its own: what it says, and what the server used meanwhile."""
    before, started = cpu_seconds(server.pid), time.monotonic()
    command = [sys.executable, __file__, str(told.home), "--ask", str(port), "--rate", str(rate)]
    sizes = ["--items", str(told.items), "--seconds", str(told.seconds), *["--strangers"] * told.strangers]
    done = subprocess.run([*command, *sizes], check=True, stdout=subprocess.PIPE, text=True)
    worked, seconds = cpu_seconds(server.pid) - before, time.monotonic() - started
    used = {"cores": round(worked / seconds, 2), "ms_each": round(worked * 1000 / (rate * (told.seconds + WARM_UP)), 2)}
    result = {"rate": rate} | json.loads(done.stdout) | used | {"gb": memory(server.pid)}
    print(json.dumps(result), flush=True)
    return result


def run_hostile(told: argparse.Namespace, server: subprocess.Popen[bytes], port: int, number: int) -> None:
    """Print how long `/health` takes beside so many hostile clients, which are a process of their own."""
    command = [sys.executable, __file__, str(told.home), "--ask", str(port), "--seconds", str(told.seconds)]
    attackers = subprocess.Popen([*command, "--part", "attack", "--hostile", str(number)])
    time.sleep(1)
    before = cpu_seconds(server.pid)
    done = subprocess.run([*command, "--part", "probe"], check=True, stdout=subprocess.PIPE, text=True)
    cores = round((cpu_seconds(server.pid) - before) / told.seconds, 2)
    attackers.terminate()
    attackers.wait()
    print(json.dumps({"hostile": number} | json.loads(done.stdout) | {"cores": cores, "load": os.getloadavg()[0]}))


async def attack(told: argparse.Namespace) -> None:
    """Send headers without end until told to stop."""

    async def send_always() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", told.ask)
                with contextlib.closing(writer):
                    writer.write(ENDLESS)
                    while True:
                        writer.write(ENDLESS[-65_536:])
                        await writer.drain()

    await asyncio.gather(*(send_always() for _ in range(told.hostile[0])))


async def probe(told: argparse.Namespace) -> None:
    """Ask `/health` at fixed times, each over a connection of its own; print latencies."""
    took: list[float] = []
    loop = asyncio.get_running_loop()

    async def ask_health(due: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", told.ask)
        with contextlib.closing(writer):
            writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        took.append(loop.time() - due)

    start = loop.time()
    tasks = []
    for n in range(int(told.seconds * PROBES_A_SECOND)):
        await asyncio.sleep(max(0, start + n / PROBES_A_SECOND - loop.time()))
        tasks.append(loop.create_task(ask_health(start + n / PROBES_A_SECOND)))
    await asyncio.gather(*tasks)
    p50, p99 = np.percentile(np.array(took) * 1000, [50, 99]).round(1).tolist()
    print(json.dumps({"asked": len(took), "p50_ms": p50, "p99_ms": p99, "max_ms": round(max(took) * 1000, 1)}))


def cpu_seconds(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """The most that a process held so far, GB."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return round(int(lines["VmHWM"].split()[0]) * 1024 / 1e9, 2)


async def ask(told: argparse.Namespace) -> None:
    """Send requests at their times; print latencies."""
    (rate,) = told.rate
    rng = np.random.default_rng(3)
    sessions = draw_sessions(rng, told.items, strangers=told.strangers)
    idle: asyncio.Queue[Any] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await asyncio.open_connection("127.0.0.1", told.ask))
    took: list[float] = []
    failed: list[str] = []

    async def send(due: float, body: bytes) -> None:
        reader, writer = await idle.get()
        writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        answer = await reader.readexactly(length)
        if due >= counted:
            took.append(loop.time() - due)
            if not head.startswith(b"HTTP/1.1 200") or b'"source":"model"' not in answer:
                failed.append(head.partition(b"\r\n")[0].decode())
        idle.put_nowait((reader, writer))

    loop = asyncio.get_running_loop()
    start = loop.time()
    counted = start + WARM_UP
    number = int(rate * (told.seconds + WARM_UP))
    due_at = start + np.cumsum(rng.exponential(1 / rate, number))  # as independent visitors come
    tasks = []
    for n, due in enumerate(due_at):
        wait = due - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(loop.create_task(send(due, sessions[n % len(sessions)])))
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    seconds = loop.time() - counted
    p50, p90, p99 = np.percentile(np.array(took) * 1000, [50, 90, 99]).round(1).tolist()
    told_rate = {"answered": round(len(took) / seconds), "failed": len(failed)}
    print(json.dumps(told_rate | {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": round(max(took) * 1000, 1)}))


def draw_sessions(rng: np.random.Generator, num_items: int, *, strangers: bool = False) -> list[bytes]:
    """Requests: the sessions grow by an event each, side by side; `strangers`: each by a user whom nobody knows."""
    topics = rng.integers(0, num_items // ITEMS_A_TOPIC, SESSIONS)
    places = (np.exp(rng.random((SESSIONS, LONGEST)) * np.log(ITEMS_A_TOPIC)) - 1).astype(np.int64)
    items = topics[:, None] * ITEMS_A_TOPIC + places
    names = (f"stranger-{n}" if strangers else None for n in itertools.count())
    pairs = itertools.product(range(1, LONGEST + 1), range(SESSIONS))
    return [request(items[session, :length], next(names)) for length, session in pairs]


def request(items: np.ndarray, user_id: str | None) -> bytes:
    """As it goes over the wire."""
    user = {} if user_id is None else {"user_id": user_id}
    body = json.dumps({"items": [{"item_id": f"item-{item}"} for item in items], "n": TOP} | user).encode()
    head = "POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


def table(results: list[dict[str, Any]], ready: tuple[float, float]) -> str:
    """The results as Markdown."""
    names = ("rate", "answered", "failed", "p50_ms", "p90_ms", "p99_ms", "cores", "ms_each", "gb")
    head = ("requests/s", "answered/s", "failed", "p50 ms", "p90 ms", "p99 ms", "cores", "core-ms a request", "peak GB")
    rows = [head, ["--:"] * len(names), *([str(result[name]) for name in names] for result in results)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    started = f"From start to ready: {ready[0]} s, {ready[1]} core-seconds. Load average: {os.getloadavg()[0]:.1f}."
    return "\n".join([*lines, "", started])


if __name__ == "__main__":
    main()

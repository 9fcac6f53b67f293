"""A stand-in for the nightjar command line: notes how it was called, and does what its environment says.

FAKE_CALLS      file that gets a JSON line per call
FAKE_EXIT_<step>    exit code of that step
FAKE_FOREVER_<step>    that step never ends by itself, nor does a helper that it starts
FAKE_NEWEST     what `due` says is the newest day that passed; else the day that it is asked about
FAKE_HOLD       folder: while it holds a file that is named as the step, that step does not end
FAKE_OUTPUT     what to print on stdout instead of a report
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def earlier_calls():
    file = Path(os.environ["FAKE_CALLS"])
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


step, *options = sys.argv[1:]
if os.environ.get("NIGHTJAR_DIE_WITH_PARENT"):  # as nightjar does
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
call = {
    "at": time.time(),
    "beside": [each["pid"] for each in earlier_calls() if each["argv"] == sys.argv[1:] and is_running(each["pid"])],
    "argv": sys.argv[1:],
    "stdin": str(Path("/proc/self/fd/0").readlink()),
    "dies_with_parent": os.environ.get("NIGHTJAR_DIE_WITH_PARENT"),
    "leads_its_group": os.getpgid(0) == os.getpid() == os.getsid(0),
    "pid": os.getpid(),
    "parent": os.getppid(),
}
print(f"{step}: at work", file=sys.stderr, flush=True)
if f"FAKE_FOREVER_{step}" in os.environ:
    call["helper"] = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
with Path(os.environ["FAKE_CALLS"]).open("a") as calls:
    calls.write(json.dumps(call) + "\n")
if "helper" in call:
    time.sleep(600)
while "FAKE_HOLD" in os.environ and Path(os.environ["FAKE_HOLD"], step).exists():
    time.sleep(0.05)
if code := int(os.environ.get(f"FAKE_EXIT_{step}", "0")):
    print(f"nightjar: {step}: something is wrong", file=sys.stderr)
    sys.exit(code)
day = options[options.index("--date") + 1] if "--date" in options else None
report = {"step": step, "date": day, "users": 42, "metrics": {"mrr": float("nan")}}
if step == "export":
    report |= {"published": True, "table_version": 7}
if step == "due":
    report |= {"newest_passed": os.environ.get("FAKE_NEWEST", day), "has_window": True}
print("a library says hello")
print(os.environ.get("FAKE_OUTPUT", json.dumps(report)))

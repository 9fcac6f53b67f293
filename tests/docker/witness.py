"""Notes under which processes a step runs, then becomes the command that WITNESS_COMMAND names.

WITNESS_FILE            gets a JSON line a step
WITNESS_SECONDS_<step>  that step takes so much longer
"""

import json
import os
import shlex
import sys
import time
from pathlib import Path

import psutil

step = sys.argv[1]
under = [" ".join(parent.cmdline()) for parent in psutil.Process().parents()]
with Path(os.environ["WITNESS_FILE"]).open("a") as file:
    file.write(json.dumps({"step": step, "arguments": sys.argv[2:], "at": time.time(), "under": under}) + "\n")
time.sleep(float(os.environ.get(f"WITNESS_SECONDS_{step}", "0")))
command = [*shlex.split(os.environ["WITNESS_COMMAND"]), *sys.argv[1:]]
os.execvp(command[0], command)

"""`nightjar` for tests that run many commands: what all of them import is imported once, and each is a fork of that.

`python command_server.py SOCKET` is the server; NIGHTJAR_COMMAND is `python -S -E command_client.py SOCKET`. Nothing
runs in the server but imports, so a fork loses no thread.
"""

import json
import os
import signal
import socket
import sys

import nightjar
from pipeline.parent import end_with_parent

IMPORTED = [
    "pipeline.ingest",
    "pipeline.catalogue",
    "pipeline.sessionize",
    "pipeline.validate",
    "great_expectations",
    "features.build",
    "training.train",
    "training.promote",
    "training.refit",
    "training.tracking",
    "serving_export.export",
    "mlflow.pyfunc",
]


def serve(address):
    end_with_parent()  # a test run that is killed leaves no server behind
    for name in IMPORTED:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            run(connection)
        connection.close()


def run(connection):
    """One command, with the client's output, environment and folder."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    told = json.loads(message)
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.environ.pop("NIGHTJAR_DIE_WITH_PARENT", None)  # our parent is the server
    os.chdir(told["folder"])
    sys.argv = ["nightjar", *told["arguments"]]
    code = 1
    try:
        nightjar.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])

"""A stand-in for `docker compose exec` and `run`: the command runs here, in the environment of the service.

FAKE_DOCKER     JSON: service -> its environment; and the folders of containers -> those of this machine
"""

import json
import os
import sys

told = json.loads(os.environ["FAKE_DOCKER"])
words = [word for word in sys.argv[1:] if word not in {"-T", "--rm", "--no-deps"}]
match words:
    case ["compose", "exec" | "run", service, *command]:
        for inner, outer in told["folders"].items():
            command = [word.replace(inner, outer) for word in command]
        os.execvpe(command[0], command, told["services"][service])
    case ["compose", "up", *_]:
        pass
    case _:
        sys.exit(f"unexpected: {words}")

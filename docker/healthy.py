"""Exit with 0 if a server answers and says that the named parts of it are healthy: `healthy.py ADDRESS [PART...]`."""

import json
import sys
import urllib.request

SECONDS = 8

address, *parts = sys.argv[1:]
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a server beside us is never asked by a proxy
with direct.open(address, timeout=SECONDS) as answer:
    text = answer.read()
ill = [part for part in parts if json.loads(text)[part]["status"] != "healthy"]
sys.exit(f"not healthy: {', '.join(ill)}" if ill else 0)

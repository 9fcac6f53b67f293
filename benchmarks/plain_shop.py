"""Make a home with the simulated shop in which nobody has a taste, an intent or a memory: models of them gain nothing.

python benchmarks/plain_shop.py HOME
python benchmarks/histories.py HOME
python benchmarks/intents.py HOME
"""

import sys
from datetime import date, timedelta
from pathlib import Path

from models import LOGS, ROOT, nightjar

from nightjar import Site, load_site
from pipeline.simulate import Shop, simulate


def main() -> None:
    """Simulate the demo's days, then ingest, sessionize and validate them."""
    if len(sys.argv) != 2:
        sys.exit("python benchmarks/plain_shop.py HOME")
    home = Path(sys.argv[1]).resolve()
    home.mkdir(parents=True, exist_ok=True)
    log = next(log for log in LOGS if log.site == "demo")
    first, last = date.fromisoformat(log.first), date.fromisoformat(log.day)
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    simulate(load_site(ROOT / "conf" / "demo.yaml", Site, home), days, Shop(is_plain=True))
    nightjar(home, log, "run", "--data-only", "--from", log.first, "--to", log.day)


if __name__ == "__main__":
    main()

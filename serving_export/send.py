"""Send a release to where its readers are: a file, Redis, PostgreSQL."""

from typing import Any

from pipeline.addresses import shown
from pipeline.errors import ConfigurationError
from pipeline.publish import Store
from pipeline.terminal import log
from serving_export.addresses import kind_of
from serving_export.exporters import EXPORTERS, csv
from serving_export.parcel import Form, pack
from serving_export.reader import Recommendations
from training.settings import TrainingSite


def send(
    site: TrainingSite,
    store: Store,
    address: str,
    channel: str | None,
    form: Form,
    version: int | None = None,
    *,
    guard_formulas: bool = False,
) -> dict[str, Any]:
    """Send some channels of the newest release, or of that of a version; return what was sent.

    `guard_formulas` is for csv files only.
    """
    exporter = EXPORTERS.get(kind_of(address))
    if exporter is None:
        raise ConfigurationError(
            f"lists cannot be sent to {shown(address)}: no file that ends with, and no address that begins "
            f"with one of {', '.join(EXPORTERS)}, like postgresql://HOST/DATABASE"
        )
    if guard_formulas and exporter is not csv.send:
        raise ConfigurationError(f"--guard-formulas is for csv files; {shown(address)} is none")
    try:
        lists = Recommendations(store.root, version, when_stale="ignore")
        parcel = pack(site.name, lists, channel, "nested" if exporter is EXPORTERS["redis"] else form)
    except LookupError as error:
        raise ConfigurationError(str(error)) from error
    if lists.facts["is_expired"]:
        log.warning("these lists were good until %s", lists.facts["valid_until"])
    if guard_formulas:
        csv.send(parcel, address, guard_formulas=True)
    else:
        exporter(parcel, address)
    told = {name: lists.facts[name] for name in ("table_version", "data_through", "model_version")}
    return {"to": shown(address), "form": parcel.form, "channels": list(parcel.channels), **told}

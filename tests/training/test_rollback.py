"""Champions in a row, taken back and forth. The models are never loaded."""

import shutil
from datetime import date, timedelta

import pytest

from pipeline.errors import ConfigurationError
from pipeline.publish import open_store
from training.refit import champion_of
from training.rollback import rollback_model
from training.tracking import Tracking

FIRST = date(2026, 3, 4)


@pytest.fixture
def tracking(tmp_path, write_site, empty_mlflow, monkeypatch) -> Tracking:
    """Three champions, versions 1, 3 and 6; their refits 2, 4, 5 and 7; and 8, which never was one."""
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    site = write_site(tmp_path).site
    open_store(site)
    tracking = Tracking(site)
    monkeypatch.setattr(Tracking, "load", lambda self, version: version)
    tracking.client.create_registered_model(tracking.model_name)
    nights = [FIRST + timedelta(days=n) for n in range(4)]
    register(tracking, nights[0], promoted=str(nights[0]))
    register(tracking, nights[0], parent_version="1")
    register(tracking, nights[1], promoted=str(nights[1]))
    register(tracking, nights[1], parent_version="3")
    register(tracking, nights[2], parent_version="3")
    register(tracking, nights[3], promoted=str(nights[3]))
    register(tracking, nights[3], parent_version="6")
    register(tracking, nights[3])
    tracking.set_alias("champion", 6)
    tracking.set_alias("serving", 7)
    return tracking


def register(tracking: Tracking, night: date, **tags: str) -> None:
    kind = "refit" if "parent_version" in tags else "train"
    through = night if kind == "refit" else night - timedelta(days=1)
    own = {"recipe": "gru", "store": tracking.store.id}
    told = {**own, "night": str(night), "data_through": str(through), "kind": kind, **tags}
    tracking.client.create_model_version(tracking.model_name, "nowhere", tags=told)


def state(tracking: Tracking) -> tuple[int, int, list[int]]:
    """Who is champion, who serves, and which versions no step takes up."""
    aliases = [int(tracking.by_alias(name).version) for name in ("champion", "serving")]
    taken = {int(v.version) for v in tracking.versions()}
    return aliases[0], aliases[1], sorted({int(v.version) for v in tracking.versions(withdrawn=True)} - taken)


def test_back_to_the_champion_before_and_forward_again(tracking):
    before = state(tracking)
    assert before == (6, 7, [])
    told = rollback_model(tracking.site)
    assert state(tracking) == (3, 5, [6, 7])
    assert (told["from_champion"], told["champion"], told["serving"], told["withdrawn"]) == (6, 3, 5, [6, 7])
    assert not rollback_model(tracking.site)["changed"], "run again it goes no further"
    assert state(tracking) == (3, 5, [6, 7])
    rollback_model(tracking.site, 1)
    assert state(tracking) == (1, 2, [3, 4, 5, 6, 7])
    rollback_model(tracking.site, 7)
    assert state(tracking) == before


def test_back_to_one_refit_of_a_champion(tracking):
    rollback_model(tracking.site, 4)
    assert state(tracking) == (3, 4, [5, 6, 7])
    rollback_model(tracking.site, 6)
    assert state(tracking) == (6, 7, [])


def test_the_next_refit_is_of_the_champion_that_was_brought_back(tracking):
    rollback_model(tracking.site)
    assert int(champion_of(tracking, FIRST + timedelta(days=4)).version) == 3
    assert int(champion_of(tracking, FIRST + timedelta(days=2)).version) == 3, "a night that is run again too"


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        (8, "version 8 was never champion nor a refit of one; champions were 1, 3, 6"),
        (99, "version 99 was never champion"),
    ],
    ids=["never champion", "unknown"],
)
def test_what_is_no_step_is_refused(tracking, to, sentence):
    before = state(tracking)
    with pytest.raises(ConfigurationError, match=sentence):
        rollback_model(tracking.site, to)
    assert state(tracking) == before


def test_the_first_champion_has_none_before_it(tracking):
    for later in ("3", "6"):
        tracking.client.delete_model_version_tag(tracking.model_name, later, "promoted")
    tracking.set_alias("champion", 1)
    with pytest.raises(ConfigurationError, match="no version was champion before version 1"):
        rollback_model(tracking.site)


@pytest.mark.parametrize("killed_at", range(1, 6))
def test_a_killed_rollback_that_is_run_again_ends_where_it_would_have(tracking, monkeypatch, killed_at):
    writes = iter(range(1, 100))

    class Killed(BaseException):
        pass

    def dying(method):
        def write(*arguments):
            if next(writes) == killed_at:
                raise Killed
            return method(*arguments)

        return write

    client = type(tracking.client)
    with monkeypatch.context() as patched:
        for name in ("set_model_version_tag", "set_registered_model_alias"):
            patched.setattr(client, name, dying(getattr(client, name)))
        try:
            rollback_model(tracking.site)
        except Killed:
            assert killed_at <= 4
        else:
            assert killed_at == 5, "two tags and two aliases are written"
    rollback_model(tracking.site)
    assert state(tracking) == (3, 5, [6, 7])


def test_a_model_whose_files_are_gone_moves_nothing(tracking, monkeypatch):
    monkeypatch.undo()
    before = state(tracking)
    with pytest.raises(ConfigurationError, match=r"cannot read the model .* version 5"):
        rollback_model(tracking.site)
    assert state(tracking) == before


def test_a_site_without_a_champion_says_so(tmp_path, write_site, empty_mlflow):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    site = write_site(tmp_path).site
    open_store(site)
    with pytest.raises(ConfigurationError, match="no champion yet"):
        rollback_model(site)

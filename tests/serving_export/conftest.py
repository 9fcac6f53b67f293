import shutil

import pytest


@pytest.fixture
def two_releases(tmp_path, served_shop, write_site):
    """A copy of the served shop that a test may write to."""
    home = tmp_path / "home"
    shutil.copytree(served_shop.home / "store", home / "store")
    shutil.copy(served_shop.home / "mlflow.db", home / "mlflow.db")
    return write_site(home)

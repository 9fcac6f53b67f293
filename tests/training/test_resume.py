"""What is left of a training whose process died, and how the next one goes on from it."""

import pytest

from training.tracking import Tracking


def test_a_run_that_was_not_finished_goes_on_under_the_same_tags(copy_shop):
    shop = copy_shop()
    tracking, night = Tracking(shop.site), shop.days[3]
    tags = {"recipe": "gru", "seed": "1", "kind": "train"}
    with pytest.raises(RuntimeError), tracking.run(night, "gru", tags) as first:
        raise RuntimeError("out of power")
    assert tracking.client.get_run(first).info.status == "FAILED"
    with tracking.run(night, "gru", tags | {"seed": "2"}) as other:
        assert other != first
    with tracking.run(night, "gru", tags) as again:
        assert again == first
        assert tracking.client.get_run(first).info.status == "RUNNING"
    assert tracking.client.get_run(first).info.status == "FINISHED"
    with tracking.run(night, "gru", tags) as new:
        assert new not in (first, other)

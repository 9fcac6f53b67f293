import polars as pl

from features.vocabulary import extend_vocabulary, learn_vocabulary


def test_the_most_frequent_item_has_code_1_and_ties_go_by_id(sessions_of):
    vocabulary = learn_vocabulary(sessions_of([["b", "c", "a"], ["c", "b", "c"], ["d"]]), min_item_count=1)
    assert vocabulary.items.rows() == [(1, "c", 3), (2, "b", 2), (3, "a", 1), (4, "d", 1)]


def test_rare_items_are_left_out(sessions_of):
    vocabulary = learn_vocabulary(sessions_of([["b", "c", "a"], ["c", "b", "c"]]), min_item_count=2)
    assert vocabulary.items["item_id"].to_list() == ["c", "b"]


def test_code_0_is_padding_and_names_no_item(sessions_of):
    vocabulary = learn_vocabulary(sessions_of([["a", "b"]]), 1)
    assert vocabulary.item_ids().to_list() == [None, "a", "b"]
    assert vocabulary.num_codes == 3


def test_encoding_keeps_the_order_of_rows_and_gives_0_to_unknown_items(sessions_of):
    vocabulary = learn_vocabulary(sessions_of([["a", "b", "b"]]), 1)
    rows = pl.DataFrame({"item_id": ["a", "new", "b", None, "a"], "n": range(5)})
    encoded = vocabulary.encode(rows)
    assert encoded["item_code"].to_list() == [2, 0, 1, 0, 2]
    assert encoded["n"].to_list() == [0, 1, 2, 3, 4]


def test_extending_keeps_every_old_code_and_puts_new_items_behind(sessions_of):
    known = learn_vocabulary(sessions_of([["a", "b", "b"], ["gone"]]), 1)
    extended = extend_vocabulary(known, sessions_of([["new", "new", "newer", "newer", "newer", "a", "rare"]]), 2)
    assert extended.items.rows() == [
        (1, "b", 0),
        (2, "a", 1),
        (3, "gone", 0),
        (4, "newer", 3),
        (5, "new", 2),
    ]
    assert extended.items.schema == known.items.schema


def test_order_of_sessions_does_not_matter(sessions_of):
    sessions = sessions_of([["b", "c"], ["c", "a"], ["a", "d"]])
    assert learn_vocabulary(sessions, 1).items.equals(learn_vocabulary(sessions.reverse(), 1).items)


def test_the_digest_tells_codes_apart_and_ignores_counts(sessions_of):
    one, same = learn_vocabulary(sessions_of([["a", "b"]]), 1), learn_vocabulary(sessions_of([["a", "b"]] * 3), 1)
    swapped = learn_vocabulary(sessions_of([["a", "b", "b"]]), 1)
    assert one.digest() == same.digest()
    assert len({one.digest(), swapped.digest(), learn_vocabulary(sessions_of([["a", "b", "c"]]), 1).digest()}) == 3

import pytest

from inference.measure.text import exact_match, rouge_l, rouge_n, text_figures, words

FOUND, RIGHT = "The cat sat on the mat.", "the cat lay on a mat"


def test_words_are_letters_and_digits_of_any_script() -> None:
    assert words("Don't: x_1, ÉTÉ 日本") == ["don", "t", "x", "1", "été", "日本"]


def test_rouge_counts_shared_words_pairs_and_subsequences() -> None:
    # shared: the (once), cat, on, mat: 4 of 6 and 6; pairs: "the cat": 1 of 5 and 5
    assert rouge_n(FOUND, RIGHT, 1) == pytest.approx(4 / 6)
    assert rouge_n(FOUND, RIGHT, 2) == pytest.approx(1 / 5)
    assert rouge_l(FOUND, RIGHT) == pytest.approx(4 / 6)
    # precision 1/4, recall 1/2
    assert rouge_n("a b c d", "d e", 1) == pytest.approx(2 * 0.25 * 0.5 / 0.75)
    assert rouge_l("d c b a", "a b c d") == pytest.approx(1 / 4)


def test_rouge_of_nothing_is_nothing() -> None:
    for found, right in (("", "a"), ("a", ""), ("", ""), ("a", "b")):
        assert (rouge_n(found, right, 1), rouge_l(found, right)) == (0.0, 0.0)
    assert rouge_n("a", "a", 2) == 0.0


def test_exact_match_forgives_white_space_around() -> None:
    assert exact_match(" a b\n", "a b") == 1
    assert exact_match("a  b", "a b") == 0


def test_the_best_reference_counts_and_texts_without_one_do_not() -> None:
    found = text_figures(["a b", "x", "c"], [("z", "a b"), (), ("d",)])
    assert found == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5, "exact_match": 0.5}
    assert text_figures(["a"], [()]) is None


def test_rouge_is_that_of_the_usual_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    theirs = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for found, right in ((FOUND, RIGHT), ("a b c d e a", "a c e a b b"), ("one", "two three")):
        expected = theirs.score(right, found)
        assert rouge_n(found, right, 1) == pytest.approx(expected["rouge1"].fmeasure)
        assert rouge_n(found, right, 2) == pytest.approx(expected["rouge2"].fmeasure)
        assert rouge_l(found, right) == pytest.approx(expected["rougeL"].fmeasure)

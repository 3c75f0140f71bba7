"""The contexts of a C-GET: one a syntax as far as there is room, never more than 127."""

from __future__ import annotations

import pytest

from dcmhaul.cli.retrieval import COMMON_CLASSES, storage_contexts
from dcmhaul.uids import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


def test_the_common_classes_are_storage_classes() -> None:
    assert set(COMMON_CLASSES) <= STORAGE_SOP_CLASSES.keys()
    assert len(set(COMMON_CLASSES)) == len(COMMON_CLASSES)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 20, 42, 43, 63, 64, 127, 200])
def test_there_is_room_for_the_retrieve_itself(count: int) -> None:
    classes = list(STORAGE_SOP_CLASSES)[:count]
    contexts = storage_contexts(classes)
    assert len(contexts) <= 127
    ids = [context.context_id for context in contexts]
    assert ids == sorted(set(ids))
    assert all(3 <= number <= 255 and number % 2 for number in ids)
    assert {context.abstract_syntax for context in contexts} == set(classes[:127])
    for context in contexts:
        assert set(context.transfer_syntaxes) <= TRANSFER_SYNTAXES.keys()


@pytest.mark.parametrize("count", [1, 5, 20, 63, 100])
def test_each_class_gets_each_syntax_once(count: int) -> None:
    classes = list(STORAGE_SOP_CLASSES)[:count]
    everything = {s for context in storage_contexts([CT]) for s in context.transfer_syntaxes}
    for uid in classes:
        found = [
            syntax
            for context in storage_contexts(classes)
            if context.abstract_syntax == uid
            for syntax in context.transfer_syntaxes
        ]
        assert sorted(found) == sorted(everything)


def test_few_classes_have_a_context_for_each_syntax() -> None:
    contexts = storage_contexts([CT, MR, CT])
    assert all(len(context.transfer_syntaxes) == 1 for context in contexts)
    assert contexts[0].transfer_syntaxes == (EXPLICIT,)


def test_the_preferred_syntax_comes_first() -> None:
    contexts = storage_contexts([CT], (JPEG_LOSSLESS,))
    assert contexts[0].transfer_syntaxes == (JPEG_LOSSLESS,)
    assert len(contexts) == len(storage_contexts([CT]))


def test_implicit_alone_means_alone() -> None:
    contexts = storage_contexts(COMMON_CLASSES, (IMPLICIT,))
    assert {context.transfer_syntaxes for context in contexts} == {(IMPLICIT,)}
    assert len(contexts) == len(COMMON_CLASSES)


def test_without_a_class_there_is_no_context() -> None:
    assert storage_contexts([]) == ()

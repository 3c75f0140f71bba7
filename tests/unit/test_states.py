"""The state table against a second transcription of PS3.8 Tables 9-6 to 9-10, from the standard."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dcmhaul.protocol.states import (
    ABORT_MASK,
    ACTIONS,
    RECEIVE_P_DATA_MASK,
    SEND_P_DATA_MASK,
    TABLE,
    Action,
    Choice,
    Effect,
    State,
    StateEvent,
)

HERE = Path(__file__).parent

# The wording of the second transcription of Tables 9-6 to 9-9.
STEPS = {
    "issue TRANSPORT CONNECT request": Effect.CONNECT_TRANSPORT,
    "close transport": Effect.CLOSE_TRANSPORT,
    "start ARTIM": Effect.START_ARTIM,
    "stop ARTIM": Effect.STOP_ARTIM,
    "send A-ASSOCIATE-RQ": Effect.SEND_A_ASSOCIATE_RQ,
    "send A-ASSOCIATE-AC": Effect.SEND_A_ASSOCIATE_AC,
    "send A-ASSOCIATE-RJ": Effect.SEND_A_ASSOCIATE_RJ,
    "send P-DATA-TF": Effect.SEND_P_DATA_TF,
    "send A-RELEASE-RQ": Effect.SEND_A_RELEASE_RQ,
    "send A-RELEASE-RP": Effect.SEND_A_RELEASE_RP,
    "send A-ABORT (service-user)": Effect.SEND_A_ABORT_USER,
    "send A-ABORT (service-provider)": Effect.SEND_A_ABORT_PROVIDER,
    "issue A-ASSOCIATE indication": Effect.INDICATE_ASSOCIATE,
    "issue A-ASSOCIATE confirmation (accept)": Effect.CONFIRM_ASSOCIATE_ACCEPT,
    "issue A-ASSOCIATE confirmation (reject)": Effect.CONFIRM_ASSOCIATE_REJECT,
    "issue P-DATA indication": Effect.INDICATE_P_DATA,
    "issue A-RELEASE indication": Effect.INDICATE_RELEASE,
    "issue A-RELEASE indication (collision)": Effect.INDICATE_RELEASE_COLLISION,
    "issue A-RELEASE confirmation": Effect.CONFIRM_RELEASE,
    "issue A-ABORT or A-P-ABORT indication": Effect.INDICATE_ABORT,
    "issue A-P-ABORT indication": Effect.INDICATE_A_P_ABORT,
}


def rows(name: str) -> list[dict[str, str]]:
    with (HERE / name).open(newline="") as file:
        return list(csv.DictReader(file))


def cell_name(cell: Action | Choice | None) -> str:
    return "" if cell is None else cell.name


def test_the_transcription_names_every_event_and_state_once() -> None:
    table = rows("table_9_10.csv")
    assert [row["event"].split()[0] for row in table] == [f"Evt{n}" for n in range(1, 20)]
    assert list(table[0]) == ["event", *(f"Sta{n}" for n in range(1, 14))]


@pytest.mark.parametrize("event", StateEvent, ids=lambda event: f"Evt{event.value}")
@pytest.mark.parametrize("state", State, ids=lambda state: f"Sta{state.value}")
def test_cell(state: State, event: StateEvent) -> None:
    expected = rows("table_9_10.csv")[event - 1][f"Sta{state.value}"]
    assert cell_name(TABLE[state][event]) == expected


def test_the_table_has_no_other_cells() -> None:
    assert len(TABLE) == 14
    assert all(len(row) == 20 and row[0] is None for row in TABLE)
    assert set(TABLE[0]) == {None}
    assert sum(cell is not None for row in TABLE for cell in row) == 123


def test_actions() -> None:
    expected = {
        row["action"]: (
            tuple(STEPS[step] for step in row["steps"].split("; ") if step),
            State(int(row["next"].removeprefix("Sta"))),
        )
        for row in rows("tables_9_6_to_9_9.csv")
    }
    ours: dict[str, tuple[tuple[Effect, ...], State]] = {}
    words = {"AE-6": ("acceptable", "not acceptable"), "AR-8": ("requestor", "acceptor")}
    for name, action in ACTIONS.items():
        assert action.name == name
        if isinstance(action, Choice):
            for word, branch in zip(words[name], (action.yes, action.no), strict=True):
                assert branch.name == name
                ours[f"{name} {word}"] = (branch.effects, branch.next_state)
        else:
            ours[name] = (action.effects, action.next_state)
    assert ours == expected
    assert len(ACTIONS) == 28


@pytest.mark.parametrize("state", State)
def test_masks_agree_with_the_table(state: State) -> None:
    receive = cell_name(TABLE[state][StateEvent.RECV_P_DATA_TF]) in {"DT-2", "AR-6"}
    send = cell_name(TABLE[state][StateEvent.REQUEST_P_DATA]) in {"DT-1", "AR-7"}
    abort = TABLE[state][StateEvent.REQUEST_ABORT] is not None
    assert bool(RECEIVE_P_DATA_MASK >> state & 1) is receive
    assert bool(SEND_P_DATA_MASK >> state & 1) is send
    assert bool(ABORT_MASK >> state & 1) is abort


def test_masks_have_no_bits_beside_the_states() -> None:
    assert [n for n in range(64) if RECEIVE_P_DATA_MASK >> n & 1] == [6, 7]
    assert [n for n in range(64) if SEND_P_DATA_MASK >> n & 1] == [6, 8]
    assert ABORT_MASK < 1 << 14


@pytest.mark.parametrize("name", ["DT-1", "DT-2", "AR-6", "AR-7"])
def test_p_data_never_changes_the_state(name: str) -> None:
    action = ACTIONS[name]
    assert isinstance(action, Action)
    at = [
        (state, event) for state in State for event in StateEvent if TABLE[state][event] is action
    ]
    assert [state for state, _ in at] == [action.next_state]

"""Where boxes and edges of a drawing lie."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from graphwd.planning.drawing import drawing_of
from graphwd.planning.update_graph import Box, Kind, Line, Structure, When


def structure(count: int, *pairs: tuple[int, int]) -> Structure:
    return Structure(
        tuple(Box(Kind.OP, f"op{number}") for number in range(count)),
        tuple(Line(*pair, control=False, when=When.BOTH) for pair in pairs),
    )


def drawn_at_random(seed: int) -> Structure:
    choose = random.Random(seed)
    pairs = {(choose.randrange(target), target) for target in range(1, 20) for _ in range(2) if choose.random() < 0.8}
    return structure(20, *sorted(pairs))


@pytest.mark.parametrize("seed", range(10))
def test_boxes_lie_apart_and_within_the_drawing_below_what_they_need(seed):
    plan = drawn_at_random(seed)
    drawing = drawing_of(plan)
    for one, other in itertools.combinations(drawing.boxes, 2):
        beside = one.x + one.width <= other.x or other.x + other.width <= one.x
        assert beside or one.y + one.height <= other.y or other.y + other.height <= one.y
    for box in drawing.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= drawing.width
        assert box.y + box.height <= drawing.height
    for placed in drawing.lines:
        numbers = list(map(int, re.findall(r"-?\d+", placed.path)))
        assert 0 <= min(numbers[::2]) <= max(numbers[::2]) <= drawing.width
        assert 0 <= min(numbers[1::2]) <= max(numbers[1::2]) <= drawing.height
    for line in plan.lines:
        assert drawing.boxes[line.source].y + drawing.boxes[line.source].height < drawing.boxes[line.target].y


def test_an_edge_leads_from_the_lower_side_of_one_box_to_the_upper_side_of_another():
    drawing = drawing_of(structure(3, (0, 1), (0, 2), (1, 2)))
    for placed in drawing.lines:
        source, target = drawing.boxes[placed.line.source], drawing.boxes[placed.line.target]
        x, y = map(int, re.findall(r"-?\d+", placed.path)[:2])
        assert source.x <= x <= source.x + source.width
        assert y == source.y + source.height
        assert target.x <= placed.x <= target.x + target.width
        assert placed.y == target.y


def test_an_input_lies_next_to_what_uses_it():
    # 0 -> 1 -> 2 -> 3, and 4 only into 3: so it lies in the row of 2.
    drawing = drawing_of(structure(5, (0, 1), (1, 2), (2, 3), (4, 3)))
    assert drawing.boxes[4].y == drawing.boxes[2].y


@pytest.mark.parametrize("seed", [1, 7, 10])
def test_a_structure_is_placed_the_same_wherever_its_parts_lie_in_memory(seed):
    first = drawing_of(drawn_at_random(seed))
    kept = []
    for number in range(8):
        kept.append([bytearray(size) for size in range(1, 2000, 7 + number)])
        assert drawing_of(drawn_at_random(seed)) == first


def test_a_box_without_edges_has_its_place():
    drawing = drawing_of(structure(1))
    assert (drawing.width, drawing.height) == (180 + 2 * 14, 44 + 2 * 14)

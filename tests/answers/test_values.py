"""Boxes and edit distances."""

from vlmrl.answers.values import box_of, boxes, distance, iou


def test_boxes_in_a_text():
    assert boxes("at [0, 1.5, 10, 20] and (1, 2, 3, 4)") == [
        (0, 1.5, 10, 20),
        (1, 2, 3, 4),
    ]
    assert box_of('{"bbox_2d": [1, 2, 3, 4]}') == box_of("(1,2),(3,4)") == (1, 2, 3, 4)
    assert box_of("1, 2, 3, 4") == box_of("1 2 3 4\n") == (1, 2, 3, 4)
    assert box_of("the 4 of 1, 2, 3, 4") is None
    assert (
        box_of("[0, 0, 1, 1] or [0, 0, 2, 2]") is None and box_of("[1, 2, 3]") is None
    )


def test_overlap():
    assert iou((0, 0, 10, 10), (0, 0, 10, 5)) == 0.5
    assert iou((0, 0, 0, 0), (0, 0, 0, 0)) == iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert iou((3, 3, 0, 0), (0, 0, 3, 3)) == 0  # corners in the wrong order


def test_edit_distance():
    assert distance("kitten", "sitting") == 3
    assert distance("a" * 10**6, "a") == 999  # of the first thousand characters

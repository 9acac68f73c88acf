"""What names say about depth and masks."""

import pytest

from lapa_jax.data.modalities import beside_colour, is_depth, subject, words


@pytest.mark.parametrize(
    "name, depth",
    [
        ("frame-000001.depth", True),
        ("robot0_eye_in_hand_depth", True),
        ("wristDepthMap_3", True),
        ("DEPTH0001", True),
        ("agentview_segmentation_instance", True),
        ("clip3-mask", True),
        ("Annotations", True),
        ("disparity_left", True),
        ("agentview_image", False),
        ("unmasked", False),
        ("deeper", False),
        ("normal_light", False),
        ("segway", False),
        ("cam_high", False),
    ],
)
def test_names(name, depth):
    assert is_depth(name) == depth


def test_words_and_subjects():
    assert words("wristRGBImage_04-left.v2") == ["wrist", "rgb", "image", "left", "v"]
    assert subject("clip_3_depth") == subject("clip_3_rgb") == subject("clip_3") == ("clip", "3")


@pytest.mark.parametrize(
    "paths, left_out",
    [
        (["ep1/rgb", "ep1/depth"], ["ep1/depth"]),
        (["ep1/color", "ep1/depth", "ep1/mask"], ["ep1/depth", "ep1/mask"]),
        (["ep1", "ep1/depth"], ["ep1/depth"]),
        (["rgb/ep1", "rgb/ep2", "depth/ep1", "depth/ep2"], ["depth/ep1", "depth/ep2"]),
        (["JPEGImages/bear", "Annotations/bear"], ["Annotations/bear"]),
        (["left", "right", "depth"], ["depth"]),
        (["a/clip7", "a/clip7_depth", "a/clip8"], ["a/clip7_depth"]),
        (["a/clip7_color", "a/clip7_depth"], ["a/clip7_depth"]),
        ([".", "depth"], ["depth"]),
        (["rgb", "aligned_depth", "ir", "labels"], ["aligned_depth", "ir", "labels"]),
        (["image/ep1", "label/ep1"], ["label/ep1"]),
        # nothing else shows it, or the word is part of what is done
        (["ep1/depth", "ep2/depth"], []),
        (["put_mask_on/1", "take_cup/1"], []),
        (["mask_wearing", "cooking"], []),
        (["clip1_depth", "clip2"], []),
        (["labels", "ir"], []),
        (["label_boxes", "cooking"], []),
    ],
)
def test_depth_beside_colour(paths, left_out):
    assert sorted(beside_colour(paths)) == sorted(left_out)

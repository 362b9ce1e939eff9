"""Attributes of faces: groups that differ in one, captions that are true of many, agreement."""

import numpy as np
import torch

from demo.make_faces import ATTRIBUTES, make_face
from research.attributes.check_prompts import agreement, choose_captions
from research.attributes.classifier import SIZES, attribute_loss, predict
from research.demo_weights.clip_losses import contrastive_loss, truth
from research.demo_weights.face_groups import make_group


def test_faces_of_a_group_differ_in_one_attribute():
    for index in range(50):
        variants, name = make_group(index)
        for face in variants[1:]:
            assert {n for n in ATTRIBUTES if face[n] != variants[0][n]} <= {name}


def test_a_caption_is_true_of_every_face_that_agrees_with_what_it_states():
    codes = np.array([[0, 1, 2], [0, 1, 0], [1, 1, 2]])
    stated = np.array([[True, True, False], [True, True, True], [False, True, False]])
    expected = [[True, True, False], [False, True, False], [True, True, True]]
    assert truth(codes, stated).tolist() == expected


def test_contrastive_loss_is_least_when_scores_follow_the_truth():
    image = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    true = torch.eye(6, dtype=torch.bool)
    scale = torch.tensor(20.0)
    right = contrastive_loss(image, image, scale, true)
    wrong = contrastive_loss(image, image.roll(1, 0), scale, true)
    assert right < 0.5 < wrong


def test_hidden_attributes_count_neither_in_loss_nor_in_agreement():
    codes = torch.zeros(4, len(ATTRIBUTES), dtype=torch.long)
    logits = torch.zeros(4, sum(SIZES))
    base = attribute_loss(logits, codes)
    codes[0] = -1
    assert torch.allclose(attribute_loss(logits, codes), base)
    stated = torch.zeros(4, len(ATTRIBUTES), dtype=torch.bool)
    stated[1:, 0] = True
    row = agreement(predict(logits), codes, stated)
    assert row[next(iter(ATTRIBUTES))] == 100


def test_captions_of_held_out_faces_are_taken_in_turn():
    records = [make_face("test", i, num_captions=3)[1] for i in range(6)]
    texts, stated = choose_captions(records)
    assert texts[4] == records[4]["captions"][1]["text"]
    assert stated.shape == (6, len(ATTRIBUTES))

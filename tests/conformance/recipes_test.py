"""The recipes for published models, on these models: what is decayed is what their authors decay, by the layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import graphwd
from tests.helpers.pages import policies_in

keras_hub = pytest.importorskip("keras_hub", reason="keras_hub is not installed: run tools/setup")


def resnet():
    return keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3))


def vit():
    return keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )


def bert():
    return keras_hub.models.BertBackbone(
        vocabulary_size=50, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=12
    )


def convnext():
    return keras.applications.ConvNeXtTiny(weights=None, input_shape=(64, 64, 3))


NORMS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)


def is_norm(_, layer):
    return isinstance(layer, NORMS)


def has_one_dimension(weight, _):
    return len(weight.shape) == 1


def is_bias_or_norm(weight, layer):
    return isinstance(layer, NORMS) or weight is getattr(layer, "bias", None)


def is_exempt_in_deit(weight, layer):
    is_embedding = isinstance(layer, keras.layers.Embedding) or type(layer).__name__ == "ViTPatchingAndEmbedding"
    return is_bias_or_norm(weight, layer) or is_embedding


@pytest.mark.parametrize(
    ("section", "make", "is_exempt", "rate"),
    [
        ("ResNet-50", resnet, is_norm, 1e-4),
        ("ViT, as DeiT trains it", vit, is_exempt_in_deit, 0.05),
        ("BERT", bert, is_bias_or_norm, 0.01),
        ("ConvNeXt", convnext, has_one_dimension, 0.05),
        ("DINO", vit, is_bias_or_norm, None),
    ],
)
def test_a_recipe_decays_what_its_authors_decay(section, make, is_exempt, rate, tmp_path):
    model = make()
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    (text,) = policies_in("recipes", section)
    policy = tmp_path / "policy.yaml"
    policy.write_text(text)
    plan = graphwd.keras.plan(model, policy)
    assert not plan.problems
    owners = {id(weight): layer for layer in model._flatten_layers() for weight in layer._trainable_variables}
    by_name = {weight.path: weight for weight in model.trainable_weights}
    assert len(plan.decisions) == len(by_name)
    counts = {True: 0, False: 0}
    for decision in plan.decisions:
        weight = by_name[decision.variable.name]
        exempt = is_exempt(weight, owners[id(weight)])
        counts[exempt] += 1
        assert decision.outcome.value == ("exempt" if exempt else "decay"), decision.variable.name
        if not exempt and rate is not None:
            np.testing.assert_equal(decision.rule.weight_decay, rate)
    assert min(counts.values()) > 0

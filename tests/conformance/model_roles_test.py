"""Roles in real models, against what their layers say: a table of layer classes and attributes, no names.

Models that the suite builds often are checked at every run; ``GRAPHWD_ALL_MODELS`` adds the rest of keras.applications.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf
import tf_keras

import graphwd
from graphwd.models.saved_model import open_model
from graphwd.models.target import plan as plan_target
from graphwd.planning.folding import unfold
from graphwd.planning.suggest import OVERVIEW, suggestion
from graphwd.steps.read import variables_of
from tests.helpers.scramble import scramble

keras_hub = pytest.importorskip("keras_hub", reason="keras_hub is not installed: run tools/setup")

# T5 of keras_hub masks what its attention does not.
pytestmark = pytest.mark.filterwarnings("ignore:Layer '.*(does not support masking|unbuilt state)")

EVERY = bool(os.environ.get("GRAPHWD_ALL_MODELS"))

KERNEL, DEPTHWISE, EMBEDDING, BIAS, NORM, OTHER = "kernel", "depthwise", "embedding", "bias", "norm", "other"
ALL = "every weight of its own"

# By the name of a layer's class, or of a base of it: the roles of its attributes. The first that holds counts.
KERAS: Mapping[str, Mapping[str, str]] = {
    "BatchNormalization": {ALL: NORM},
    "LayerNormalization": {ALL: NORM},
    "GroupNormalization": {ALL: NORM},
    "RMSNormalization": {ALL: NORM},
    "LlamaLayerNorm": {ALL: NORM},
    "MistralLayerNormalization": {ALL: NORM},
    "T5LayerNorm": {ALL: NORM},
    "DepthwiseConv1D": {"kernel": DEPTHWISE, "depthwise_kernel": DEPTHWISE, "bias": BIAS},
    "DepthwiseConv2D": {"kernel": DEPTHWISE, "depthwise_kernel": DEPTHWISE, "bias": BIAS},
    "SeparableConv1D": {"depthwise_kernel": DEPTHWISE, "pointwise_kernel": KERNEL, "bias": BIAS},
    "SeparableConv2D": {"depthwise_kernel": DEPTHWISE, "pointwise_kernel": KERNEL, "bias": BIAS},
    "BaseConv": {"kernel": KERNEL, "bias": BIAS},
    "BaseConvTranspose": {"kernel": KERNEL, "bias": BIAS},
    "Conv": {"kernel": KERNEL, "bias": BIAS},
    "Dense": {"_kernel": KERNEL, "kernel": KERNEL, "bias": BIAS, "lora_kernel_a": KERNEL, "lora_kernel_b": KERNEL},
    "EinsumDense": {"_kernel": KERNEL, "kernel": KERNEL, "bias": BIAS},
    "SimpleRNNCell": {"kernel": KERNEL, "recurrent_kernel": KERNEL, "bias": BIAS},
    "LSTMCell": {"kernel": KERNEL, "recurrent_kernel": KERNEL, "bias": BIAS},
    "GRUCell": {"kernel": KERNEL, "recurrent_kernel": KERNEL, "bias": BIAS},
    "ConvLSTMCell": {"kernel": KERNEL, "recurrent_kernel": KERNEL, "bias": BIAS},
    "Embedding": {"_embeddings": EMBEDDING, "embeddings": EMBEDDING, "reverse_embeddings": KERNEL},
    "PositionEmbedding": {"position_embeddings": EMBEDDING},
    "PReLU": {"alpha": OTHER},
    "LayerScale": {"gamma": OTHER},
    "ViTPatchingAndEmbedding": {"class_token": EMBEDDING},
    "RelativeEmbedding": {"rel_embeddings": EMBEDDING},
    "T5MultiHeadAttention": {"relative_attention_bias": EMBEDDING},
}

SONNET: Mapping[str, Mapping[str, str]] = {
    "BaseBatchNorm": {"scale": NORM, "offset": NORM},
    "LayerNorm": {"scale": NORM, "offset": NORM},
    "GroupNorm": {"scale": NORM, "offset": NORM},
    "DepthwiseConv2D": {"w": DEPTHWISE, "b": BIAS},
    "ConvND": {"w": KERNEL, "b": BIAS},
    "ConvNDTranspose": {"w": KERNEL, "b": BIAS},
    "Linear": {"w": KERNEL, "b": BIAS},
    "Embed": {"embeddings": EMBEDDING},
    "LSTM": {"_w_i": KERNEL, "_w_h": KERNEL, "b": BIAS},
    "GRU": {"_w_i": KERNEL, "_w_h": KERNEL, "b": BIAS},
}


def truth_of(layers: Any, table: Mapping[str, Mapping[str, str]]) -> dict[int, str]:
    """The roles of weights, by their identities, as the objects that own them say."""
    known: dict[int, str] = {}
    for layer in layers:
        row = next((table[kind.__name__] for kind in type(layer).__mro__ if kind.__name__ in table), {})
        if ALL in row:
            known |= {id(weight): row[ALL] for weight in layer.trainable_weights}
        for name, role in row.items():
            weight = getattr(layer, name, None)
            if weight is not None:
                groups = getattr(layer, "groups", 1)
                as_depthwise = role == KERNEL and name == "kernel" and 1 < groups == getattr(layer, "filters", None)
                known.setdefault(id(weight), DEPTHWISE if as_depthwise else role)
    return known


def step_of(variables: Any, forward: Callable[[Any], Any], spec: Any) -> Any:
    """A step of plain SGD whose loss is the mean square of all outputs."""

    def loss_of(outputs: Any) -> Any:
        flat = [tf.cast(output, tf.float32) for output in tf.nest.flatten(outputs) if output.dtype.is_floating]
        return tf.add_n([tf.reduce_mean(tf.square(output)) for output in flat])

    @tf.function(input_signature=[spec], autograph=False)
    def step(x: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(forward(x))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            if gradient is not None:
                variable.assign_sub(tf.cast(0.5, variable.dtype) * tf.convert_to_tensor(gradient))

    return step


def specs_of(x: Any) -> Any:
    return tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), x)


class Model:
    """A model, its step, and what its layers say of its weights."""

    def __init__(self, variables: list[Any], truth: Mapping[int, str], forward: Callable[[Any], Any], x: Any) -> None:
        self.truth = {
            id(
                getattr(variable, "value", variable).handle if isinstance(variable, keras.Variable) else variable.handle
            ): (truth.get(id(variable)))
            for variable in variables
        }
        plain = [variable.value if isinstance(variable, keras.Variable) else variable for variable in variables]
        self.step = step_of(plain, forward, specs_of(x))
        self.keep = variables

    def disagreements(self) -> Iterator[tuple[str, str | None, str]]:
        """For every variable whose role is another: its name, what its layer says, and the role."""
        plan = graphwd.plan(self.step, OVERVIEW)
        self.count = len(plan.decisions)
        for decision in plan.decisions:
            expected = self.truth[decision.variable.key]
            role = decision.purpose.role.value
            if role != expected:
                yield decision.variable.name, expected, role


def keras_model(model: Any, x: Any, training: bool = True) -> Model:
    truth = truth_of(model._flatten_layers(), KERAS)
    return Model(list(model.trainable_variables), truth, lambda x: model(x, training=training), x)


def sonnet_module(module: Any, x: Any, forward: Callable[[Any], Any] | None = None) -> Model:
    forward = forward or module
    forward(x)
    truth = truth_of([module, *module.submodules], SONNET)
    return Model(list(module.trainable_variables), truth, forward, x)


def application(name: str, size: int = 64) -> Model:
    network = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=7)
    return keras_model(network, tf.zeros([2, size, size, 3]))


def layers_on_images(library: Any) -> Model:
    layers, spare = library.layers, []
    if library is keras:
        spare = [layers.Conv2D(12, 3, groups=12, padding="same"), layers.RMSNormalization()]
    stack = [
        layers.Conv2D(8, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(3),
        layers.GroupNormalization(4),
        layers.SeparableConv2D(12, 3),
        layers.PReLU(),
        *spare,
        layers.Conv2DTranspose(5, 3),
        layers.LayerNormalization(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(7, activation="relu"),
        layers.Dense(1),
    ]
    return keras_model(library.Sequential([layers.Input((16, 16, 3)), *stack]), tf.zeros([2, 16, 16, 3]))


def layers_on_tokens(library: Any) -> Model:
    layers = library.layers
    tokens = layers.Input((12,), dtype="int32")
    x = layers.Embedding(20, 8)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.Conv1D(6, 3)(layers.SeparableConv1D(7, 3)(layers.DepthwiseConv1D(3)(x)))
    x = layers.GRU(5, return_sequences=True)(layers.LSTM(6, return_sequences=True)(x))
    x = layers.Dense(3)(layers.Bidirectional(layers.SimpleRNN(4))(x))
    return keras_model(library.Model(tokens, x), tf.zeros([2, 12], tf.int32))


def layers_on_volumes() -> Model:
    layers = keras.layers
    frames = layers.Input((4, 8, 8, 3))
    x = layers.ConvLSTM2D(4, 3, return_sequences=True)(frames)
    x = layers.Conv3DTranspose(3, 2)(layers.Conv3D(4, 3, padding="same")(x))
    x = layers.EinsumDense("abcde,efg->abcdfg", output_shape=(None, None, None, 3, 5), bias_axes="fg")(x)
    return keras_model(keras.Model(frames, x), tf.zeros([2, 4, 8, 8, 3]))


def with_low_rank_factors() -> Model:
    dense = keras.layers.Dense(6)
    model = keras.Sequential([keras.layers.Input((4,)), dense])
    dense.enable_lora(2)
    return keras_model(model, tf.zeros([2, 4]))


def sonnet_resnet() -> Model:
    network = snt.nets.ResNet([1, 1, 1, 1], 10, resnet_v2=True)
    return sonnet_module(network, tf.zeros([2, 32, 32, 3]), lambda x: network(x, is_training=True))


def sonnet_layers() -> Model:
    stack = [snt.Conv2D(4, 3), snt.GroupNorm(2), tf.nn.relu, snt.DepthwiseConv2D(3), snt.Conv2DTranspose(3, 3)]
    stack += [snt.InstanceNorm(True, True), snt.Flatten(), snt.Linear(4), snt.LayerNorm(-1, True, True)]
    return sonnet_module(snt.Sequential(stack), tf.zeros([2, 8, 8, 3]))


def sonnet_recurrent() -> Model:
    core = snt.DeepRNN([snt.LSTM(5), snt.GRU(4)])
    return sonnet_module(core, tf.zeros([7, 2, 3]), lambda x: snt.dynamic_unroll(core, x, core.initial_state(2))[0])


SMALL = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
TEXT = {"vocabulary_size": 30, **SMALL, "max_sequence_length": 8}
GROUPED = {
    "vocabulary_size": 30, "num_layers": 2, "num_query_heads": 2, "num_key_value_heads": 1, "hidden_dim": 8,
    "intermediate_dim": 16,
}  # fmt: skip
TOKENS, MASK = tf.zeros([2, 8], tf.int32), tf.ones([2, 8], tf.int32)
IDS = {"token_ids": TOKENS, "padding_mask": MASK}
PAIR = {
    "encoder_token_ids": TOKENS, "encoder_padding_mask": MASK,
    "decoder_token_ids": TOKENS, "decoder_padding_mask": MASK,
}  # fmt: skip


def backbone(name: str, x: Any, **options: Any) -> Model:
    return keras_model(getattr(keras_hub.models, f"{name}Backbone")(**options), x)


def gaussian_process() -> Model:
    gpflow = pytest.importorskip("gpflow", reason="gpflow is not installed: run tools/setup")
    random = np.random.default_rng(0)
    inputs, outputs = random.normal(size=(20, 2)), random.normal(size=(20, 1))
    model = gpflow.models.GPR((inputs, outputs), gpflow.kernels.RBF())
    variables = list(model.trainable_variables)
    truth = {id(variable): OTHER for variable in variables}
    return Model(variables, truth, lambda x: model.training_loss() + 0 * tf.reduce_sum(x), tf.constant(inputs))


MODELS: dict[str, Callable[[], Model]] = {
    "VGG16": lambda: application("VGG16"),
    "MobileNetV3Small": lambda: application("MobileNetV3Small"),
    "ConvNeXtTiny": lambda: application("ConvNeXtTiny"),
    "EfficientNetV2B0": lambda: application("EfficientNetV2B0"),
    "Keras, images": lambda: layers_on_images(keras),
    "Keras, tokens": lambda: layers_on_tokens(keras),
    "Keras, volumes": layers_on_volumes,
    "Keras, LoRA": with_low_rank_factors,
    "tf_keras, images": lambda: layers_on_images(tf_keras),
    "tf_keras, tokens": lambda: layers_on_tokens(tf_keras),
    "Sonnet ResNet": sonnet_resnet,
    "Sonnet layers": sonnet_layers,
    "Sonnet recurrent": sonnet_recurrent,
    "Bert": lambda: backbone("Bert", {**IDS, "segment_ids": TOKENS}, **TEXT),
    "Roberta": lambda: backbone("Roberta", IDS, **TEXT),
    "GPT2": lambda: backbone("GPT2", IDS, **TEXT),
    "Llama": lambda: backbone("Llama", IDS, **GROUPED),
    "Mistral": lambda: backbone("Mistral", IDS, **GROUPED),
    "Gemma": lambda: backbone("Gemma", IDS, head_dim=4, **GROUPED),
    "DebertaV3": lambda: backbone("DebertaV3", IDS, bucket_size=4, **TEXT),
    "T5": lambda: backbone("T5", PAIR, vocabulary_size=30, **SMALL),
    "Bart": lambda: backbone("Bart", PAIR, **TEXT),
    "FNet": lambda: backbone(
        "FNet", {"token_ids": TOKENS, "segment_ids": TOKENS}, **{k: v for k, v in TEXT.items() if k != "num_heads"}
    ),
    "ViT": lambda: backbone(
        "ViT", tf.zeros([2, 32, 32, 3]), image_shape=(32, 32, 3), patch_size=(8, 8), num_layers=2, num_heads=2,
        hidden_dim=8, mlp_dim=16,
    ),
    "GPflow GPR": gaussian_process,
}  # fmt: skip

LARGE = [
    "ConvNeXtBase", "DenseNet121", "DenseNet169", "DenseNet201", "EfficientNetB0", "EfficientNetB3", "EfficientNetV2S",
    "InceptionResNetV2", "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large", "NASNetMobile", "ResNet50",
    "ResNet50V2", "ResNet101", "ResNet152V2", "VGG19", "Xception",
]  # fmt: skip
SIZES = {"InceptionV3": 96, "InceptionResNetV2": 96, "Xception": 96, "NASNetMobile": 224}
if EVERY:
    MODELS |= {name: lambda name=name: application(name, SIZES.get(name, 64)) for name in LARGE}

# What a layer says and what the graph shows differ in these, by what a variable is called and what its role is then.
EXPLAINED: Mapping[str, Counter[tuple[str | None, str]]] = {
    # Its LayerNormalization is applied to a learned table and to nothing that passes: no activation is normalized.
    "DebertaV3": Counter({(NORM, OTHER): 2, (EMBEDDING, OTHER): 1}),
}


@pytest.mark.parametrize("name", MODELS)
def test_roles_are_what_the_layers_say(name):
    model = MODELS[name]()
    different = list(model.disagreements())
    # Their reversed embeddings are of the head, which is no part of the backbone.
    assert model.count == len(model.truth) - (name in ("Llama", "Mistral"))
    assert Counter((expected, role) for _, expected, role in different) == EXPLAINED.get(name, Counter()), different


class Exported(tf.Module):
    """A model's step, with its variables, to be saved."""

    def __init__(self, model: Model) -> None:
        self.weights = [v.value if isinstance(v, keras.Variable) else v for v in model.keep]
        self.step = model.step
        self.all = variables_of(self.step.get_concrete_function())  # statistics and seeds, too


@pytest.mark.parametrize(
    "name", ["Keras, images", "Keras, tokens", "tf_keras, tokens", "Sonnet layers", "Bert", "Gemma"]
)
def test_the_same_roles_in_a_file_without_names(name, tmp_path):
    model = MODELS[name]()
    module = Exported(model)
    tf.saved_model.save(module, str(tmp_path / "model"), options=tf.saved_model.SaveOptions(save_debug_info=False))
    scrambled = scramble(tmp_path / "model", tmp_path / "scrambled")
    expected = {decision.variable.key: decision.purpose for decision in graphwd.plan(module.step, OVERVIEW).decisions}
    of_path = {f"weights.{i}": expected[id(weight.handle)] for i, weight in enumerate(module.weights)}
    for folder in (tmp_path / "model", scrambled):
        record = plan_target(open_model(str(folder), ["step"]), OVERVIEW).record()
        found = {variable["path"]: (variable["role"], variable["followed_by"]) for variable in record["variables"]}
        assert found == {path: (purpose.role.value, purpose.followed_by) for path, purpose in of_path.items()}
    assert not any("kernel" in variable["name"] for variable in record["variables"])


@pytest.mark.parametrize("name", MODELS)
def test_the_first_policy_plans_without_a_problem(name):
    model = MODELS[name]()
    text = graphwd.suggest(model.step)
    policy = graphwd.Policy.from_text(text)
    plan = graphwd.plan(model.step, policy)
    assert plan.problems == ()
    for decision in plan.decisions:
        decays = model.truth[decision.variable.key] == KERNEL
        assert (decision.outcome.value == "decay") == decays or name in EXPLAINED
    comments = [line.removeprefix("    # ") for line in text.splitlines() if line.startswith("    # ")]
    told = [variable for comment in comments for variable in unfold(comment.split("  ")[0])]
    assert sorted(told) == sorted(decision.variable.shown for decision in plan.decisions)
    assert (
        suggestion("the step", lambda policy: graphwd.plan(model.step, policy)).splitlines()[1:]
        == (text.splitlines()[1:])
    )

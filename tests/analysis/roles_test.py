"""What a variable is used for, in small steps that are written by hand; whole models are in conformance."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from graphwd.analysis.roles import find_roles
from graphwd.policy.roles import Role
from graphwd.steps.read import read

KERNEL, DEPTHWISE, EMBEDDING, BIAS, NORM, OTHER = Role


def weight(*shape, name="w"):
    return tf.Variable(np.random.default_rng(0).normal(size=shape), dtype=tf.float32, name=name)


def uses(forward, *weights, shape=(4, 6), dtype=tf.float32, assign=False):
    """The purposes of weights in a step of plain SGD, whose loss is the mean square of what ``forward`` returns."""

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype)])
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(forward(x)))
        for w, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            if assign:
                w.assign(w - 0.5 * tf.convert_to_tensor(gradient))
            else:
                w.assign_sub(0.5 * tf.convert_to_tensor(gradient))

    graph = read(step.get_concrete_function())
    found = find_roles(graph)
    by_key = {variable.key: found[variable.id] for variable in graph.variables if variable.trainable}
    return [by_key[id(w.handle)] for w in weights]


def roles(*args, **kwargs):
    return [purpose.role for purpose in uses(*args, **kwargs)]


def normalized(x, axis=-1):
    mean, variance = tf.nn.moments(x, axis, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-3)


@pytest.mark.parametrize("assign", [False, True])
def test_a_dense_layer(assign):
    w, b = weight(6, 3), weight(3)
    assert roles(lambda x: tf.matmul(x, w) + b, w, b, assign=assign) == [KERNEL, BIAS]
    assert roles(lambda x: tf.nn.bias_add(tf.matmul(x, w), b), w, b, assign=assign) == [KERNEL, BIAS]


@pytest.mark.parametrize(
    "seen_through",
    [
        lambda w: tf.cast(tf.cast(w, tf.float64), tf.float32),
        lambda w: tf.reshape(tf.reshape(w, [-1]), [6, 3]),
        lambda w: tf.transpose(tf.transpose(w)),
        lambda w: tf.concat(tf.split(w, 2), 0),
        lambda w: tf.stack(tf.unstack(w)),
        lambda w: tf.gather(w, [0, 1, 2, 3, 4, 5]),
        lambda w: tf.stop_gradient(w) + w - tf.stop_gradient(w),
        tf.nn.softplus,
        lambda w: w / tf.norm(w),
        lambda w: tf.cond(tf.reduce_sum(w) > 0, lambda: w, lambda: 2 * w),
        lambda w: tf.quantization.fake_quant_with_min_max_args(w),
    ],
)
def test_a_kernel_through_what_does_not_matter(seen_through):
    w = weight(6, 3)
    assert roles(lambda x: tf.matmul(x, seen_through(w)), w) == [KERNEL]


@pytest.mark.parametrize("compiled", [False, True])
def test_in_functions_branches_and_loops(compiled):
    w, b = weight(6, 6), weight(6)

    @tf.function(jit_compile=compiled)
    def layer(x):
        return tf.nn.relu(tf.matmul(x, w) + b)

    def recurrent(x):
        return tf.while_loop(lambda i, _: i < 3, lambda i, h: (i + 1, tf.tanh(tf.matmul(h, w) + b)), (0, x))[1]

    def branching(x):
        return tf.cond(x[0, 0] > 0, lambda: layer(x), lambda: x)

    def mapped(x):
        return tf.map_fn(lambda row: layer(row[tf.newaxis]), x)

    for forward in (layer, recurrent, branching, mapped):
        assert roles(forward, w, b) == [KERNEL, BIAS]


def test_biases_of_any_rank():
    heads, flat = weight(6, 2, 3), weight(2, 3)
    assert roles(lambda x: tf.einsum("bi,ihk->bhk", x, heads) + flat, heads, flat) == [KERNEL, BIAS]
    kernel, recurrent, two = weight(6, 9), weight(6, 9), weight(2, 9)

    def gates(x):
        first, second = tf.unstack(two)
        return tf.matmul(x, kernel) + first + tf.matmul(x, recurrent) + second

    assert roles(gates, kernel, recurrent, two) == [KERNEL, KERNEL, BIAS]
    one = weight(1)
    narrow = weight(6, 1)
    assert roles(lambda x: tf.matmul(x, narrow) + one, narrow, one) == [KERNEL, BIAS]


def test_biases_of_many_kernels():
    kernels, biases = weight(4, 6, 5), weight(4, 5)
    back, back_biases = weight(4, 5, 6), weight(4, 6)

    def experts(x):
        hidden = tf.nn.relu(tf.einsum("td,edf->tef", x, kernels) + biases)
        return tf.einsum("tef,efd->ted", hidden, back) + back_biases

    assert roles(experts, kernels, biases, back, back_biases) == [KERNEL, BIAS, KERNEL, BIAS]
    places, at_places = weight(7, 6, 5), weight(7, 5)
    assert roles(lambda x: tf.einsum("abc,bcd->abd", x, places) + at_places, places, at_places, shape=(2, 7, 6)) == [
        KERNEL,
        BIAS,
    ]

    def chosen(x):
        expert = tf.argmax(x[:, :4], 1)
        return tf.einsum("td,tdf->tf", x, tf.gather(kernels, expert)) + tf.gather(biases, expert)

    assert roles(chosen, kernels, biases) == [KERNEL, BIAS]
    # A table of as many positions as the filters have rows is no bias: a filter's rows are summed.
    filters, positions = weight(5, 5, 3, 4), weight(5, 4)

    def patches(x):
        return tf.reshape(tf.nn.conv2d(x, filters, 5, "VALID"), [-1, 5, 4]) + positions

    assert roles(patches, filters, positions, shape=(1, 5, 25, 3)) == [KERNEL, EMBEDDING]


def test_a_bias_behind_a_residual_connection():
    w, b, v = weight(6, 6), weight(6), weight(4, 6)
    assert roles(lambda x: (x + tf.matmul(x, w)) + b, w, b) == [KERNEL, BIAS]
    assert roles(lambda x: (x + tf.matmul(x, w)) + v, w, v) == [KERNEL, EMBEDDING]
    assert roles(lambda x: (x + tf.nn.relu(tf.matmul(x, w))) + b, w, b) == [KERNEL, OTHER]


def test_convolutions():
    image = (2, 8, 8, 3)
    filters, b, transposed = weight(3, 3, 3, 5), weight(5), weight(3, 3, 4, 3)
    assert roles(lambda x: tf.nn.conv2d(x, filters, 1, "SAME") + b, filters, b, shape=image) == [KERNEL, BIAS]
    up = roles(lambda x: tf.nn.conv2d_transpose(x, transposed, (2, 16, 16, 4), 2), transposed, shape=image)
    assert up == [KERNEL]
    depth, point = weight(3, 3, 3, 2), weight(1, 1, 6, 4)
    separable = roles(
        lambda x: tf.nn.separable_conv2d(x, depth, point, [1, 1, 1, 1], "SAME"), depth, point, shape=image
    )
    assert separable == [DEPTHWISE, KERNEL]
    dilated = roles(
        lambda x: tf.nn.depthwise_conv2d(x, depth, [1, 1, 1, 1], "SAME", dilations=[2, 2]), depth, shape=image
    )
    assert dilated == [DEPTHWISE]


def test_as_many_groups_as_channels():
    first, grouped, single = weight(3, 3, 3, 4), weight(3, 3, 1, 4), weight(3, 3, 1, 4)

    @tf.function(jit_compile=True)  # TensorFlow's CPU has no other convolution with groups
    def net(x):
        return tf.nn.conv2d(tf.nn.relu(tf.nn.conv2d(x, first, 1, "SAME")), grouped, 1, "SAME")

    assert roles(net, first, grouped, shape=(2, 8, 8, 3)) == [KERNEL, DEPTHWISE]
    image = tf.function(lambda x: tf.nn.conv2d(x, grouped, 1, "SAME"), jit_compile=True)
    assert roles(image, grouped, shape=(2, 8, 8, 4)) == [DEPTHWISE]
    # Of an image of one channel it is a convolution like another.
    assert roles(lambda x: tf.nn.conv2d(x, single, 1, "SAME"), single, shape=(2, 8, 8, 1)) == [KERNEL]


def test_embeddings():
    table, positions = weight(20, 5), weight(9, 5)
    ids = {"shape": (2, 7), "dtype": tf.int32}
    assert roles(lambda x: tf.gather(table, x), table, **ids) == [EMBEDDING]
    assert roles(lambda x: tf.nn.embedding_lookup(table, x), table, **ids) == [EMBEDDING]
    assert roles(lambda x: tf.matmul(tf.one_hot(x, 20), table), table, **ids) == [EMBEDDING]
    both = roles(lambda x: tf.gather(table, x) + positions[:7], table, positions, **ids)
    assert both == [EMBEDDING, EMBEDDING]
    looked_up = roles(lambda x: tf.gather(table, x) + tf.gather(positions, tf.range(7)), table, positions, **ids)
    assert looked_up == [EMBEDDING, EMBEDDING]
    bias = weight(20)
    tied = roles(lambda x: tf.matmul(tf.gather(table, x), table, transpose_b=True) + bias, table, bias, **ids)
    assert tied == [EMBEDDING, BIAS]
    token, w = weight(1, 6), weight(6, 2)
    assert roles(lambda x: tf.matmul(tf.concat([token, x], 0), w), token, w) == [EMBEDDING, KERNEL]


def test_normalizations_written_out():
    gamma, beta, w = weight(6), weight(6), weight(6, 6)
    assert roles(lambda x: normalized(x) * gamma + beta, gamma, beta) == [NORM, NORM]
    assert roles(lambda x: beta + gamma * normalized(x), gamma, beta) == [NORM, NORM]
    # As tf.nn.batch_normalization, and Keras, have it: the scale first, and the mean in the offset.

    def moments(x):
        return tf.nn.moments(x, [0])

    def inverse(x):
        return tf.math.rsqrt(moments(x)[1] + 1e-3) * gamma

    assert roles(lambda x: x * inverse(x) + (beta - moments(x)[0] * inverse(x)), gamma, beta) == [NORM, NORM]

    def rms(x):
        return x / tf.sqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + 1e-6)

    assert roles(lambda x: rms(tf.matmul(x, w)) * gamma, w, gamma) == [KERNEL, NORM]
    assert roles(lambda x: rms(x) * (1 + gamma), gamma) == [NORM]
    assert roles(lambda x: x * tf.math.reciprocal(tf.norm(x, axis=-1, keepdims=True)) * gamma, gamma) == [NORM]
    assert roles(lambda x: normalized(x) + beta, beta) == [NORM]  # without a scale
    frozen = tf.Variable(tf.ones([6]), trainable=False)

    def fixed(x):
        return x * tf.math.rsqrt(frozen + 1e-3) * gamma + beta

    assert roles(fixed, gamma, beta) == [NORM, NORM]


@pytest.mark.parametrize(
    "variance",
    [
        lambda x, mean: tf.reduce_mean(x * x, -1, keepdims=True) - mean * mean,
        lambda x, mean: tf.reduce_mean(tf.square(x), -1, keepdims=True) - tf.square(mean),
        lambda x, mean: tf.reduce_mean(x**2, -1, keepdims=True) - mean**2,
        lambda x, mean: tf.reduce_mean(tf.math.squared_difference(x, mean), -1, keepdims=True),
        lambda x, mean: tf.math.reduce_std(x, -1, keepdims=True) ** 2.0,
    ],
)
@pytest.mark.parametrize(
    "apply",
    [
        lambda centred, variance, gamma: gamma * (centred / tf.sqrt(variance + 1e-6)),
        lambda centred, variance, gamma: gamma * centred / tf.sqrt(variance + 1e-6),
        lambda centred, variance, gamma: centred * (gamma * tf.math.rsqrt(variance + 1e-6)),
        lambda centred, variance, gamma: gamma * centred * (variance + 1e-6) ** -0.5,
    ],
)
def test_normalizations_in_every_order(variance, apply):
    gamma, beta = weight(6), weight(6)

    def normalize(x):
        mean = tf.reduce_mean(x, -1, keepdims=True)
        return apply(x - mean, variance(x, mean), gamma) + beta

    assert roles(normalize, gamma, beta) == [NORM, NORM]


def test_a_layer_scale_before_a_normalization_is_no_scale_of_it():
    w, scale, gamma = weight(6, 6), weight(6), weight(6)

    def net(x):
        y = scale * tf.matmul(x, w)
        return gamma * y / tf.sqrt(tf.reduce_mean(y**2, -1, keepdims=True) + 1e-6)

    assert roles(net, w, scale, gamma) == [KERNEL, OTHER, NORM]


def test_normalizations_fused():
    gamma, beta, filters = weight(4), weight(4), weight(1, 1, 3, 4)

    def net(x, training=True):
        moving = {} if training else {"mean": tf.zeros(4), "variance": tf.ones(4)}
        y = tf.nn.conv2d(x, filters, 1, "SAME")
        return tf.compat.v1.nn.fused_batch_norm(y, gamma, beta, is_training=training, **moving)[0]

    found = uses(net, gamma, beta, filters, shape=(2, 8, 8, 3))
    assert [purpose.role for purpose in found] == [NORM, NORM, KERNEL]
    assert [purpose.normalized for purpose in found] == [False, False, True]
    frozen = uses(lambda x: net(x, training=False), gamma, beta, filters, shape=(2, 8, 8, 3))
    assert [purpose.normalized for purpose in frozen] == [False, False, False]


def test_what_is_none_of_these():
    alpha, scale, temperature, w, b = weight(6), weight(6), weight(), weight(6, 6), weight(6)

    def dense(x):
        return tf.matmul(x, w) + b

    def prelu(x):
        return tf.nn.relu(x) - alpha * tf.nn.relu(-x)

    assert roles(lambda x: prelu(dense(x)), alpha, w, b) == [OTHER, KERNEL, BIAS]
    assert roles(lambda x: x + scale * dense(x), scale, w, b) == [OTHER, KERNEL, BIAS]
    assert roles(lambda x: tf.exp(temperature) * dense(x), temperature, w, b) == [OTHER, KERNEL, BIAS]
    assert roles(lambda x: temperature * normalized(x), temperature) == [OTHER]
    assert roles(lambda x: x * scale, scale) == [OTHER]
    assert roles(lambda x: tf.reduce_sum(x) * tf.reduce_sum(scale**2), scale) == [OTHER]


def test_what_meets_a_normalization_after_its_scale():
    gamma, scale, kernel = weight(6), weight(6), weight(6, 3)

    def scaled(x):
        return normalized(x) * gamma

    assert roles(lambda x: x + scale * scaled(x), gamma, scale) == [NORM, OTHER]
    written_out = roles(lambda x: tf.reduce_sum(scaled(x)[:, :, tf.newaxis] * kernel, 1), gamma, kernel)
    assert written_out == [NORM, OTHER]


def test_slopes_before_a_normalization_that_is_written_out():
    """On the way back the gradient is normalized, too, and the slope multiplies it."""
    alpha, w, gamma = weight(6), weight(6, 6), weight(6)

    def net(x):
        y = tf.matmul(x, w)
        return normalized(tf.nn.relu(y) - alpha * tf.nn.relu(-y)) * gamma

    assert roles(net, alpha, w, gamma) == [OTHER, KERNEL, NORM]


def test_normalized_kernels_and_their_gains():
    w, gain, b = weight(6, 3), weight(3), weight(3)

    def dense(kernel):
        return roles(lambda x: tf.matmul(x, kernel()) + b, w, gain, b)

    assert dense(lambda: tf.nn.l2_normalize(w, 0) * gain) == [KERNEL, OTHER, BIAS]
    assert dense(lambda: gain * w / tf.norm(w, axis=0)) == [KERNEL, OTHER, BIAS]
    after = roles(lambda x: gain * tf.matmul(x, tf.nn.l2_normalize(w, 0)) + b, w, gain, b)
    assert after == [KERNEL, OTHER, BIAS]
    direction = tf.Variable(tf.ones([1, 6]), trainable=False)

    def spectral(x):
        left = tf.nn.l2_normalize(tf.matmul(tf.matmul(direction, w), w, transpose_b=True))
        right = tf.nn.l2_normalize(tf.matmul(left, w))
        direction.assign(left)
        sigma = tf.matmul(tf.matmul(tf.stop_gradient(left), w), tf.stop_gradient(right), transpose_b=True)
        return tf.matmul(x, w / sigma) + b

    assert roles(spectral, w, b) == [KERNEL, BIAS]


def test_low_rank_factors():
    w, a, b = weight(6, 4), weight(6, 2), weight(2, 4)
    assert roles(lambda x: tf.matmul(x, w + 0.5 * tf.matmul(a, b)), w, a, b) == [KERNEL, KERNEL, KERNEL]
    assert roles(lambda x: tf.matmul(x, w) + tf.matmul(tf.matmul(x, a), b), w, a, b) == [KERNEL, KERNEL, KERNEL]
    frozen = tf.Variable(tf.ones([6, 4]), trainable=False)
    assert roles(lambda x: tf.matmul(x, frozen + 0.5 * tf.matmul(a, b)), a, b) == [KERNEL, KERNEL]


def test_learned_inputs_are_no_kernels():
    queries, w, b = weight(3, 6), weight(6, 6), weight(6)

    def attend(x):
        return tf.matmul(tf.matmul(queries, w) + b, x, transpose_b=True)

    assert roles(attend, queries, w, b) == [OTHER, KERNEL, BIAS]


def test_what_is_normalized_next():
    w, b, gamma = weight(6, 6), weight(6), weight(6)

    def of(forward):
        return uses(forward, w, b, gamma)[0].normalized

    assert of(lambda x: normalized(tf.matmul(x, w)) * gamma + b)
    assert of(lambda x: normalized(tf.matmul(x, w) + b) * gamma)
    assert of(lambda x: normalized(tf.reshape(tf.matmul(x, w), [4, 2, 3])) + tf.reshape(gamma * b, [2, 3]))
    assert not of(lambda x: normalized(tf.nn.relu(tf.matmul(x, w))) * gamma + b)
    assert not of(lambda x: normalized(x + tf.matmul(x, w)) * gamma + b)
    assert not of(lambda x: tf.matmul(x, w) * gamma + b)
    assert not uses(lambda x: normalized(tf.reduce_sum(x * b, -1) * gamma[0]), b)[0].normalized
    assert not of(lambda x: normalized(tf.matmul(x, w) * gamma) + b)


def test_the_op_is_named_that_shows_it():
    w, b = weight(6, 3), weight(3)
    kernel, bias = uses(lambda x: tf.nn.bias_add(tf.matmul(x, w, name="product"), b), w, b)
    assert (kernel.seen, bias.seen) == ("MatMul, product", "BiasAdd to a product")


def test_a_regularizer_and_an_optimizer_are_no_use():
    w, unused = weight(6, 6), weight(6, 6)

    def loss(_):
        return tf.nn.l2_loss(w) + tf.reduce_sum(unused**2)

    assert roles(loss, w, unused, assign=True) == [OTHER, OTHER]

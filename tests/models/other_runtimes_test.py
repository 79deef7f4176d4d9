"""A rewritten SavedModel outside Python: TensorFlow's C API, and LiteRT on a device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from graphwd.models.saved_model import rewrite_saved_model

C_TRAIN = Path(__file__).resolve().parents[2] / "tools" / "c_train"
ROWS = 4
RATE = 0.125


class Trainer(tf.Module):
    """A linear model with momentum by hand, its step and its weights as signatures."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.fill([5, 3], 0.5), name="kernel")
        self.bias = tf.Variable(tf.zeros([3]), name="bias")
        self.momentum = tf.Variable(tf.zeros([5, 3]), trainable=False, name="momentum")

    @tf.function(input_signature=[tf.TensorSpec([ROWS, 5]), tf.TensorSpec([ROWS, 3])])
    def train(self, x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(x @ self.kernel + self.bias - y))
        gradient, of_bias = tape.gradient(loss, [self.kernel, self.bias])
        self.momentum.assign(0.75 * self.momentum + gradient)
        self.kernel.assign_sub(0.125 * self.momentum)
        self.bias.assign_sub(0.125 * of_bias)
        return {"loss": loss}

    @tf.function(input_signature=[])
    def weights(self):
        return {"kernel": self.kernel.read_value(), "bias": self.bias.read_value()}


def policy(semantics):
    rules = [{"name": "kernel", "weight_decay": RATE, "semantics": semantics}, {"weight_decay": 0}]
    return {"version": 1, "rules": rules}


@pytest.fixture
def model(tmp_path):
    trainer = Trainer()
    tf.saved_model.save(
        trainer, str(tmp_path / "model"), signatures={"train": trainer.train, "weights": trainer.weights}
    )
    return tmp_path / "model"


def trained(semantics, batches):
    """The weights in float64, by the formulas."""
    w, b, m = np.full((5, 3), 0.5), np.zeros(3), np.zeros((5, 3))
    for x, y in batches:
        error = x @ w + b - y
        g, h = x.T @ error * 2 / error.size, error.sum(axis=0) * 2 / error.size
        if semantics == "l2":
            g = g + RATE * w
        if semantics == "adamw":
            w = w * (1 - RATE * 0.125)
        m = 0.75 * m + g
        w, b = w - 0.125 * m, b - 0.125 * h
        if semantics == "decoupled":
            w = w * (1 - RATE)
    return w, b


def sines(rows, columns):
    """What the C program feeds."""
    return np.sin(np.arange(1, rows * columns + 1)).astype(np.float32).reshape(rows, columns)


@pytest.mark.parametrize("semantics", ["decoupled", "adamw", "l2"])
def test_a_c_program_trains_it(model, semantics, tmp_path):
    rewrite_saved_model(model, tmp_path / "decayed", policy(semantics))
    program = tmp_path / "train"
    subprocess.run([C_TRAIN / "build", sys.executable, program], check=True)
    signature = tf.saved_model.load(str(tmp_path / "decayed")).signatures["train"]
    assert set(signature.structured_input_signature[1]) == {"x", "y"}
    command = [program, tmp_path / "decayed", "serve", "300", "StatefulPartitionedCall:0"]
    command += ["train_x:0", str(ROWS), "5", "train_y:0", str(ROWS), "3"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    norms = {name: float(norm) for name, norm in map(str.split, done.stdout.splitlines())}
    w, b = trained(semantics, [(sines(ROWS, 5), sines(ROWS, 3))] * 300)
    assert norms["kernel"] == pytest.approx(np.linalg.norm(w), rel=1e-5)
    assert norms["bias"] == pytest.approx(np.linalg.norm(b), rel=1e-5)


def test_the_c_program_says_what_is_wrong(model, tmp_path):
    program = tmp_path / "train"
    subprocess.run([C_TRAIN / "build", sys.executable, program], check=True)
    done = subprocess.run([program], check=False, capture_output=True, text=True)
    assert (done.returncode, "usage: train DIR TAG" in done.stderr) == (2, True)  # TensorFlow talks before it
    done = subprocess.run([program, model, "serve", "1", "nothing:0"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "train: the graph has no node 'nothing'")


@pytest.mark.filterwarnings("ignore:.*(tf.lite.Interpreter is deprecated|use the LiteRT interpreter)")
@pytest.mark.parametrize("semantics", ["decoupled", "adamw", "l2"])
def test_litert_trains_it_on_a_device(model, semantics, tmp_path):
    rewrite_saved_model(model, tmp_path / "decayed", policy(semantics))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "decayed"))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    converter.experimental_enable_resource_variables = True
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    train, weights = (interpreter.get_signature_runner(name) for name in ("train", "weights"))
    random = np.random.default_rng(0)
    batches = [
        (random.normal(size=(ROWS, 5)).astype(np.float32), random.normal(size=(ROWS, 3)).astype(np.float32))
        for _ in range(20)
    ]
    for x, y in batches:
        train(x=x, y=y)
    w, b = trained(semantics, batches)
    found = weights()
    np.testing.assert_allclose(found["kernel"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["bias"], b, rtol=1e-5, atol=1e-6)

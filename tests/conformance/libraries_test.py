"""Training steps as other libraries write them, in lockstep: recommenders, agents, Gaussian processes, Model Garden.

The libraries are written for Keras 2, so this file needs a process in which ``tf.keras`` is tf_keras.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import graphwd
from tests.helpers.agreement import ulps_of_elements
from tests.helpers.by_hand import skip_by_hand
from tests.helpers.lockstep import (
    Case,
    assert_bit_equal,
    assert_within_ulps,
    check_adamw,
    check_l2,
    check_lists,
    check_lockstep,
    policy_for,
)

if os.environ.get("TF_USE_LEGACY_KERAS") != "1":
    skip_by_hand(
        "these libraries need tf.keras to be tf_keras, which a process chooses when it imports TensorFlow; run "
        "TF_USE_LEGACY_KERAS=1 .venv/bin/python -m pytest tests/conformance/libraries_test.py"
    )

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their own
    import gpflow
    import tensorflow_recommenders as tfrs
    from official.core import base_task, base_trainer, config_definitions
    from official.modeling import optimization
    from official.modeling.optimization import legacy_adamw
    from tf_agents.agents.dqn import dqn_agent
    from tf_agents.networks import q_network
    from tf_agents.specs import tensor_spec
    from tf_agents.trajectories import time_step
    from tf_agents.utils import common

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # their own

LEARNING_RATE = 0.01


# --- TensorFlow Recommenders ------------------------------------------------------------------------------------------

ROWS = 100_000


class Recommender(tfrs.Model):
    """Two towers: a large embedding and a dense layer for users, a large embedding for items."""

    def __init__(self) -> None:
        super().__init__()
        self.users = tf_keras.Sequential(
            [tf_keras.layers.Embedding(ROWS, 8, name="users"), tf_keras.layers.Dense(4, name="query")]
        )
        self.items = tf_keras.layers.Embedding(ROWS, 4, name="items")
        self.task = tfrs.tasks.Retrieval()

    def compute_loss(self, inputs: Any, training: bool = False) -> Any:  # noqa: ARG002
        return self.task(self.users(inputs["user"]), self.items(inputs["item"]))


class DecayedRecommender(Recommender):
    train_step = graphwd.with_weight_decay(policy_for({"users/embeddings": 0.1, "items/embeddings": 0.2}))(
        Recommender.train_step
    )


CLICKS = [
    {"user": tf.constant(users), "item": tf.constant(items)}
    for users, items in (
        ([1, 5, 5, 9], [3, 4, 3, ROWS - 1]),
        ([ROWS - 1, 5, 0, 0], [0, 3, 3, 3]),
        ([7, 8, 9, 1], [1, 2, 3, 4]),
    )
]
EMBEDDINGS = {"users/embeddings": 0.1, "items/embeddings": 0.2}


def recommender(kind: type = Recommender, optimizer: Any = None) -> Any:
    tf_keras.utils.set_random_seed(3)
    model = kind()
    model.compile(optimizer=optimizer or tf_keras.optimizers.Adagrad(0.1))
    model.compute_loss(CLICKS[0])
    model.optimizer.build(model.trainable_variables)
    return model


def recommender_case() -> tuple[Any, Case]:
    model = recommender()
    return model, Case(tf.function(model.train_step), [(each,) for each in CLICKS], EMBEDDINGS)


def touched(click: Mapping[str, tf.Tensor], table: str) -> np.ndarray:
    return np.unique(click["user" if table.startswith("users") else "item"].numpy())


def check_rows(click: Any, name: str, plain: np.ndarray, decayed: np.ndarray) -> None:
    """Checks that the rows of a batch are decayed, and that every other row is as without decay."""
    rows = touched(click, name)
    others = np.setdiff1d(np.arange(ROWS), rows)
    assert_bit_equal(plain[others], decayed[others], name)
    assert_within_ulps(decayed[rows], plain[rows].astype(np.float64) * (1 - EMBEDDINGS[name]), 1, name)


def test_recommenders_decay_the_rows_of_a_batch():
    model, case = recommender_case()
    check_lists(case, model.trainable_variables)
    concrete = case.step.get_concrete_function(CLICKS[0])
    rewritten = graphwd.rewrite(concrete, policy_for(EMBEDDINGS))
    state = [*model.trainable_variables, *model.optimizer.variables]
    for click in CLICKS:
        before = [variable.numpy() for variable in state]
        outputs = concrete(click)
        plain = [variable.numpy() for variable in state]
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        tf.nest.map_structure(assert_bit_equal, outputs, rewritten(click))
        for variable, undecayed in zip(state, plain, strict=True):
            name = variable.name.removesuffix(":0")
            if name in EMBEDDINGS:
                check_rows(click, name, undecayed, variable.numpy())
            else:
                assert_bit_equal(undecayed, variable.numpy(), name)


def test_recommenders_decay_every_row_where_asked():
    _, case = recommender_case()
    check_lockstep(case, sparse="all")


@pytest.mark.parametrize("check", [check_adamw, check_l2])
def test_recommenders_in_other_meanings(check):
    _, case = recommender_case()
    if check is check_l2:
        check_l2(case)
    else:
        check_adamw(case, 0.1, sparse="all")


def test_recommenders_refuse_l2_of_every_row():
    _, case = recommender_case()
    with pytest.raises(graphwd.PlanError, match="its gradient is sparse and holds the rows it touches only"):
        graphwd.rewrite(
            case.step.get_concrete_function(CLICKS[0]), policy_for(EMBEDDINGS, semantics="l2", sparse="all")
        )


def test_recommenders_under_fit():
    plain, decayed = recommender(), recommender(DecayedRecommender)
    data = tf.data.Dataset.from_tensors(CLICKS[0])
    histories = [model.fit(data, verbose=0).history for model in (plain, decayed)]
    assert histories[0] == histories[1]
    for first, second in zip(plain.trainable_variables, decayed.trainable_variables, strict=True):
        name = first.name.removesuffix(":0")
        if name in EMBEDDINGS:
            check_rows(CLICKS[0], name, first.numpy(), second.numpy())
        else:
            assert_bit_equal(first.numpy(), second.numpy(), name)


# --- TF-Agents --------------------------------------------------------------------------------------------------------

Q_KERNELS = {"QNetwork/EncodingNetwork/dense/kernel": 0.1, "QNetwork/dense_1/kernel": 0.2}


def dqn(period: int = 100) -> tuple[Any, Case]:
    """An agent with clipped gradients and a target network that follows in every so many runs."""
    tf_keras.backend.clear_session()  # numbers the layers anew
    tf_keras.utils.set_random_seed(3)
    observations = tensor_spec.TensorSpec([4], tf.float32, "observation")
    actions = tensor_spec.BoundedTensorSpec([], tf.int32, 0, 2, "action")
    agent = dqn_agent.DqnAgent(
        time_step.time_step_spec(observations),
        actions,
        q_network=q_network.QNetwork(observations, actions, fc_layer_params=(8,)),
        optimizer=tf_keras.optimizers.legacy.Adam(LEARNING_RATE),
        target_update_tau=0.25,
        target_update_period=period,
        gradient_clipping=1.0,
        td_errors_loss_fn=common.element_wise_huber_loss,
        train_step_counter=tf.Variable(0, dtype=tf.int64, trainable=False, name="train_step_counter"),
    )
    agent.initialize()
    random = np.random.default_rng(7)
    batches = []
    for seed in range(4):
        experience = tensor_spec.sample_spec_nest(agent.collect_data_spec, outer_dims=(6, 2), seed=seed)
        batches.append(
            (
                experience._replace(
                    observation=tf.constant(random.normal(size=(6, 2, 4)), tf.float32),
                    reward=tf.constant(random.normal(size=(6, 2)), tf.float32),
                    discount=tf.ones((6, 2)),
                    step_type=tf.ones((6, 2), tf.int32),
                    next_step_type=tf.ones((6, 2), tf.int32),
                ),
                None,  # no weights
            )
        )
    step = common.function(agent.train)
    before = [variable.numpy() for variable in agent.variables]
    step(*batches[0])  # makes the slot variables
    for variable, value in zip(agent.variables, before, strict=True):
        variable.assign(value)
    return agent, Case(step, batches, Q_KERNELS)


def test_agents():
    agent, case = dqn()
    networks = [*agent._q_network.trainable_variables, *agent._target_q_network.trainable_variables]
    check_lists(case, networks)
    check_lockstep(case)


def test_the_target_network_of_an_agent_follows_the_decayed_network():
    agent, case = dqn(period=1)
    rewritten = graphwd.rewrite(case.step.get_concrete_function(*case.batches[0]), policy_for(Q_KERNELS))
    for batch in case.batches:
        before = [variable.numpy() for variable in agent._target_q_network.variables]
        rewritten(*batch)
        pairs = zip(before, agent._q_network.variables, agent._target_q_network.variables, strict=True)
        for old, variable, target in pairs:
            expected = 0.75 * old.astype(np.float64) + 0.25 * variable.numpy()
            assert np.abs(target.numpy() - expected).max() <= 2 * np.spacing(np.abs(old).max())


@pytest.mark.parametrize("period", [1, 2])
def test_the_target_network_of_an_agent_is_not_decayed(period):
    _, case = dqn(period)
    plan = graphwd.plan(case.step, {"version": 1, "rules": [{"weight_decay": 0.1}]}, *case.batches[0])
    refused = {decision.variable.name for decision in plan.decisions if decision.outcome.value == "refused"}
    assert len(refused) == 4
    assert all(name.startswith("TargetQNetwork/") for name in refused)
    with pytest.raises(graphwd.PlanError, match="no write is seen to come from a gradient"):
        plan.check()


@pytest.mark.parametrize("check", [check_adamw, check_l2])
def test_agents_in_other_meanings(check):
    _, case = dqn()
    check(case, *([LEARNING_RATE] if check is check_adamw else []))


# --- GPflow -----------------------------------------------------------------------------------------------------------


def gaussian_process(natural: bool = False) -> tuple[Any, Case]:
    """A sparse variational Gaussian process in float64, with Adam; the posterior by natural gradients where asked."""
    random = np.random.default_rng(0)
    inputs = random.uniform(size=(20, 2))
    targets = np.sin(6 * inputs.sum(1, keepdims=True))
    model = gpflow.models.SVGP(
        gpflow.kernels.SquaredExponential(lengthscales=[0.3, 0.4]),
        gpflow.likelihoods.Gaussian(0.1),
        inputs[:5].copy(),
        num_data=20,
    )
    if natural:
        gpflow.set_trainable(model.q_mu, False)
        gpflow.set_trainable(model.q_sqrt, False)
    optimizer = tf_keras.optimizers.Adam(LEARNING_RATE)
    optimizer.build(model.trainable_variables)
    natural_gradient = gpflow.optimizers.NaturalGradient(0.1)

    @tf.function
    def step(data):
        loss = model.training_loss_closure(data, compile=False)
        if natural:
            natural_gradient.minimize(loss, [(model.q_mu, model.q_sqrt)])
        optimizer.minimize(loss, model.trainable_variables)
        return loss()

    batches = [(tuple(tf.constant(each[i : i + 10]) for each in (inputs, targets)),) for i in (0, 5, 10)]
    rates = {"softplus": 0.1, "chain_of_shift_of_softplus": 0.2}
    if not natural:
        rates |= {"fill_triangular": 0.01, "Variable": 0.05}
    return model, Case(step, batches, rates)


def check_gaussian_process(natural: bool) -> None:
    """As `check_lockstep`, but for the loss, which the step computes again after the update."""
    model, case = gaussian_process(natural)
    check_lists(case, model.trainable_variables)
    plain = case.step.get_concrete_function(*case.batches[0])
    rewritten = graphwd.rewrite(plain, policy_for(case.rates))
    variables = model.trainable_variables
    state = [*model.variables, *(v for v in plain.variables if all(v is not known for known in model.variables))]
    for batch in case.batches:
        before = [variable.numpy() for variable in state]
        plain(*batch)
        after = [variable.numpy() for variable in state]
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        loss = rewritten(*batch)
        assert_within_ulps(loss.numpy(), model.training_loss(batch[0]).numpy(), 64, "the loss of the decayed weights")
        for variable, undecayed in zip(state, after, strict=True):
            rate = case.rates.get(variable.name.removesuffix(":0"))
            if rate is None or not any(variable is each for each in variables):
                assert_bit_equal(undecayed, variable.numpy(), variable.name)
            else:
                assert_within_ulps(variable.numpy(), undecayed * (1 - rate), 1, variable.name)


@pytest.mark.parametrize("natural", [False, True], ids=["Adam", "natural gradients and Adam"])
def test_gaussian_processes(natural):
    check_gaussian_process(natural)


def test_the_bijectors_of_a_gaussian_process_are_refused_where_the_decay_is_coupled():
    """TensorFlow Probability's softplus has a custom gradient, which reads the weight as the forward pass did."""
    _, case = gaussian_process()
    plan = graphwd.plan(case.step, policy_for(case.rates, semantics="l2"), *case.batches[0])
    refused = {decision.variable.name for decision in plan.decisions if decision.outcome.value == "refused"}
    assert refused == {"softplus", "chain_of_shift_of_softplus"}
    with pytest.raises(graphwd.PlanError, match="made of the weight as the forward pass read it"):
        plan.check()


def test_gaussian_processes_in_adamw():
    _, case = gaussian_process()
    # The optimizer keeps its learning rate in float32.
    check_adamw(case, float(np.float32(LEARNING_RATE)), outputs=False)


# --- Model Garden -----------------------------------------------------------------------------------------------------

DENSE_KERNELS = {"hidden/kernel": 0.1, "out/kernel": 0.2}
NOT_DECAYED = ["bias", "gamma", "beta"]


class Regression(base_task.Task):
    """A task of Model Garden: one batch, again and again."""

    def build_model(self) -> Any:
        layers = tf_keras.layers
        return tf_keras.Sequential(
            [
                layers.Input((5,)),
                layers.Dense(4, activation="tanh", name="hidden"),
                layers.LayerNormalization(name="norm"),
                layers.Dense(3, name="out"),
            ]
        )

    def build_losses(self, labels: Any, model_outputs: Any, aux_losses: Any = None) -> Any:  # noqa: ARG002
        return tf.reduce_mean(tf.square(model_outputs - labels))

    def build_inputs(self, params: Any, input_context: Any = None) -> Any:  # noqa: ARG002
        random = np.random.default_rng(7)
        batch = random.normal(size=(6, 5)).astype(np.float32), random.normal(size=(6, 3)).astype(np.float32)
        return tf.data.Dataset.from_tensors(batch).repeat()

    def build_metrics(self, training: bool = True) -> Any:  # noqa: ARG002
        return [tf_keras.metrics.MeanSquaredError("mse")]


def trainer(weight_decay: float, kind: str = "adamw") -> Any:
    """Model Garden's trainer, whose optimizer is made by its factory from a configuration."""
    tf_keras.utils.set_random_seed(3)
    options = {"weight_decay_rate": weight_decay, "exclude_from_weight_decay": NOT_DECAYED} if kind == "adamw" else {}
    config = config_definitions.ExperimentConfig(
        task=config_definitions.TaskConfig(),
        trainer=config_definitions.TrainerConfig(
            optimizer_config=optimization.OptimizationConfig(
                {
                    "optimizer": {"type": kind, kind: options},
                    "learning_rate": {
                        "type": "polynomial",
                        "polynomial": {"initial_learning_rate": 0.01, "decay_steps": 100, "end_learning_rate": 0.001},
                    },
                    "warmup": {"type": "linear", "linear": {"warmup_steps": 4, "warmup_learning_rate": 0.001}},
                }
            )
        ),
    )
    task = Regression(config.task)
    model = task.build_model()
    optimizer = task.create_optimizer(config.trainer.optimizer_config)
    optimizer._create_all_weights(model.trainable_variables)
    return base_trainer.Trainer(config, task, model, optimizer, train=True, evaluate=False)


def trainer_case(made: Any, rates: Mapping[str, float]) -> Case:
    iterator = iter(made.train_dataset)
    return Case(made.create_train_loop_fn(), [(iterator, tf.constant(1))] * 4, rates)


def test_the_loop_of_a_trainer():
    made = trainer(0.0)
    case = trainer_case(made, DENSE_KERNELS)
    check_lists(case, made.model.trainable_variables)
    check_lockstep(case)


def test_the_roles_of_a_trainers_model():
    made = trainer(0.0)
    case = trainer_case(made, DENSE_KERNELS)
    plan = graphwd.plan(case.step, policy_for(DENSE_KERNELS), *case.batches[0])
    roles = {decision.variable.name: decision.purpose.role.value for decision in plan.decisions}
    assert roles == {
        "hidden/kernel": "kernel",
        "hidden/bias": "bias",
        "norm/gamma": "norm",
        "norm/beta": "norm",
        "out/kernel": "kernel",
        "out/bias": "bias",
    }


def test_the_decay_of_a_trainers_optimizer_is_a_double_decay():
    made = trainer(0.1)
    assert type(made.optimizer) is legacy_adamw.AdamWeightDecay
    case = trainer_case(made, DENSE_KERNELS)
    with pytest.raises(graphwd.PlanError, match=r"(?s)'hidden/kernel': the step already decays.*'out/kernel'"):
        graphwd.rewrite(case.step.get_concrete_function(*case.batches[0]), policy_for(DENSE_KERNELS))
    check_lockstep(case, double_decay="allow")
    # What it excludes from its decay is free.
    check_lockstep(trainer_case(made, {"hidden/bias": 0.1, "norm/gamma": 0.2, "norm/beta": 0.3, "out/bias": 0.4}))


def test_a_policy_in_place_of_the_decay_of_a_trainers_optimizer():
    """The learning rate, warm-up included, is that of the step; both products differ in how they are rounded."""
    native, plain, undecayed = trainer(0.1), trainer(0.0), trainer(0.0)
    rules = [{"regex": "|".join(NOT_DECAYED), "weight_decay": 0}, {"weight_decay": 0.1, "semantics": "adamw"}]
    policy = {"version": 1, "rules": rules}
    native.create_train_loop_fn()(iter(native.train_dataset), tf.constant(20))
    undecayed.create_train_loop_fn()(iter(undecayed.train_dataset), tf.constant(20))
    graphwd.rewrite(plain.create_train_loop_fn(), policy)(iter(plain.train_dataset), tf.constant(20))
    kernels = [made.model.trainable_variables[0].numpy() for made in (native, plain, undecayed)]
    apart = [
        ulps_of_elements(first.numpy(), second.numpy())
        for first, second in zip(native.model.trainable_variables, plain.model.trainable_variables, strict=True)
    ]
    assert max(apart) <= 64, apart
    assert ulps_of_elements(kernels[1], kernels[2]) > 1e4, "the decay does not show"


@pytest.mark.parametrize("check", [check_adamw, check_l2])
def test_a_trainer_in_other_meanings(check):
    made = trainer(0.0)
    case = trainer_case(made, DENSE_KERNELS)
    if check is check_l2:
        check_l2(case)
    else:
        learning_rates = [float(made.optimizer.learning_rate(run)) for run in range(len(case.batches))]
        assert len(set(learning_rates)) == len(learning_rates)
        check_adamw(case, learning_rates)

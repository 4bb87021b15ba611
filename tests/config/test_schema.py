"""What a configuration may say: types, ranges, names and targets, held to what builds the parts."""

import functools
import math
import shlex

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import quiet_import
from experiments.config.compose import CONF_DIR
from experiments.config.compose import compose as composed
from experiments.config.schema import GROUPS
from experiments.config.targets import instantiate
from experiments.errors import ExperimentError

with quiet_import():
    from experiments import train
    from experiments.training.build import build
    from experiments.training.runtime import start_runtime


@pytest.fixture(scope="module")
def images(digits):
    """A small data set of real digits: all that a build needs to know, once TensorFlow runs as in a run."""
    start_runtime(seed=0, threads=2, deterministic=True, precision="float32")
    cfg = composed(["data=npz", f"data.path={digits}", "data.limit=20"]).cfg
    return instantiate(cfg, "data")


@pytest.fixture
def refusal(images, tmp_path):
    """The message that refuses a run; `files` are options of the user's own."""

    def refuse(words, **files):
        for option, text in files.items():
            file = tmp_path / f"{option.replace('__', '/')}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        with pytest.raises(ExperimentError) as caught:
            build(composed(shlex.split(words), config_dir=str(tmp_path)).cfg, images)
        return str(caught.value)

    return refuse


# Our own builders: everything is checked

RATE = "it must be a number of at least 0 and below 1."
SIZES = "it must be a non-empty list, each entry a whole number of at least 1."
SIZE = "a whole number of at least 1"
ONE_PIXEL = "below one pixel. Use fewer or smaller pools and kernels, or padding: same."
OWN_BUILDERS = {
    "model.dropout=1.5": f"model.dropout=1.5 is refused: {RATE}",
    "model.dropout=nan": f"model.dropout=nan is refused: {RATE}",
    "model.conv_dropout=-inf": f"model.conv_dropout=-inf is refused: {RATE}",
    "model.dropout=high": f"model.dropout=high is refused: {RATE}",
    "model.filters=-1": f"model.filters=-1 is refused: {SIZES}",
    "model.filters=[]": f"model.filters=[] is refused: {SIZES}",
    "model.filters=[8,x]": f'model.filters=[8, "x"] is refused: {SIZES}',
    "model.dense_units=64": f"model.dense_units=64 is refused: it must be a list, each entry {SIZE}.",
    "model.kernel_size=0": f"model.kernel_size=0 is refused: it must be {SIZE} or a non-empty list, each entry {SIZE}.",
    "model.batch_norm=1": "model.batch_norm=1 is refused: it must be true or false.",
    "model.padding=smae": "model.padding=smae is refused. Did you mean same? Allowed: same, valid.",
    "model.activation=rleu": "model.activation=rleu: Keras has no such activation. Did you mean relu?",
    "model.pool_sizes=[2]": "model.pool_sizes=[2] has 1 entries and model.filters=[32, 64] has 2. "
    "Give model.pool_sizes one entry per block.",
    "model.filters=[8,8,8] model.pool_sizes=[4,4,4]": "model: layer block3_conv shrinks its input of 1 x 1 "
    f"{ONE_PIXEL}",
    "model.kernel_size=29": f"model: layer block1_conv shrinks its input of 28 x 28 {ONE_PIXEL}",
    "model=sequential model.layers=[]": "model.layers=[] is refused: it must be a non-empty list.",
    "schedule=cosine schedule.warmup_epochs=-1": "schedule.warmup_epochs=-1 is refused: "
    "it must be a number of at least 0.",
    "schedule=cosine schedule.warmup_epochs=inf": "schedule.warmup_epochs=inf is refused: "
    "it must be a number of at least 0.",
    "schedule=cosine schedule.final_fraction=2": "schedule.final_fraction=2 is refused: "
    "it must be a number of at least 0 and at most 1.",
    "schedule=step schedule.every_epochs=1.5": f"schedule.every_epochs=1.5 is refused: it must be {SIZE}.",
    "~model.dropout": "model.dropout is missing: experiments.models.convnet needs it.",
}


@pytest.mark.parametrize("words", OWN_BUILDERS)
def test_value_of_our_own_builders(refusal, words):
    assert refusal(words) == OWN_BUILDERS[words]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "data.limit=9",
            "data.limit=9 is fewer than the 10 classes. Give data.limit=10 or more, or null for all images.",
        ),
        (
            "data.validation_fraction=1",
            "data.validation_fraction=1 is refused: it must be a number above 0 and below 1.",
        ),
        ("data.limit=all", "data.limit=all is refused: it must be a whole number of at least 1 or null."),
        (
            "data=folder data.image_size=[28]",
            "data.image_size=[28] is refused: it must be a list of 2 entries, each entry a whole number of at least 1.",
        ),
        (
            "data=folder data.color_mode=gray",
            "data.color_mode=gray is refused. Did you mean grayscale? Allowed: grayscale, rgb.",
        ),
        ("data=npz data.path=''", "data.path= is refused: it must be a text or null."),
    ],
)
def test_value_of_the_data(words, message):
    cfg = composed(shlex.split(words)).cfg
    with pytest.raises(ExperimentError) as caught:
        instantiate(cfg, "data")
    assert str(caught.value) == message


# Classes of Keras: names, and what their constructors refuse

KERAS = {
    "optimizer.beta_1=abc": "optimizer.beta_1=abc is refused: it must be a number.",
    "optimizer=sgd optimizer.nesterov=abc": "optimizer.nesterov=abc is refused: it must be true or false.",
    "callbacks=[early_stopping] callbacks.early_stopping.patience=x": "callbacks.early_stopping.patience=x is refused: "
    "it must be a number.",
    "optimizer.clipnorm=abc": "optimizer.clipnorm=abc is refused: it must be a number above 0 or null.",
    "optimizer.gradient_accumulation_steps=1": "optimizer.gradient_accumulation_steps=1 is refused: "
    "it must be a whole number of at least 2 or null.",
    "optimizer.weight_decay=-1": "optimizer.weight_decay=-1 is refused: it must be a number of at least 0 or null.",
    "optimizer=sgd optimizer.momentum=-1": "optimizer: keras.optimizers.SGD refuses it: "
    "`momentum` must be a float between [0, 1].",
    "callbacks=[reduce_on_plateau] callbacks.reduce_on_plateau.factor=2": "callbacks.reduce_on_plateau: "
    "keras.callbacks.ReduceLROnPlateau refuses it: ReduceLROnPlateau does not support a factor >= 1.0. "
    "Received factor=2",
    "augment=shift_rotate augment.shift.fill_mode=nope": "augment.shift: keras.layers.RandomTranslation refuses it: "
    "Unknown `fill_mode` nope. Expected of one ('reflect', 'wrap', 'constant', 'nearest').",
    "optimizer._target_=keras.optimizers.Adm": "optimizer._target_=keras.optimizers.Adm: keras.optimizers has no Adm. "
    "Did you mean Adam? Allowed: Adadelta, Adafactor, Adagrad, Adam, AdamW, Adamax, Ftrl, Lamb, Lion, "
    "LossScaleOptimizer, MultiOptimizer, Muon, Nadam, Optimizer, OptimizerMap, RMSprop, SGD, ScheduleFreeAdamW.",
    "optimizer._target_=keras.optimizers.SGD": "optimizer.beta_1: keras.optimizers.SGD has no such argument. "
    "Allowed: clipnorm, clipvalue, ema_momentum, ema_overwrite_frequency, global_clipnorm, "
    "gradient_accumulation_steps, loss_scale_factor, momentum, name, nesterov, use_ema, weight_decay.",
    "model._target_=experiments.models.convnett": "model._target_=experiments.models.convnett: experiments.models has "
    "no convnett. Did you mean convnet? Allowed: backbone, convnet, rescaling, sequential, with_scaling.",
}


@pytest.mark.parametrize("words", KERAS)
def test_value_of_a_keras_class(refusal, words):
    assert refusal(words) == KERAS[words]


def layers(*lines):
    listed = "".join(f"  - {{_target_: {line}}}\n" for line in lines)
    return f"_target_: experiments.models.sequential\nlayers:\n{listed}classifier: true\n"


LAYERS = {
    ("keras.layers.Conv2D, fliters: 3, kernel_size: 3",): "model.layers[0].fliters: keras.layers.Conv2D has no such "
    "argument. Did you mean filters?",
    ("keras.layers.Flatten", "keras.layers.Dense"): "model.layers[1].units is missing: keras.layers.Dense needs it.",
    ("keras.layers.Flatten", "keras.layers.Dense, units: -1"): "model.layers[1]: keras.layers.Dense refuses it: "
    "Received an invalid value for `units`, expected a positive integer. Received: units=-1",
    ("keras.layers.Dense, units: 8, kernel_regularizer: {_target_: keras.regularizers.L2, l2: -3}",): "model.layers[0]."
    "kernel_regularizer: keras.regularizers.L2 refuses it: Invalid value for argument l2: expected a non-negative "
    "float.Received: l2=-3",
    ("keras.layers.Flaten",): "model.layers[0]._target_=keras.layers.Flaten: keras.layers has no Flaten. "
    "Did you mean Flatten?",
    ("keras.layers.Xyzzy",): "model.layers[0]._target_=keras.layers.Xyzzy: keras.layers has no Xyzzy.",
    (
        "keras.layers.Flatten",
        "keras.layers.Conv2D, filters: 3, kernel_size: 3",
    ): "model: layer conv2d does not accept inputs of shape "
    "(784,): Input 0 with name 'None' of layer 'conv2d' is incompatible with the layer: expected min_ndim=4, found "
    "ndim=2. Full shape received: (None, 784)",
    (
        "keras.layers.MaxPooling2D, pool_size: 29",
        "keras.layers.Flatten",
    ): f"model: layer max_pooling2d shrinks its input of 28 x 28 {ONE_PIXEL}",
    (
        "keras.layers.Flatten, input_shape: [28, 28, 1]",
    ): "model.layers[0].input_shape: keras.layers.Flatten has no such "
    "argument. The run knows the shape of the images: leave it out.",
    ("keras.layers.Dense, output_dim: 3, init: zeros",): "model.layers[0].output_dim: keras.layers.Dense has no such "
    "argument. Its name is units today.",
    ("keras.layers.LeakyReLU, alpha: 0.1",): "model.layers[0].alpha: keras.layers.LeakyReLU has no such argument. "
    "Its name is negative_slope today.",
    ("keras.layers.ReLU, alpha: 0.1",): "model.layers[0].alpha: keras.layers.ReLU has no such argument. "
    "Its name is negative_slope today.",
    ("keras.layers.Dropout, p: 0.1",): "model.layers[0].p: keras.layers.Dropout has no such argument. "
    "Its name is rate today.",
    ("keras.layers.Conv2D, nb_filter: 3, kernel_size: 3",): "model.layers[0].nb_filter: keras.layers.Conv2D has no "
    "such argument. Its name is filters today.",
    ("keras.layers.MaxPooling2D, border_mode: same",): "model.layers[0].border_mode: keras.layers.MaxPooling2D has no "
    "such argument. Its name is padding today.",
    ("keras.layers.CuDNNLSTM, units: 3",): "model.layers[0]._target_=keras.layers.CuDNNLSTM: keras.layers has no "
    "CuDNNLSTM. Keras has removed it; write LSTM.",
    (
        "keras.layers.MultiHeadAttention, num_heads: 1, key_dim: 1",
    ): "model: layer multi_head_attention does not accept inputs of shape (28, 28, 1): "
    "missing a required argument: 'value'",
}


@pytest.mark.parametrize("lines", LAYERS)
def test_list_of_layers(refusal, lines):
    assert refusal("model=mine", model__mine=layers(*lines)) == LAYERS[lines]


OWN_SCALING = {
    "keras.callbacks.TerminateOnNaN": "scale._target_=keras.callbacks.TerminateOnNaN: a keras Layer is needed here.",
    "keras.layers.Dense\nunits: 3": "scale: layer dense changes the shape of an image from (28, 28, 1) to (28, 28, 3).",
    "keras.layers.UnitNormalization\naxis: 7": "scale: layer unit_normalization does not accept images of shape "
    "(28, 28, 1): "
    "Invalid reduction dimension (7 for input with 4 dimension(s)",
    "keras.layers.Rescaling\nscale: abc": "scale: layer rescaling does not accept images of shape (28, 28, 1): "
    "Cast string to float is not supported",
}


@pytest.mark.parametrize("target", OWN_SCALING)
def test_scaling_that_does_not_work(refusal, target):
    assert refusal("scale=mine", scale__mine=f"_target_: {target}\n") == OWN_SCALING[target]


@pytest.mark.parametrize(
    ("group", "target", "kind"),
    [
        ("augment", "keras.callbacks.TerminateOnNaN", "Layer"),
        ("callbacks", "keras.layers.Flatten", "Callback"),
    ],
)
def test_part_of_another_kind(refusal, group, target, kind):
    message = refusal(f"{group}=mine", **{f"{group}__mine": f"x: {{_target_: {target}}}\n"})
    assert message == f"{group}.x._target_={target}: a keras {kind} is needed here."


FILES = {
    "filters: [3]\n": "model._target_ is missing: it must name a class or a function, as in keras.layers.Dense.",
    "- 3\n": "model._target_ is missing: it must name a class or a function, as in keras.layers.Dense.",
    "": "model._target_ is missing: it must name a class or a function, as in keras.layers.Dense.",
    "_target_: null\n": "model._target_=null is refused: it must name a class or a function, as in keras.layers.Dense.",
    "defaults: [conv2, _self_]\ndropuot: 0.3\n": "model.dropuot: experiments.models.convnet has no such argument. Did "
    "you mean dropout? Allowed: activation, batch_norm, conv_dropout, dense_units, dropout, filters, kernel_size, "
    "padding, pool_sizes.",
    "_target_: experiments.models.convnet\nfilters: [8]\n": "model.kernel_size is missing: "
    "experiments.models.convnet needs it.",
}


@pytest.mark.parametrize("text", FILES)
def test_own_model_file(refusal, text):
    assert refusal("model=mine", model__mine=text) == FILES[text]


def test_augmentation_is_a_mapping(refusal):
    listed = "- {_target_: keras.layers.RandomFlip}\n"
    assert refusal("augment=mine", augment__mine=listed) == "augment: it must be a mapping, with a name for each part."


# What a configuration may call


def not_allowed(what, target):
    return (
        f"{what} is refused: a configuration may not call it. It may call the public classes of keras.layers, "
        ".losses, .metrics, .optimizers, .callbacks, .regularizers, .initializers and .constraints that run no foreign "
        "code, the functions of experiments.augmentations, .data, .metrics, .models and .schedules, "
        "and what you trust yourself: "
        f"export EXPERIMENTS_ALLOW_TARGETS={target}"
    )


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "keras.src.utils.python_utils.func_load",
        "keras.models.load_model",
        "keras.utils.get_file",
        "keras.layers.Dense.from_config",
        "keras.layers.deserialize",
        "keras.layers.Lambda",
        "keras.layers.TFSMLayer",
        "keras.callbacks.ModelCheckpoint",
        "keras.callbacks.LambdaCallback",
        "experiments.train.run",
        "experiments.models._stack",
        "experiments.models.np.save",
        "experiments.data.os.system",
    ],
)
def test_refused_target(refusal, target):
    assert refusal("model=mine", model__mine=f"_target_: {target}\n") == not_allowed(f"model._target_={target}", target)


NAMES_OF_OLD_CODE = {
    "keras.regularizers.l2": "keras.regularizers.L2",
    "keras.regularizers.l1_l2": "keras.regularizers.L1L2",
    "tf.keras.regularizers.l2": "keras.regularizers.L2",
    "keras.initializers.glorot_uniform": "keras.initializers.GlorotUniform",
    "keras.initializers.he_normal": "keras.initializers.HeNormal",
    "keras.constraints.max_norm": "keras.constraints.MaxNorm",
    "keras.losses.categorical_crossentropy": "keras.losses.CategoricalCrossentropy",
    "keras.metrics.top_k_categorical_accuracy": "keras.metrics.TopKCategoricalAccuracy",
    "keras.optimizers.legacy.Adam": "keras.optimizers.Adam",
    "tensorflow.keras.optimizers.adam": "keras.optimizers.Adam",
    "tensorflow.keras.layers.Conv2D": "keras.layers.Conv2D",
    "keras.layers.convolutional.Conv2D": "keras.layers.Conv2D",
    "keras.layers.experimental.preprocessing.RandomFlip": "keras.layers.RandomFlip",
    "keras.layers.concatenate": "keras.layers.Concatenate",
    "keras.src.layers.core.dense.Dense": "keras.layers.Dense",
    "keras.Sequential": "experiments.models.sequential",
    "tf.keras.models.Sequential": "experiments.models.sequential",
}


@pytest.mark.parametrize("target", NAMES_OF_OLD_CODE)
def test_a_name_of_older_code_is_answered_with_the_class(refusal, target):
    message = refusal("model=mine", model__mine=f"_target_: {target}\n")
    assert message.startswith(f"model._target_={target} is refused") and message.endswith(
        f" Write {NAMES_OF_OLD_CODE[target]}."
    )


def test_every_alias_of_keras_is_answered_with_its_class(refusal):
    """What keras itself offers in lower case beside a class of the same module."""
    import keras

    from experiments.config.keras_names import class_meant_by

    for module in ("regularizers", "initializers", "constraints"):
        found = vars(getattr(keras, module))
        for name, value in found.items():
            if isinstance(value, type) and name[0].islower():
                assert getattr(keras, module).__dict__[class_meant_by(f"keras.{module}.{name}").split(".")[-1]] is value


@pytest.mark.parametrize("name", ["Input", "InputLayer"])
def test_an_input_is_refused(refusal, name):
    message = refusal("model=mine", model__mine=layers(f"keras.layers.{name}, shape: [28, 28, 1]"))
    assert message == (
        f"model.layers[0]._target_=keras.layers.{name} is refused: the input is added to every model, with the shape "
        "of the images. Leave it out."
    )


def test_an_activation_is_written_by_name(refusal):
    message = refusal(
        "model=mine", model__mine=layers("keras.layers.Dense, units: 3, activation: {_target_: keras.activations.relu}")
    )
    assert message.endswith("is refused. Activations are written by name: activation: relu")


def test_refused_target_inside_a_list_or_another_part(refusal, images):
    hidden = layers("keras.layers.Flatten", "keras.layers.Lambda, function: os.system")
    where = "model.layers[1]._target_=keras.layers.Lambda"
    assert refusal("model=mine", model__mine=hidden) == not_allowed(where, "keras.layers.Lambda")
    nested = layers("keras.layers.Dense, units: 3, kernel_initializer: {_target_: builtins.exec, source: x}")
    where = "model.layers[0].kernel_initializer._target_=builtins.exec"
    assert refusal("model=mine", model__mine=nested) == not_allowed(where, "builtins.exec")


@pytest.mark.parametrize("part", ["kernel_initializer", "activation"])
def test_serialised_class_inside_a_layer(refusal, part):
    hidden = layers(f"keras.layers.Dense, units: 3, {part}: {{class_name: Lambda, config: {{}}}}")
    assert refusal("model=mine", model__mine=hidden) == (
        f"model.layers[0].{part}.class_name=Lambda is refused. "
        "Name the class by _target_, as in {_target_: keras.regularizers.L2, l2: 0.01}."
    )


def test_nothing_is_imported_before_the_check(refusal, tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    expected = not_allowed("model._target_=my_nets.build", "my_nets.build")
    assert refusal("model=mine", model__mine="_target_: my_nets.build\n") == expected


OWN_NET = """
import keras

def build(*, input_shape, num_classes, width=4):
    layers = [keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(width)]
    return keras.Sequential([*layers, keras.layers.Dense(num_classes, "softmax")])

def broken(**arguments):
    raise RuntimeError("a bug of the user's own")
"""


@pytest.fixture
def own_net(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(OWN_NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "other, my_nets")
    monkeypatch.delitem(__import__("sys").modules, "my_nets", raising=False)
    (tmp_path / "model").mkdir()

    def compose(text):
        (tmp_path / "model" / "mine.yaml").write_text(text)
        return composed(["model=mine"], config_dir=str(tmp_path)).cfg

    return compose


def test_target_that_the_user_allows(own_net, images):
    net = build(own_net("_target_: my_nets.build\nwidth: 6\n"), images).model
    assert net.count_params() == 784 * 6 + 6 + 6 * 10 + 10


def test_allowing_more_keeps_what_was_allowed(own_net):
    with pytest.raises(ExperimentError) as caught:
        own_net("_target_: my_netsy.build\n")
    assert str(caught.value) == not_allowed("model._target_=my_netsy.build", "other,my_nets,my_netsy.build")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "_target_: my_nets.build\nwidht: 6\n",
            "model.widht: my_nets.build has no such argument. Did you mean width? Allowed: width.",
        ),
        ("_target_: my_nets.biuld\n", "model._target_=my_nets.biuld: my_nets has no biuld. Did you mean build?"),
        (
            "_target_: other.build\n",
            "model._target_=other.build: Python finds no module other. Put the folder that holds it on PYTHONPATH.",
        ),
    ],
)
def test_mistake_in_a_target_of_the_user(own_net, images, text, message):
    with pytest.raises(ExperimentError) as caught:
        build(own_net(text), images)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("text", ["_target_: my_nets.broken\n", layers("my_nets.broken")])
def test_bug_in_the_users_code_is_shown_as_it_is(own_net, images, text):
    with pytest.raises(RuntimeError, match="a bug of the user's own"):
        build(own_net(text), images)


# The record

NAMES_OF_THE_RECORD = {
    "+tracking.tags.variant=mine": "tracking.tags.variant: the run sets this tag itself. Choose another name.",
    "+tracking.tags={mlflow.source.name:x}": "tracking.tags.mlflow.source.name: the run sets this tag itself. "
    "Choose another name.",
}


@pytest.mark.parametrize("words", NAMES_OF_THE_RECORD)
def test_free_tag_with_a_name_of_the_record(store, words):
    with pytest.raises(ExperimentError) as caught:
        train.run(composed([words]))
    assert str(caught.value) == NAMES_OF_THE_RECORD[words]
    assert [experiment.name for experiment in store.search_experiments()] == ["Default"]
    assert store.search_runs(["0"]) == []


# Messages


def test_message_lists_what_is_allowed_unless_that_is_long():
    names = [f"name{number}" for number in range(10, 55)]
    few, many, all_names = names[:22], names[:23], ", ".join(names[:40])
    assert str(ExperimentError("No.", given="nam", allowed=few)).startswith("No. Did you mean name")
    assert str(ExperimentError("No.", given="name11", allowed=few)).endswith(f" Allowed: {', '.join(few)}.")
    assert str(ExperimentError("No.", given="name11", allowed=many)) == "No. Did you mean name11?"
    assert str(ExperimentError("No.", given="x", allowed=names[:40])) == f"No. Allowed: {all_names}."
    assert str(ExperimentError("No.", given="x", allowed=names, advice="Do this.")) == "No. Do this."


# Whatever is typed

NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, -0.5, math.nan, math.inf, -math.inf, 1e-320, 1e308]),
)
ATOMS = st.one_of(
    NUMBERS.map(str),
    st.sampled_from(["null", "true", "false", "abc", "''", "'[1]'", "relu", "same", "val_loss", "min", "adam", "???"]),
    st.sampled_from(["${epochs}", "${model.dropout}", "${nope}", "${nope:1}", "${model}", "é", "a b", "0x10", "1_0"]),
)
VALUES = st.one_of(
    ATOMS,
    st.lists(ATOMS, max_size=3).map(lambda values: f"[{','.join(values)}]"),
    ATOMS.map(lambda value: f"{{a:{value}}}"),
    st.text("[]{},=${}'\" :~+@/a1", max_size=5),
)
FILES_OF_OPTIONS = {
    f"{group}={file.stem}": file for group in GROUPS for file in sorted((CONF_DIR / group).glob("*.yaml"))
}


@functools.cache
def keys_of(option):
    """Every dotted key that a file of conf/ sets, and its value as it is typed."""
    file = FILES_OF_OPTIONS.get(option, CONF_DIR / "config.yaml")
    group = f"{option.partition('=')[0]}." if option in FILES_OF_OPTIONS else ""
    typed = {"None": "null", "True": "true", "False": "false"}
    flat = dict(leaves(yaml.safe_load(file.read_text()) or {}, group))
    return {key: typed.get(str(value), str(value)) for key, value in flat.items()}


def leaves(mapping, prefix):
    for name, value in mapping.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


@st.composite
def command_lines(draw):
    """Some options, right and wrong values for their keys and others, with every prefix that Hydra has."""
    words = draw(st.lists(st.sampled_from(sorted(FILES_OF_OPTIONS)), max_size=3))
    known = {}
    for option in ["config", *words, "model=conv2", "optimizer=adam", "scale=unit"]:
        known |= keys_of(option)
    others = [
        "model",
        "callbacks",
        "modle",
        "model.dropuot",
        "tracking.tags.a",
        "tracking.tags",
        "objective",
        "augment",
    ]
    for key in draw(st.lists(st.sampled_from([*known, *others]), min_size=1, max_size=3, unique=True)):
        prefix = draw(st.sampled_from(["", "", "", "", "", "", "+", "++", "~"]))
        value = draw(st.one_of(st.just(known.get(key, "null")), NUMBERS.map(str), VALUES))
        words = [*words, f"~{key}" if prefix == "~" else f"{prefix}{key}={value}"]
    return words


@pytest.mark.slow
@settings(max_examples=120, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(words=command_lines())
def test_any_command_line_is_built_or_refused_in_one_line(images, words):
    try:
        build(composed(words).cfg, images)
    except ExperimentError as error:
        assert str(error).isprintable(), words

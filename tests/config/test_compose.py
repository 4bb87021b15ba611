"""What words on a command line become: one configuration with an identity, or one message that says why not."""

import json
import shlex
from pathlib import Path

import pytest

from experiments.config.compose import CONF_DIR
from experiments.config.compose import compose as composed
from experiments.config.configuration import digest
from experiments.config.names import names
from experiments.config.overrides import quoted
from experiments.config.schema import GROUPS
from experiments.config.targets import typed
from experiments.errors import ExperimentError

ROOT = (
    "augment, batch_size, callbacks, class_weight, data, deterministic, dry_run, epochs, experiment, force, freeze, "
    "head_learning_rate, init_from, keep, loss, metrics, model, objective, optimizer, precision, resume, scale, "
    "schedule, seed, sweep, threads, tracking, unfreeze_at_epoch"
)
CONV2 = "activation, batch_norm, conv_dropout, dense_units, dropout, filters, kernel_size, padding, pool_sizes"
NO_OTHER = "Only free tags are added with +, as in +tracking.tags.idea=x."
BY_CLASS = "One without a YAML file is added by its class: +{0}.NAME._target_=keras.{0}.CLASS"
TERMINATE = "+callbacks.nan._target_=keras.callbacks.TerminateOnNaN"
PLATEAU = "+callbacks.plateau._target_=keras.callbacks.ReduceLROnPlateau"


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here builds a net."""


def options(group):
    return ", ".join(sorted(file.stem for file in (CONF_DIR / group).glob("*.yaml")))


def refusal(words, **where):
    with pytest.raises(ExperimentError) as caught:
        composed(shlex.split(words), **where)
    return str(caught.value)


UNKNOWN = {
    "modle=conv3": "modle: there is no such key. Did you mean model?",
    "+modle=conv3": f"modle: there is no such key. Did you mean model? {NO_OTHER}",
    "++epoch=3": f"epoch: there is no such key. Did you mean epochs? {NO_OTHER}",
    "xyz=3": f"xyz: there is no such key. Allowed: {ROOT}.",
    "learning_rate=0.1": f"learning_rate: there is no such key. Did you mean optimizer.learning_rate? Allowed: {ROOT}.",
    "callbacks=[early_stopping,reduce_on_plateau] patience=3": "patience: there is no such key. "
    f"Did you mean callbacks.reduce_on_plateau.patience? Allowed: {ROOT}.",
    "model.dropuot=0.3": f"model.dropuot: model=conv2 has no such key. Did you mean dropout? Allowed: {CONV2}.",
    "+model.dropuot=0.3": "model.dropuot: model=conv2 has no such key. Did you mean dropout? "
    f"Allowed: {CONV2}. {NO_OTHER}",
    "model=conv3 model.layers=[1]": f"model.layers: model=conv3 has no such key. Did you mean filters? "
    f"Allowed: {CONV2}.",
    "modle.dropout=0.3": "modle.dropout: there is no such key. Did you mean model.dropout?",
    "+callbacks.nan.patience=3": "callbacks.nan.patience: callbacks=[] has no such key. "
    f"{BY_CLASS.format('callbacks')}",
    f"{PLATEAU} callbacks.plateau.patince=3": "callbacks.plateau.patince: callbacks=[plateau] has no such key. "
    "Did you mean patience? "
    "Allowed: baseline, cooldown, factor, min_delta, min_lr, monitor, patience, verbose.",
    "data.path=x.npz": "data.path: data=mnist_5k has no such key. "
    "Allowed: duplicates, fold, folds, limit, split_seed, validation_fraction.",
    "schedule.factor=0.5": "schedule.factor: schedule=constant has no such key.",
    "callbacks.early_stopping.patience=2": "callbacks.early_stopping.patience: callbacks=[] has no such key.",
    "callbacks=[early_stopping] callbacks.early_stopping.patince=2": "callbacks.early_stopping.patince: "
    "callbacks=[early_stopping] has no such key. Did you mean patience? "
    "Allowed: baseline, min_delta, monitor, patience, restore_best_weights, start_from_epoch, verbose.",
    "optimizer=sgd optimizer.clipnrom=1": "optimizer.clipnrom: optimizer=sgd has no such key. Did you mean clipnorm? "
    "Allowed: clipnorm, clipvalue, ema_momentum, ema_overwrite_frequency, global_clipnorm, "
    "gradient_accumulation_steps, learning_rate, loss_scale_factor, momentum, nesterov, use_ema, weight_decay.",
    "optimizer.lr=0.1": "optimizer.lr: there is no such key. Its name is learning_rate today.",
    "optimizer.name=mine": "optimizer.name cannot be set. The run names its parts itself.",
    "loss.from_logits=true": "loss.from_logits cannot be set. Every model ends in a softmax, so it is false.",
    "callbacks=[early_stopping] callbacks.early_stopping.mode=max": "callbacks.early_stopping.mode cannot be set. "
    "It follows from monitor.",
    "+optimizer.clipnorm=1": "optimizer.clipnorm: no YAML file lists it. Set it by its own key: optimizer.clipnorm=…",
    "optimizer={clipnorm:1}": "optimizer.clipnorm: no YAML file lists it. Set it by its own key: optimizer.clipnorm=…",
    "model=sequential model.layers.0.stirdes=2": "model.layers.0.stirdes: model=sequential has no such key. "
    "Did you mean strides?",
    "optimizer.learning_rate.x=1": "optimizer.learning_rate.x: optimizer=adam has no such key.",
    "callbacks={early_stopping:{patience:3}}": "callbacks.early_stopping.patience: callbacks=[] has no such key.",
    "tracking.notes=x": "tracking.notes: there is no such key. Did you mean note? "
    "Allowed: experiment, model, note, store_timeout, system_metrics, tags.",
    "tracking.tags.idea=wider": "tracking.tags.idea: there is no such key. "
    "A free tag is added with +tracking.tags.idea=…",
    "tracking.tags={idea:wider}": "tracking.tags.idea: there is no such key. "
    "A free tag is added with +tracking.tags.idea=…",
    "~modle": "modle: there is no such key. Did you mean model?",
    "~data.limt": "data.limt: data=mnist_5k has no such key. Did you mean limit? "
    "Allowed: duplicates, fold, folds, limit, split_seed, validation_fraction.",
    "model@net=conv3": "model@net: there is no such key. Did you mean model?",
    "hydra.job.nmae=x": "hydra.job.nmae: there is no such key.",
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_unknown_key(words):
    assert refusal(words) == UNKNOWN[words]


UNKNOWN_OPTION = {
    "model=conv4": ("model", "model=conv4: there is no such option. Did you mean conv5?"),
    "optimizer=adm": ("optimizer", "optimizer=adm: there is no such option. Did you mean adam?"),
    "optimizer=conv3": ("optimizer", "optimizer=conv3: there is no such option."),
    "experiment=two_con": ("experiment", "experiment=two_con: there is no such option. Did you mean two_conv?"),
    "callbacks=[early_stoping]": (
        "callbacks",
        "callbacks=early_stoping: there is no such option. Did you mean early_stopping?",
    ),
    "schedule=": ("schedule", "schedule=: there is no such option."),
    "model=null": ("model", "model=null: model needs an option."),
    "model=[conv2,conv3]": ("model", "model=[conv2,conv3]: model needs an option."),
    "data=3": ("data", "data=3: data needs an option."),
    "~optimizer": ("optimizer", "~optimizer: optimizer needs an option."),
}


@pytest.mark.parametrize("words", UNKNOWN_OPTION)
def test_unknown_option(words):
    group, message = UNKNOWN_OPTION[words]
    by_class = f" {BY_CLASS.format(group)}" if group == "callbacks" else ""
    assert refusal(words) == f"{message} Allowed: {options(group)}.{by_class}"


NONE = {
    "metrics=null": "For none write metrics=[].",
    "callbacks=null": "For none write callbacks=[].",
    "~callbacks": "For none write callbacks=[].",
    "experiment=null": "For none leave it out.",
}


@pytest.mark.parametrize("words", NONE)
def test_no_option(words):
    group = words.strip("~").partition("=")[0]
    assert refusal(words) == f"{words}: {group} needs an option. Allowed: {options(group)}. {NONE[words]}"


COUNT = "it must be a whole number of at least 1."
VALUES = {
    "epochs=0": f"epochs=0 is refused: {COUNT}",
    "epochs=2.5": f"epochs=2.5 is refused: {COUNT}",
    "epochs=three": f"epochs=three is refused: {COUNT}",
    "epochs=true": f"epochs=true is refused: {COUNT}",
    "epochs=null": f"epochs=null is refused: {COUNT}",
    "epochs=[3]": f"epochs=[3] is refused: {COUNT}",
    "batch_size=-1": f"batch_size=-1 is refused: {COUNT}",
    "threads=0": f"threads=0 is refused: {COUNT}",
    "seed=-1": "seed=-1 is refused: it must be a whole number of at least 0 and below 4294967296.",
    "loss.label_smoothing=2": "loss.label_smoothing=2 is refused: it must be a number of at least 0 and below 1.",
    "loss.label_smoothing=nan": "loss.label_smoothing=nan is refused: it must be a number of at least 0 and below 1.",
    "optimizer.learning_rate=-0.1": "optimizer.learning_rate=-0.1 is refused: it must be a number above 0.",
    "optimizer.learning_rate=fast": "optimizer.learning_rate=fast is refused: it must be a number above 0.",
    "optimizer.learning_rate=inf": "optimizer.learning_rate=inf is refused: it must be a number above 0.",
    "deterministic=1": "deterministic=1 is refused: it must be true or false.",
    "precision=float16": "precision=float16 is refused. Did you mean float32? "
    "Allowed: float32, mixed_bfloat16, mixed_float16.",
    "class_weight=balnced": "class_weight=balnced is refused. Did you mean balanced? Allowed: balanced, none.",
    "class_weight=3": "class_weight=3 is refused: it must be none, balanced, or a mapping of classes to weights.",
    "class_weight={0:-1}": "class_weight.0=-1 is refused: it must be a number of at least 0.",
    "objective=f1": "objective=f1 is refused. Allowed: val_accuracy, val_loss. Choose others with metrics; "
    "a number that a callback leaves in the logs cannot choose the best epoch.",
    "objective=accuracy": "objective=accuracy is refused. Did you mean val_accuracy? Allowed: val_accuracy, val_loss.",
    "objective={metrik:val_loss}": 'objective={"metrik": "val_loss"} is refused: it must be a text.',
    "tracking.model=3": "tracking.model=3 is refused: it must be true or false.",
    "tracking.note=[1]": "tracking.note=[1] is refused: it must be a text, a number, true or false or null.",
    "+tracking.tags.a.b=1": 'tracking.tags={"a": {"b": 1}} is refused: it must be a mapping of names to plain values.',
    "tracking.tags=[1]": "tracking.tags=[1] is refused: Cannot merge a mapping with a list.",
    "model.filters={a:1}": "model.filters={a:1} is refused: Cannot merge a mapping with a list.",
    "~epochs": f"epochs is missing: {COUNT}",
    "~optimizer.learning_rate": "optimizer.learning_rate is missing: it must be a number above 0.",
    "~objective": "objective is missing: it must be a text.",
    "++objective=3": "objective=3 is refused: it must be a text.",
    "~data.limit": "~data.limit: data.limit cannot be left out.",
}


@pytest.mark.parametrize("words", VALUES)
def test_refused_value(words):
    assert refusal(words) == VALUES[words]


CALLBACKS = {
    "callbacks=[early_stopping] callbacks.early_stopping.monitor=val_acc": "callbacks.early_stopping.monitor=val_acc: "
    "no epoch measures it. Did you mean val_accuracy? Allowed: accuracy, loss, val_accuracy, val_loss.",
    "callbacks=[reduce_on_plateau] schedule=cosine": "callbacks.reduce_on_plateau sets the learning rate, and so does "
    "schedule=cosine. Take schedule=constant or leave reduce_on_plateau out of callbacks.",
    "callbacks=[early_stopping] keep=last": "keep=last would keep the weights of the epoch in which "
    "callbacks.early_stopping ends the run, its patience after the best. "
    "Take keep=best, or leave early_stopping out of callbacks.",
}


@pytest.mark.parametrize("words", CALLBACKS)
def test_refused_callback(words):
    assert refusal(words) == CALLBACKS[words]


def test_callbacks_and_metrics_are_added_by_their_class():
    words = [TERMINATE, PLATEAU, "callbacks.plateau.patience=2", "+callbacks.plateau.monitor=val_f1"]
    words += ["+metrics.f1={_target_:keras.metrics.F1Score,average:macro}", "objective=val_f1"]
    chosen = composed(words)
    assert chosen.choices["callbacks"] == "[nan,plateau]" and chosen.choices["metrics"] == "[f1]"
    assert chosen.cfg.callbacks.plateau == {
        "_target_": "keras.callbacks.ReduceLROnPlateau", "patience": 2, "monitor": "val_f1"
    }  # fmt: skip
    both = composed(["callbacks=[early_stopping]", TERMINATE])
    assert both.choices["callbacks"] == "[early_stopping,nan]"
    assert refusal("+callbacks.log._target_=keras.callbacks.CSVLogger").startswith(
        "callbacks.log._target_=keras.callbacks.CSVLogger is refused: a configuration may not call it."
    )


NOT_OVERRIDES = "Write key=value; quote a value with special characters."
GRAMMAR = {
    "epochs": f"epochs: this is no override. {NOT_OVERRIDES}",
    "=3": f"=3: this is no override. {NOT_OVERRIDES}",
    "epochs==3": f"epochs==3: this is no override. {NOT_OVERRIDES}",
    "seed=1 model.filters=[8,16": f"model.filters=[8,16: this is no override. {NOT_OVERRIDES}",
    "+epochs=3": "+epochs=3: epochs is there already. Write it without +: epochs=3",
    "+model.dropout=0.3": "+model.dropout=0.3: model.dropout is there already. Write it without +: model.dropout=0.3",
    "+model=conv3": "+model=conv3: model is there already. Write it without +: model=conv3",
    "++model=conv3": "++model=conv3: model is there already. Write it without +: model=conv3",
    "model=conv3 seed=1,2 epochs=3": "seed=1,2: this is a sweep of several runs. "
    "Start it with: experiments train -m model=conv3 seed=1,2 epochs=3",
    "seed=range(3)": "seed=range(3): this is a sweep of several runs. "
    "Start it with: experiments train -m 'seed=range(3)'",
    "'model.dropout=${epochz}'": "model.dropout: Interpolation key 'epochz' not found. Did you mean epochs?",
    "'model.dropout=${nope:3}'": "model.dropout: Unsupported interpolation type nope.",
    "'epochs=${oc.env:NOT_SET_ANYWHERE}'": "epochs: \"Environment variable 'NOT_SET_ANYWHERE' not found\".",
    "model.dropout=???": "model.dropout: Missing mandatory value: dropout.",
    "hydra/sweeper=gird": "hydra/sweeper=gird: there is no such option. Did you mean grid? "
    "Allowed: basic, grid, optuna, race.",
    "+hydra.callbacks.x._target_=os.system": "hydra.callbacks.x._target_=os.system is refused. "
    "Under hydra only hydra.* and hydra_plugins.* may stand.",
    "hydra.sweeper._target_=os.system": "hydra.sweeper._target_=os.system is refused. "
    "Under hydra only hydra.* and hydra_plugins.* may stand.",
}


@pytest.mark.parametrize("words", GRAMMAR)
def test_refused_override(words):
    assert refusal(words) == GRAMMAR[words]


# Options of the user's own


@pytest.fixture
def own(tmp_path):
    """Writes options of a user's own into a folder whose name needs quoting, and composes with it."""
    folder = tmp_path / "my options, old"

    def compose(words, **files):
        for option, text in files.items():
            file = folder / f"{option.replace('__', '/')}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return composed(shlex.split(words), config_dir=str(folder))

    compose.folder = folder
    return compose


def own_refusal(own, words, **files):
    with pytest.raises(ExperimentError) as caught:
        own(words, **files)
    return str(caught.value)


def test_own_options_stand_beside_ours(own):
    mine = own("model=mine epochs=2", model__mine="defaults: [conv3, _self_]\nfilters: [4, 8, 16]\n")
    assert mine.cfg.model.filters == [4, 8, 16]
    assert mine.cfg.model.pool_sizes == [2, 2, 1]
    assert (names(mine).variant, names(mine).run) == ("mine epochs=2", "mine epochs=2 seed=0")
    assert mine.config_dir == str(own.folder)


def test_config_dir_that_does_not_exist():
    assert refusal("epochs=1", config_dir="/no/such") == "--config-dir /no/such: there is no such folder."


def test_nearest_option_may_be_an_own_one(own):
    assert own_refusal(own, "scale=halv", scale__half="_target_: keras.layers.Rescaling\nscale: 0.5\n") == (
        "scale=halv: there is no such option. Did you mean half? "
        "Allowed: half, l2_columns, none, standard, unit, unit_twice."
    )


GLOBAL = "# @package _global_\n"
OWN = {
    "epoch: 3\n": "epoch: there is no such key. Did you mean epochs?",
    "tracking:\n  notes: x\n": "tracking.notes: there is no such key. Did you mean note? "
    "Allowed: experiment, model, note, store_timeout, system_metrics, tags.",
    "defaults:\n  - override /scale: unti\n": f"scale=unti: there is no such option. Did you mean unit? "
    f"Allowed: {options('scale')}.",
    "callbacks:\n  mine: 3\n": "callbacks.mine._target_ is missing: it must name a class or a function, "
    "as in keras.layers.Dense.",
    "augment: [1]\n": "In 'experiment/mine': Cannot merge a mapping with a list.",
    "model: 3\n": "model._target_ is missing: it must name a class or a function, as in keras.layers.Dense.",
    "hydra:\n  callbacks:\n    x: {_target_: os.system}\n": "hydra.callbacks.x._target_=os.system is refused. "
    "Under hydra only hydra.* and hydra_plugins.* may stand.",
}


@pytest.mark.parametrize("text", OWN)
def test_refused_experiment_file(own, text):
    assert own_refusal(own, "experiment=mine", experiment__mine=GLOBAL + text) == OWN[text]


def test_experiment_file_without_its_first_line(own):
    assert own_refusal(own, "experiment=mine", experiment__mine="epochs: 3\n") == (
        f"experiment: there is no such key. Allowed: {ROOT.replace('experiment, ', '')}. "
        "A file in experiment/ begins with the line: # @package _global_"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1\nb: 2\n", "line 2: expected ',' or ']', but got ':'."),
        ("a:\n\tb: 2\n", "line 2: found character '\\t' that cannot start any token."),
    ],
)
def test_broken_yaml(own, text, problem):
    assert own_refusal(own, "model=mine", model__mine=text) == f"{own.folder}/model/mine.yaml, {problem}"


# What a configuration is called


def test_choices():
    chosen = composed(["callbacks=[reduce_on_plateau,early_stopping]", "experiment=two_conv"])
    assert chosen.choices == {
        "data": "mnist",
        "scale": "unit",
        "augment": "none",
        "model": "conv2",
        "loss": "categorical_crossentropy",
        "optimizer": "adam",
        "schedule": "constant",
        "callbacks": "[early_stopping,reduce_on_plateau]",
        "metrics": "[]",
    }
    assert chosen.experiment == "two_conv"
    assert composed([]).choices["callbacks"] == composed([]).choices["metrics"] == "[]"
    assert composed(["metrics=[top_3_accuracy,auc]"]).choices["metrics"] == "[auc,top_3_accuracy]"
    assert composed([]).experiment is None


DEFAULT_PARAMETERS = {
    "data": "mnist_5k",
    "scale": "unit",
    "augment": "none",
    "model": "conv2",
    "loss": "categorical_crossentropy",
    "optimizer": "adam",
    "schedule": "constant",
    "callbacks": "[]",
    "metrics": "[]",
    "epochs": "5",
    "batch_size": "32",
    "precision": "float32",
    "seed": "0",
    "threads": "2",
    "deterministic": "true",
    "init_from": "null",
    "freeze": "[]",
    "unfreeze_at_epoch": "null",
    "head_learning_rate": "null",
    "class_weight": "none",
    "objective": "val_accuracy",
    "keep": "best",
    "data._target_": "experiments.data.mnist_5k",
    "data.validation_fraction": "0.1111",
    "data.split_seed": "0",
    "data.folds": "null",
    "data.fold": "null",
    "data.duplicates": "warn",
    "data.limit": "null",
    "scale._target_": "keras.layers.Rescaling",
    "scale.scale": "0.00392156862745098",
    "model._target_": "experiments.models.convnet",
    "model.filters": "[32, 64]",
    "model.kernel_size": "3",
    "model.pool_sizes": "[2, 2]",
    "model.batch_norm": "false",
    "model.conv_dropout": "0.0",
    "model.dense_units": "[64]",
    "model.dropout": "0.0",
    "model.activation": "relu",
    "model.padding": "valid",
    "loss._target_": "keras.losses.CategoricalCrossentropy",
    "loss.label_smoothing": "0.0",
    "optimizer._target_": "keras.optimizers.Adam",
    "optimizer.learning_rate": "0.001",
    "optimizer.beta_1": "0.9",
    "optimizer.beta_2": "0.999",
    "schedule._target_": "experiments.schedules.constant",
}


NOT_LISTED = {
    "optimizer.clipnorm=1": ("optimizer.clipnorm", 1.0),
    "optimizer.weight_decay=0.004": ("optimizer.weight_decay", 0.004),
    "optimizer=sgd optimizer.gradient_accumulation_steps=4": ("optimizer.gradient_accumulation_steps", 4),
    "++optimizer.use_ema=true": ("optimizer.use_ema", True),
    "optimizer.clipnorm=null": ("optimizer.clipnorm", None),
    "callbacks=[early_stopping] callbacks.early_stopping.start_from_epoch=3": (
        "callbacks.early_stopping.start_from_epoch",
        3,
    ),
    "metrics=[auc] metrics.auc.num_thresholds=50": ("metrics.auc.num_thresholds", 50),
    "loss=focal loss.axis=-1": ("loss.axis", -1),
    "augment=shift_rotate augment.rotate.seed=3": ("augment.rotate.seed", 3),
    "scale.offset=0.5": ("scale.offset", 0.5),
}


@pytest.mark.parametrize("words", NOT_LISTED)
def test_an_argument_of_keras_is_a_key_also_if_no_file_lists_it(words):
    key, value = NOT_LISTED[words]
    chosen = composed(shlex.split(words))
    assert chosen.value(key) == value
    assert typed(chosen).parameters[key] == json.dumps(value)
    without = composed([word for word in shlex.split(words) if key not in word])
    assert key not in without.parameters and chosen.variant != without.variant
    assert shlex.split(chosen.command)[2:] == [word.lstrip("+") for word in shlex.split(words)]


def test_weights_of_classes_are_one_value_to_compare_runs_by():
    chosen = typed(composed(["class_weight={0:5,cat:0.5}"]))
    assert chosen.parameters["class_weight"] == '{"0": 5.0, "cat": 0.5}'
    assert len({composed([f"class_weight={value}"]).variant for value in ("none", "balanced", "{0:5}", "{0:6}")}) == 4


def test_an_argument_of_a_layer_in_a_list_is_a_key():
    chosen = composed(["model=sequential", "model.layers.0.strides=2", "model.layers.0.name=first"])
    assert chosen.cfg.model.layers[0].strides == 2 and chosen.cfg.model.layers[0].name == "first"


def test_parameters_of_the_default_run():
    assert composed([]).parameters == DEFAULT_PARAMETERS


def test_parameters_hold_no_path_and_nothing_of_the_tracking():
    chosen = composed(["data=npz", "data.path=/home/me/digits.npz", "tracking.note=secret", "+tracking.tags.a=b"])
    assert set(chosen.parameters) == {*DEFAULT_PARAMETERS, "data.test_fraction"}


@pytest.mark.parametrize("zero", ["0", "0.0", ".0", "0e0"])
def test_a_value_is_recorded_in_one_spelling(zero):
    floats = ("loss.label_smoothing", "model.dropout", "optimizer.weight_decay")
    chosen = composed(["optimizer=adamw", *(f"{key}={zero}" for key in floats), "model.batch_norm=False"])
    parameters = typed(chosen).parameters
    assert [parameters[key] for key in floats] == ["0.0"] * 3
    assert parameters["model.batch_norm"] == "false" and parameters["batch_size"] == "32"
    assert typed(chosen).variant == chosen.variant


def test_a_number_and_its_text_have_different_digests():
    assert digest(0.1) != digest("0.1") and digest(1e-05) != digest("1e-05")
    assert digest([0, {"a": 2}]) == digest([0.0, {"a": 2.0}])


# Identity

SAME_VARIANT = [
    "seed=7",
    "data.path=/another/place.npz",
    "tracking.experiment=other",
    "tracking.note='a word'",
    "tracking.model=false",
    "+tracking.tags.idea=wider",
    "hydra.job.name=other",
    "model=conv2",
    "model.dropout=0.0",
    "++epochs=5",
]


@pytest.mark.parametrize("words", SAME_VARIANT)
def test_variant_is_the_same(words):
    assert composed(["data=npz", words]).variant == composed(["data=npz"]).variant


def test_variant_does_not_depend_on_the_path_of_test_images_or_the_order_of_callbacks():
    folder = composed(["data=folder", "data.path=a", "data.test_path=b", "callbacks=[early_stopping]"])
    other = composed(["data=folder", "data.path=c", "data.test_path=d", "callbacks=[early_stopping]"])
    assert folder.variant == other.variant
    orders = ["callbacks=[early_stopping,reduce_on_plateau]", "callbacks=[reduce_on_plateau,early_stopping]"]
    assert len({composed([order]).variant for order in orders}) == 1


def another(key, value):
    """A value unlike `value` that passes every check of a configuration that is not built."""
    special = {
        "precision": "mixed_float16",
        "init_from": "3f2a9c1e",
        "freeze": ["dense1"],
        "unfreeze_at_epoch": 2,
        "head_learning_rate": 0.1,
        "objective": "val_loss",
        "class_weight": "balanced",
        "keep": "last",
        "loss._target_": "keras.losses.Dice",
        "data._target_": "experiments.data.npz",
        "scale._target_": "keras.layers.UnitNormalization",
        "model._target_": "experiments.models.sequential",
        "optimizer._target_": "keras.optimizers.SGD",
        "schedule._target_": "experiments.schedules.step",
        "data.limit": 100,
        "data.folds": 5,
    }
    if key in special:
        changed = special[key]
    elif isinstance(value, bool):
        changed = not value
    elif isinstance(value, list):
        changed = [*value, 5]
    else:
        changed = f"{value}x" if isinstance(value, str) else value + (1 if isinstance(value, int) else 0.01)
    return [f"{key}={json.dumps(changed)}"]


def test_every_hyperparameter_changes_the_variant():
    default = composed([])
    replicates = ("seed", "data.split_seed", "data.fold")
    keys = [key for key in default.parameters if key not in (*GROUPS, *replicates)]
    assert len(keys) == 36
    variants = {key: composed(another(key, value_of(default, key))).variant for key in keys}
    variants |= {option: composed([option]).variant for option in ("augment=mixup", "callbacks=[early_stopping]")}
    assert len({default.variant, *variants.values()}) == 1 + len(variants) == 39


def value_of(configuration, key):
    value = configuration.identity
    for part in key.split("."):
        value = value[part]
    return value


def test_runs_that_differ_in_seed_split_or_fold_are_replicates_of_one_variant():
    folds = "data.folds=5"
    replicates = [composed([folds, "data.fold=0"]), composed([folds, "data.fold=1"])]
    replicates += [composed([folds, "data.fold=0", "data.split_seed=1"]), composed([folds, "data.fold=0", "seed=1"])]
    assert len({replicate.variant for replicate in replicates}) == 1
    assert len({replicate.fingerprint("data", "code") for replicate in replicates}) == 4
    assert replicates[1].replicate == {"seed": 0, "data.split_seed": 0, "data.fold": 1}
    assert composed(["data.folds=4", "data.fold=0"]).variant != replicates[0].variant


def test_fingerprint_is_of_variant_seed_data_and_code():
    base = composed([])
    fingerprints = [
        base.fingerprint("data", "code"),
        base.fingerprint("other data", "code"),
        base.fingerprint("data", "other code"),
        composed(["seed=1"]).fingerprint("data", "code"),
        composed(["epochs=1"]).fingerprint("data", "code"),
    ]
    assert len(set(fingerprints)) == 5
    assert composed(["tracking.note=x", "+tracking.tags.a=b"]).fingerprint("data", "code") == fingerprints[0]
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in [base.variant, *fingerprints])


def test_options_of_the_checkout_are_used():
    assert Path(__file__).resolve().parents[2] / "conf" == CONF_DIR


@pytest.mark.parametrize(
    "name", ["müller", "a b", "100%20", "#1?", "a&b+c", "$x", "(x)[y]{z}", "it's", '"q"', "~t", "a=b,c:d", "日本"]
)
def test_folders_of_options_and_data_may_have_any_name(tmp_path, name):
    folder = tmp_path / name / "model"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# mine\ndefaults: [conv2, _self_]\ndropout: 0.3\n")
    path = str(tmp_path / name / "digits.npz")
    chosen = composed(["model=mine", "data=npz", f"data.path={quoted(path)}"], config_dir=str(tmp_path / name))
    assert (chosen.cfg.model.dropout, chosen.paths["path"]) == (0.3, path)


@pytest.mark.parametrize("words", [["hydra.job.chdir=true"], ["hydra.job.chdir=true", "data=npz", "data.path=a.npz"]])
def test_another_working_directory_is_refused(words):
    with pytest.raises(ExperimentError, match=r"^hydra\.job\.chdir=true: a run writes no files .* Leave it out\.$"):
        composed(words)

"""The config: what is read, what is refused, and in which words."""

import dataclasses
import json

import pytest
from config_files import FILES
from hypothesis import given
from hypothesis import strategies as st

from vit_jax import config, fields, sections
from vit_jax.errors import UserError


def parse(*assignments):
    tree = config.default()
    tree.train.steps = 10
    for assignment in assignments:
        config.override(tree, assignment)
    return config.parse(tree)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.lrr=1", "config has no field optim.lrr: did you mean optim.lr?"),
        ("lr=1", "config has no field lr: did you mean optim.lr?"),
        ("model.scan=true", "config has no field model.scan: did you mean train.scan?"),
        ("zzz=1", "config has no field zzz: vit_jax train --help lists them all"),
        ("optim.lr", "optim.lr: no value given: write optim.lr=VALUE"),
        ("optim.lr=fast", "optim.lr='fast' is not a number"),
        ("optim.lr=-1", "optim.lr=-1.0 must be above 0"),
        ("optim.lr=nan", "optim.lr=nan is not a number"),
        ("optim.lr=", "optim.lr= is a number: give a value"),
        ("optim.trained=(", "optim.trained=( is not a regular expression"),
        ("model.depth=2.5", "model.depth=2.5 is not a whole number"),
        ("model.class_token=yes", "model.class_token='yes' is not true or false"),
        ("model.pooling=max", "model.pooling='max' is not one of token, gap, map"),
        (
            "model.image_size=225",
            "model.image_size=225 is not a multiple of model.patch_size=16: use 224 or 240",
        ),
        ("model.heads=5", "model.heads=5 does not divide model.width=192: use 4 heads"),
        ("model.class_token=false", "model.pooling=token needs model.class_token=True"),
        ("model.dropout=1", "model.dropout=1.0 is not in [0, 1)"),
        ("data.mean=0.5,0.5", "data.mean=(0.5, 0.5) has neither 1 nor data.channels=3 values"),
        ("data.name=folder", "data.name=folder needs data.dir"),
        ("data.cache_gib=-1", "data.cache_gib=-1.0 must be at least 0"),
        ("train.epochs=3", "set one of train.steps=10 and train.epochs=3.0 and leave the other 0"),
        ("train.steps=-5", "train.steps=-5 must be at least 0"),
        ("train.batch_size=0", "train.batch_size=0 must be at least 1"),
    ],
)
def test_bad_values_are_refused_in_one_clear_line(assignment, message):
    with pytest.raises(UserError) as e:
        parse(assignment)
    assert str(e.value).startswith(message)
    assert "\n" not in str(e.value)


def test_loader_processes_share_no_cache():
    with pytest.raises(
        UserError, match=r"data.cache_gib=0.5 is for the threads of one .*: set data.workers=0"
    ):
        parse("data.cache_gib=0.5", "data.workers=2")


def test_overrides_are_read_as_the_fields_type():
    cfg = parse("model.image_size=224,192", "optim.lr=1", "data.mean=0.4,0.5,0.6", "data.flip=False")
    assert cfg.model.image_hw == (224, 192)
    assert cfg.model.grid_hw == (14, 12)
    assert type(cfg.optim.lr) is float
    assert cfg.data.mean == (0.4, 0.5, 0.6)
    assert cfg.data.flip is False


@given(st.floats(1e-8, 10), st.integers(1, 50), st.booleans(), st.sampled_from(["gap", "map"]))
def test_a_config_survives_json(lr, depth, class_token, pooling):
    cfg = parse(
        f"optim.lr={lr!r}",
        f"model.depth={depth}",
        f"model.class_token={class_token}",
        f"model.pooling={pooling}",
    )
    assert config.parse(json.loads(json.dumps(config.to_dict(cfg)))) == cfg


def test_differences_name_the_changed_fields():
    assert config.differences(parse(), parse("optim.lr=2", "seed=3")) == [
        "seed: 0 -> 3",
        "optim.lr: 0.001 -> 2.0",
    ]


def test_every_field_is_listed_with_its_meaning():
    text = fields.describe(sections.Config)
    for name, field in fields.leaves(sections.Config).items():
        assert f"--config.{name}=" in text
        assert len(field.metadata["meaning"]) > 5


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_config_file_names_the_command_that_runs_it(path):
    assert f"--config {path}" in path.read_text()


def test_a_config_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"no config file at configs/vit_b17.py"):
        config.load_file("configs/vit_b17.py:finetune")


def test_a_config_file_that_is_no_python_is_named():
    with pytest.raises(UserError, match=r"README.md is no Python file"):
        config.load_file("README.md")


def test_a_recipe_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"no recipe 'fintune': use train or finetune"):
        config.load_file("configs/vit_b16.py:fintune")


def test_data_arguments_replace_fields_of_a_runs_data():
    data = config.override_data(sections.Data(), ["--data.name=cifar10", "--data.channels=1"])
    assert (data.name, data.channels) == ("cifar10", 1)
    with pytest.raises(UserError, match=r"did you mean data.name"):
        config.override_data(sections.Data(), ["--data.nam=cifar10"])


def test_what_older_runs_stored_is_read_from_where_it_was():
    cfg = parse("train.scan=true", "train.remat=full")
    old = config.to_dict(cfg)
    old["model"] |= {name: old["train"].pop(name) for name in ("scan", "remat")}
    assert config.parse_stored(old) == cfg
    assert config.parse_stored(config.to_dict(cfg)) == cfg
    spec = sections.Spec(model=cfg.model, class_names=("a", "b"))
    stored = config.to_dict(spec)
    stored["model"] |= {"scan": True, "remat": "full"}
    assert config.parse_spec(stored) == spec


def test_a_config_file_of_before_is_refused_and_the_new_place_named(tmp_path):
    lines = ("from vit_jax import config", "def get_config(arg=''):", "    c = config.default()")
    body = ("    c.train.steps = 1", "    c.model.scan = True", "    return c")
    (tmp_path / "old.py").write_text("\n".join([*lines, *body]))
    with pytest.raises(UserError) as e:
        config.from_command_line(str(tmp_path / "old.py"), ["--config.train.scan=false"])
    assert str(e.value) == "config has no field model.scan: did you mean train.scan?"


BOUNDED = {name: f for name, f in fields.leaves(sections.Config).items() if f.metadata["bounds"]}
STEP = 1e-6  # a float as good as at its bound


def replaced(name, value):
    """The section of a field, with the field at `value`."""
    cfg = parse()
    section, _, leaf = name.rpartition(".")
    return dataclasses.replace(getattr(cfg, section) if section else cfg, **{leaf: value})


def refusal(name, value):
    """In which words a value is refused; none if it is not."""
    try:
        replaced(name, value)
    except UserError as e:
        return str(e)
    return ""


def around(name, bound, outwards, *, included):
    """(a value that the bound lets through, one that it does not), of the field's own type."""
    f = BOUNDED[name]
    whole = f.type in (int, int | tuple[int, int], tuple[int, ...])
    step = outwards * (1 if whole else STEP)
    pair = (bound, bound + step) if included else (bound - step, bound)
    return [type(f.default)([v]) if isinstance(f.default, tuple) else v for v in pair]


@pytest.mark.parametrize("name", BOUNDED)
def test_every_bound_of_a_field_holds_at_both_sides(name):
    bounds = BOUNDED[name].metadata["bounds"]
    sides = [
        (bounds.least, -1, True),
        (bounds.above, -1, False),
        (bounds.below, 1, False),
        (bounds.most, 1, True),
    ]
    for bound, outwards, included in sides:
        if bound is None:
            continue
        inside, outside = around(name, bound, outwards, included=included)
        refused = refusal(name, outside)
        assert refused.startswith(f"{name}=")
        assert str(bounds) in refused
        assert str(bounds) not in refusal(name, inside)  # a rule between fields may still refuse it


def test_every_number_of_a_config_has_bounds_or_may_be_any():
    numbers = (int, float, int | tuple[int, int], tuple[int, ...], tuple[float, ...])
    free = {n for n, f in fields.leaves(sections.Config).items() if f.type in numbers} - set(BOUNDED)
    assert free == {"model.head_bias", "data.mean"}


def test_every_pattern_is_checked():
    found = [n for n, f in fields.leaves(sections.Config).items() if f.metadata["pattern"]]
    assert found == ["optim.decayed", "optim.trained", "optim.frozen", "optim.lora_kernels"]
    for name in found:
        with pytest.raises(UserError, match="is not a regular expression"):
            replaced(name, ("(",))


def test_help_shows_the_bounds():
    text = fields.describe(sections.Config)
    assert "--config.model.dropout=0.0  (in [0, 1))" in text
    assert "--config.train.batch_size=128  (at least 1)" in text
    assert "--config.optim.lr=0.001  (above 0)" in text
    assert "--config.data.min_area=0.05  (in (0, 1])" in text


def test_the_lists_of_what_may_differ_follow_from_the_roles_of_fields():
    assert {
        *(
            "image_size",
            "posemb_class_slot",
            "posemb_method",
            "dropout",
            "stochastic_depth",
            "head_bias",
            "dtype",
            "layer_scale",
        )
    } == sections.NOT_IN_FILES
    assert {
        *("image_size", "classes", "pre_logits", "dropout", "stochastic_depth", "head_bias", "layer_scale"),
        *("dtype", "posemb_method"),
    } == sections.MAY_DIFFER
    assert sections.MIXER_ONLY == {
        **{"heads": 1, "stem_width": 0, "mlp": "gelu", "class_token": False, "distill_token": False},
        **{"registers": 0, "posemb": "none", "pooling": "gap", "pre_logits": 0, "qk_norm": False},
        **{"embed_norm": False, "rotary": "none", "rotary_grid": 0, "pool_heads": 0, "pool_mlp_width": 0},
        **{"final_norm": "tokens", "pre_logits_form": "tanh", "branch_norm": "before", "qkv_bias": "all"},
        **{"attention_norm": False, "mlp_norm": False, "posemb_method": "official"},
        **{"layer_scale": 0.0, "relative_bias": False, "stem_eps": "official"},
    }

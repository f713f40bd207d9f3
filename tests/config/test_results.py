"""Records of recipes are those of the recipes as they are, and the table is what the records make."""

import importlib.util
import json
import shutil
import statistics
import sys

import pytest
from commands import digits_run
from paths import ROOT

from vit_jax import config
from vit_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("optax_dtypes")


@pytest.fixture(scope="module")
def records():
    """The module benchmarks/records.py."""
    spec = importlib.util.spec_from_file_location("records", ROOT / "benchmarks" / "records.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def finished(tmp_path_factory, records):
    """Two folders as `train` leaves them, of one commit that has all of the tree."""
    first = digits_run(tmp_path_factory.mktemp("runs") / "0")
    origin = json.loads((first / "origin.json").read_text()) | {"commit": "abc"}
    (first / "origin.json").write_text(json.dumps(origin))
    for minutes in (1.0, 2.0):  # killed and continued once
        with (first / "cost.jsonl").open("a") as file:
            file.write(json.dumps({"minutes": minutes, "cpu_minutes": 2 * minutes}) + "\n")
    second = shutil.copytree(first, first.parent / "1")
    fields = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(fields | {"seed": 1}))
    return [first, second]


NAMES = sorted(path.stem for path in (ROOT / "results").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_what_its_record_measured(records, name):
    changes = records.changed(records.read_all()[name])
    assert not changes, f"configs/{name}.py changed since results/{name}.json: measure it again: {changes}"


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_sound_in_itself(records, name):
    record = records.read_all()[name]
    values = [run["result"] for run in record["runs"]]
    assert record["mean"] == pytest.approx(statistics.fmean(values))
    assert record["interval"] == pytest.approx(records.interval(values))
    assert len({run["seed"] for run in record["runs"]}) == len(values) >= 3
    assert all(run["curve"][-1][1] == run["result"] for run in record["runs"])


def test_the_table_is_what_the_records_make(records):
    text = records.PAGE.read_text()
    assert text == records.page(text, records.read_all()), "python benchmarks/records.py table makes it anew"


def test_a_changed_recipe_is_named_with_its_fields(records):
    record = {"config": "configs/quickstart.py", "fields": fields_of("configs/quickstart.py")}
    assert records.changed(record) == []
    record["fields"]["optim"]["lr"] = 1.0
    assert records.changed(record) == ["optim.lr: 1.0 -> 0.003"]


def test_a_record_of_before_a_field_was_there_still_holds(records):
    record = {"config": "configs/quickstart.py", "fields": fields_of("configs/quickstart.py")}
    del record["fields"]["data"]["balance"]
    assert records.changed(record) == []


def fields_of(reference):
    fields = json.loads(json.dumps(config.to_dict(config.parse(config.load_file(reference)))))
    del fields["seed"], fields["data"]["dir"]
    return fields


@pytest.mark.long
def test_a_record_is_made_of_finished_runs(records, finished):
    record = records.make("configs/quickstart.py", finished, ["train.py"], "top1", "")
    (one, two) = record["runs"]
    assert (one["seed"], two["seed"]) == (0, 1)
    assert one["curve"][-1] == [20, one["result"]]
    assert (one["minutes"], one["cpu_minutes"]) == (3.0, 6.0)
    assert record["mean"] == one["result"]
    assert record["commit"] == "abc"
    assert "jax" in record["versions"]
    assert record["parameters"] > 0
    assert "seed" not in record["fields"]
    assert f"{100 * one['result']:.2f} %" in records.row("x", record)


@pytest.mark.long
def test_runs_that_make_no_record_are_refused(records, finished):
    make = lambda metric="top1": records.make("configs/quickstart.py", finished, ["train.py"], metric, "")
    with pytest.raises(UserError, match="no evaluation of map"):
        make("map")
    edit(finished[1] / "config.json", lambda fields: fields["optim"].update(lr=9.0))
    with pytest.raises(UserError, match="differ in config"):
        make()
    edit(finished[1] / "config.json", lambda fields: fields["optim"].update(lr=1e-3))
    for folder in finished:
        edit(folder / "origin.json", lambda origin: origin.update(commit="abc+changes"))
    with pytest.raises(UserError, match="commit, then train again"):
        make()
    (finished[0] / "log.txt").write_text("step 10/20\n")
    with pytest.raises(UserError, match="not finished"):
        make()
    (finished[0] / "cost.jsonl").unlink()
    with pytest.raises(UserError, match=r"cost\.jsonl is missing"):
        make()


def edit(path, change):
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_an_interval_is_students(records):
    # Of 1, 2, 3: mean 2, standard error 1 / sqrt(3), and 4.302653 is the 97.5 % point of t with two degrees.
    assert records.interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    with pytest.raises(UserError, match="train two or more"):
        records.interval([1.0])


def test_a_training_that_fails_is_told_and_counted(records, tmp_path):
    with pytest.raises(UserError, match="the same command continues"):
        records.train(tmp_path / "run", ["train.py", "--config", "configs/none.py", "--workdir", "none"])
    cost = json.loads((tmp_path / "run" / "cost.jsonl").read_text())
    assert cost["cpu_minutes"] > 0


def test_help_names_the_three_commands(records, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["records.py", "--help"])
    with pytest.raises(SystemExit):
        records.main()
    assert "{train,write,table}" in capsys.readouterr().out

"""Profiles and parameters, in a project's folder and without running a task."""

from __future__ import annotations

import shlex
from pathlib import Path

import luigi
import pytest
from conftest import Project
from luigi.configuration import get_config

from pipeline import Export, files, root, settings
from pipeline.errors import UserError


def test_profile_beats_luigi_cfg_beats_default(inside: Project) -> None:
    get_config().set("Export", "learning_rate", "0.2")
    get_config().set("Export", "seed", "7")
    inside.profile("mine", "[Export]\nlearning-rate = 0.5\n")
    mine, other = Export(data="mine"), Export(data="other")
    assert (mine.learning_rate, mine.seed, mine.train_batch_size) == ((0.5,), 7, 100)
    assert (other.learning_rate, other.seed) == ((0.2,), 7)
    assert Export(data="mine", learning_rate=0.9).learning_rate == (0.9,)


URL = "[images]\nurl = http://127.0.0.1:9/x.tgz\nsha256 = 00\nbytes = 1\n"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("[Export]\nlearnin_rate = 1\n", "'learnin_rate' is unknown in .*; is learning_rate meant?"),
        ("[Exprot]\nseed = 1\n", "'Exprot' is unknown in .*; is Export meant?"),
        ("[TrainFinalLayer]\nlearning_rate = 1\n", "'TrainFinalLayer' is unknown in .*known are: Export, images, paths"),
        ("[paths]\nstore = x\n", r"'store' is unknown in \[paths\] of"),
        ("[images]\nurl = http://x/y.tgz\n", "has a url but not its sha256 and bytes"),
        ("[images]\nbytes = many\n", "bytes = 'many' .* a whole number is wanted"),
        ("[images]\nbytes = ²\n", "bytes = '²' .* a whole number is wanted"),
        ("[images]\ntable =\n", r"table in \[images\] of .* has no value; give it one, or remove the line"),
        ("[paths]\nexports =\n", r"exports in \[paths\] of .* has no value; give it one, or remove the line"),
        ("learning_rate = 1\n", r"begins without a section; put \[Export\] above the settings"),
        ("[images]\nurl = 100%\n", "a % is written %%"),
        ("[DEFAULT]\nseeed = 3\n", "'DEFAULT' is unknown in .*known are: Export, images, paths"),
        ("[Export]\nlearning_rate =\n", r"learning_rate in \[Export\] of .* has no value; give it one, or remove the line"),
        ("[images]\nfallback = other\n", r"has a fallback but no url, .*; name the archive, or remove it"),
        ("[images]\npackage = x\ndraw_per_class = 3\n", "has package and draw_per_class, which are different ways .*; keep one of them"),
        ("[images]\nlabel_column = kind\n", "has label_column but no table; name the table, or remove it"),
        ("[images]\ntable = x.csv\nlabel_rule = a <> 3\n", r"\[images\] of .*mine.cfg: label_rule has 'a <> 3'; write LABEL = VALUE"),
        (URL + "fallback = nosuch\n", r"fallback = nosuch in .*: there is no folder .*/data/nosuch, and no profile .*; name another"),
        (URL + "fallback = mine\n", "fallback = mine in .*: it has a fallback itself; name a data set that has none"),
        (
            "[Export]\nlearning_rate = fast\n",
            "learning_rate = fast: a number from 1e-09 to 1000, or several different ones with commas between, is allowed",
        ),
        (
            "[Export]\nweight_decay = 0.1,0.1\n",
            "weight_decay = 0.1,0.1: a number from 0 to 1000, or several different ones with commas between, is allowed",
        ),
        ("[Export]\noptimizer = rmsprop\n", "optimizer = rmsprop: sgd, momentum or adam is allowed"),
        ("[Export]\nhow_many_training_steps = 0\n", "how_many_training_steps = 0: a whole number from 1 to"),
        ("[Export]\nhow_many_training_steps = 1e3\n", "how_many_training_steps = 1e3: a whole number"),
        ("[Export]\nallow_fallback = maybe\n", "allow_fallback = maybe: true or false is allowed"),
        ("[Export]\nfinal_tensor_name = image\n", "final_tensor_name = image: a name .* other than image"),
        ("[Export]\nmodel = resnet\n", "model = 'resnet' is neither a known name"),
        ("[Export]\ntesting_percentage = 60\nvalidation_percentage = 40\n", "leave less than 10 % for training"),
    ],
)
def test_a_mistake_in_a_profile_is_named_with_the_remedy(inside: Project, profile: str, message: str) -> None:
    inside.profile("mine", profile)
    with pytest.raises(UserError, match=message) as error:
        Export(data="mine").check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("[Export]\nlearnin_rate = 1\n", r"unknown in \[Export\] of luigi.cfg; is learning_rate meant"),
        ("[Export]\nlearning_rate =\n", r"learning_rate in \[Export\] of luigi.cfg has no value"),
        (
            "[TrainFinalLayer]\nseed = 1\n",
            r"\[TrainFinalLayer\] in luigi.cfg has no effect; every setting of a training belongs into \[Export\]",
        ),
        ("[Exprt]\nseed = 1\n", r"\[Exprt\] in luigi.cfg has no effect; is \[Export\] meant\?"),
        ("[training]\nseed = 1\n", r"\[training\] in luigi.cfg has no effect"),
        ("[DEFAULT]\nseed = 1\n", r"\[DEFAULT\] in luigi.cfg has no effect"),
    ],
)
@pytest.mark.filterwarnings("ignore::luigi.parameter.UnconsumedParameterWarning")
def test_what_luigi_cfg_sets_in_vain_is_an_error(inside: Project, lines: str, message: str) -> None:
    with open("luigi.cfg", "a") as file:
        file.write(lines)
    get_config().read("luigi.cfg")
    with pytest.raises(UserError, match=message):
        Export(data="mine").check()


def test_a_file_on_top_of_luigi_cfg_is_checked_too(inside: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (inside.root / "configs/night.cfg").write_text("[Exprot]\nseed = 1\n")
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "configs/night.cfg")
    with pytest.raises(UserError, match=r"\[Exprot\] in configs/night.cfg has no effect; is \[Export\] meant"):
        Export(data="mine").check()


def test_two_files_on_top_of_luigi_cfg_are_one_that_is_not_there(inside: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Luigi takes the whole text for one name."""
    (inside.root / "configs/night.cfg").write_text("[Export]\nseed = 1\n")
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "configs/night.cfg:luigi.cfg")
    with pytest.raises(UserError, match="LUIGI_CONFIG_PATH names configs/night.cfg:luigi.cfg, and there is no such file"):
        Export(data="mine").check()


def test_an_empty_path_is_an_error(inside: Project) -> None:
    """It would be the project's folder, or the root of the file system."""
    get_config().set("paths", "store", "")
    with pytest.raises(UserError, match=r"store in \[paths\] of luigi.cfg has no value; give it one, or remove the line"):
        settings.paths()


def test_a_file_that_is_named_and_not_there_is_an_error(inside: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Luigi passes it over, and with it what keeps a night safe."""
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "configs/cron.cf")
    with pytest.raises(UserError, match=r"LUIGI_CONFIG_PATH names configs/cron.cf, and there is no such file; correct it, or leave it out"):
        Export(data="mine").check()


def test_a_start_that_is_another_after_each_run_is_refused(inside: Project) -> None:
    version = inside.root / "exports/mine/0001-aaaaaaaa"
    version.mkdir(parents=True)
    files.write_manifest(version, {"key": "a" * 16})
    (version.parent / "latest").symlink_to(version.name)
    for name in ("mine", "exports/mine", "exports/mine/latest"):
        with pytest.raises(UserError, match=rf"init_from = {name} is another version after each run.*; name exports/mine/0001-aaaaaaaa"):
            _ = Export(data="mine", init_from=name).start
    assert Export(data="mine", init_from="exports/mine/0001-aaaaaaaa").start == version


def test_the_commands_that_are_printed_can_be_pasted(inside: Project) -> None:
    inside.photos("my photos")
    get_config().set("paths", "store", "the store")
    figures = {
        "photos": 1,
        "labels": [],
        "best_step": 1,
        "test_accuracy": 1,
        "test_correct": 1,
        "test_count": 1,
        "skipped": 0,
        "verdict": {"words": "accepted"},
    }
    version = inside.root / "exports/my photos/0001-ab"
    version.mkdir(parents=True)
    files.write_json(version / files.MANIFEST, {**figures, "backbone": {"name": "x"}, "test_interval": [0, 1]})
    *_, curves, predict, _report = root.result_lines("my photos", version, Export(data="my photos").classifier)
    assert shlex.split(curves)[-1].startswith("the store/runs/TrainFinalLayer/")
    assert shlex.split(predict)[-5:] == ["-m", "pipeline", "predict", "my photos", "PHOTO.jpg"]


def test_several_numbers_are_written_with_commas(inside: Project) -> None:
    inside.profile("mine", "[Export]\nweight_decay = 0.1,0.01\n")
    task = Export(data="mine", learning_rate=[0.5, 0.25])
    assert (task.weight_decay, task.learning_rate) == ((0.1, 0.01), (0.5, 0.25))
    assert {name: task.to_str_params()[name] for name in ("weight_decay", "learning_rate")} == {
        "weight_decay": "0.1,0.01",
        "learning_rate": "0.5,0.25",
    }


def test_numbers_are_told_apart_to_the_last_digit(inside: Project) -> None:
    one, other = (Export(data="mine", learning_rate=rate).to_str_params()["learning_rate"] for rate in (0.012345601, 0.012345649))
    assert one != other


def test_what_can_be_chosen_is_what_the_library_knows() -> None:
    """The tasks name the choices once more, since they may not import TensorFlow."""
    from pipeline import final_layer, optimizers

    known = {
        "optimizer": optimizers.OPTIMIZERS,
        "learning_rate_schedule": optimizers.SCHEDULES,
        "class_weights": final_layer.CLASS_WEIGHTS,
    }
    parameters = dict(Export.get_params())
    for name, values in known.items():
        for value in (*values, "another"):
            if value in values:
                parameters[name].check(name, value)
            else:
                with pytest.raises(UserError, match="is allowed"):
                    parameters[name].check(name, value)


def test_values_given_in_python_are_checked_too(inside: Project) -> None:
    with pytest.raises(UserError, match=r"learning_rate = 0\.1: a number"):
        Export(data="mine", learning_rate="0.1").check()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a ", "a\nb", "a" * 61])
def test_what_cannot_name_a_data_set(inside: Project, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a data set"):
        settings.profile(name)


def test_paths_start_at_the_project_and_a_profile_moves_some(inside: Project, tmp_path: Path) -> None:
    inside.profile("mine", f"[paths]\nimage_dir = {tmp_path}/photos\noutput_graph = out/graph.pb\n")
    paths, mine = settings.paths(), settings.paths("mine")
    assert paths.store == mine.store == inside.root / "store"
    assert paths.bottleneck_dir == inside.root / "store/vectors"
    assert (paths.output_graph, mine.output_graph) == (None, inside.root / "out/graph.pb")
    assert mine.image_dir == tmp_path / "photos"
    get_config().set("paths", "stroe", "x")
    with pytest.raises(UserError, match="'stroe' is unknown in .*; is store meant"):
        settings.paths()


def test_a_percent_sign_is_doubled(inside: Project) -> None:
    inside.profile("mine", "[images]\nurl = http://x/a%%20b.tgz\nsha256 = 0\nbytes = 1\n")
    assert settings.profile("mine").images.url == "http://x/a%20b.tgz"


def test_the_project_is_where_luigi_cfg_was_read(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LUIGI_CONFIG_PATH", raising=False)
    with pytest.raises(UserError, match="no luigi.cfg with a section"):
        settings.project()
    config = get_config()
    config.read(project.root / "luigi.cfg")
    monkeypatch.setenv("LUIGI_CONFIG_PATH", f"{project.root}/luigi.cfg")
    assert settings.project() == project.root
    for section in config.sections():
        config.remove_section(section)


def test_keys_follow_what_decides_the_content(inside: Project, tmp_path: Path) -> None:
    inside.photos("mine")

    def keys(**parameters: object) -> dict[str, str]:
        task = Export(data="mine", **parameters).classifier
        tasks = (task, *task.requires())
        return {one.task_family: one.key for one in tasks}

    plain = keys()
    (tmp_path / "elsewhere").mkdir()
    (inside.root / "data/mine").rename(tmp_path / "elsewhere/mine")
    assert keys(images=str(tmp_path / "elsewhere/mine"), checkpoint_interval=7) == plain

    def changed(**parameters: object) -> set[str]:
        other = keys(images=str(tmp_path / "elsewhere/mine"), **parameters)
        return {family for family in plain if other[family] != plain[family]}

    assert changed(learning_rate=0.5) == {"TrainFinalLayer", "ExportGraph"}
    assert changed(final_tensor_name="scores") == {"ExportGraph"}
    assert changed(testing_percentage=20.0) == set(plain) - {"DownloadModel"}


def test_formats_decide_the_report_and_nothing_before_it(inside: Project) -> None:
    inside.photos("mine")
    inside.profile("mine", "[Export]\nformats = tflite-int8, tflite-float32\n")
    profiled, given = Export(data="mine"), Export(data="mine", formats="none")
    assert profiled.formats == ("tflite-float32", "tflite-int8")
    assert [task.task_family for task in profiled.report.exported_formats] == ["ExportTFLiteFloat32", "ExportTFLiteInt8"]
    assert Export(data="mine", formats=["tflite-float16"]).to_str_params()["formats"] == "tflite-float16"
    assert Export.formats.parse("none") == ()
    assert profiled.classifier.key == Export(data="mine", formats=()).classifier.key
    assert profiled.report.key != Export(data="mine", formats=()).report.key
    with pytest.raises(UserError, match="formats = none: none, or any of tflite-float32, .* is allowed"):
        given.check()


def test_no_option_is_the_beginning_of_one_of_luigis_own() -> None:
    """The luigi program reads its own options first, shortened ones too: ``--schedule`` was one of its twenty ``--scheduler-…``."""
    parser = luigi.cmdline_parser.CmdlineParser._build_parser()
    own = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    assert "scheduler-host" in own
    for name, _ in Export.get_params():
        assert [option for option in own if option.startswith(name.replace("_", "-"))] == []

from types import SimpleNamespace

from segkit.cli.training import _print_run


def test_a_run_without_validation_data_has_no_table_of_scores(tmp_path, capsys):
    run = SimpleNamespace(metrics={"pixels": 0}, seconds=1.0, folder=tmp_path, model=tmp_path / "model.safetensors")
    _print_run(run)
    assert capsys.readouterr().out.startswith("no validation data (data.val), so no scores: segkit evaluate")

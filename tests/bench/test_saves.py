"""The benchmark of saves times real checkpoints."""

from dynexit.bench.saves import main


def test_a_table_has_a_row_for_each_size(capsys):
    main(["--megabytes", "0.1", "1"])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| MB | save s | MB/s | restore s |"
    assert [row.split(" | ")[0] for row in rows] == ["| 0.1", "| 1"]

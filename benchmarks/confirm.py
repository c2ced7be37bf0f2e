"""A search of a real task and its confirmation, kept whole: what `autopeft confirm --json` prints.

    python benchmarks/confirm.py --folder DIR [--task sst2] [--rows 400] [--trials 12] [--baseline-trials 6]

The study is that of `transfer.py`: MiniLM-L6, `--rows` training rows of `../shared/data`, 300 to validate and 500 held
out. It is in DIR/autopeft.db: what is interrupted goes on with the same command. The table is printed, and a row is
appended to benchmarks/results/confirm.jsonl.
"""

import argparse
from pathlib import Path

from common import write_rows
from transfer import TASKS, study_of

import autopeft
from autopeft import Study
from autopeft.studies.confirm_tables import confirm_json, confirm_table
from autopeft.studies.terminal import print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, default="sst2")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--baseline-trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{options.folder}/autopeft.db"
    autopeft.search(study_of(options.task, options), storage=storage)
    study = Study.open(options.task, storage=storage)
    study.confirm()
    found = study.confirmation()
    assert found is not None
    print_table(confirm_table(found, shape=study.shape()), width=120)
    setup = {"training_rows": options.rows, "epochs": options.epochs, "batch_size": 16, "max_length": 64}
    print(
        write_rows("confirm", [{"benchmark": "confirm", "model": "all-MiniLM-L6-v2", **setup, **confirm_json(found)}])
    )


if __name__ == "__main__":
    main()

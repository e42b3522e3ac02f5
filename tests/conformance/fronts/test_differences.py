"""The table of differences is complete and used."""

from pathlib import Path

from tests.conformance.fronts.differences import DIFFERENCES


def test_every_difference_is_named_by_a_test_and_is_one() -> None:
    files = Path(__file__).parent.glob("test_*.py")
    text = "\n".join(file.read_text() for file in files if file.name != Path(__file__).name)
    for case, difference in DIFFERENCES.items():
        assert f'"{case}"' in text, case
        assert difference.h2 != difference.grpcio and difference.why.endswith("."), case
